"""The event store: numbered, durable, idempotent."""

from pathlib import Path

import pytest

from trimtab.errors import FailedPrecondition, InvalidRequest, NotFound
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.events import EventStore
from trimtab_services.trainer.orders import CheckpointOrders
from trimtab_services.trainer.run_rows import AT_WORK, ENDED, NOT_ENDED, Relaunch


def step(sequence: int, step: int = 1) -> pb.RunEvent:
    return pb.RunEvent(
        sequence=sequence, stage="ppo", step=step, step_done=pb.StepDone(total_steps=9, metrics={"mean_kl": 0.5})
    )


@pytest.fixture
def store(tmp_path: Path):
    store = EventStore(tmp_path / "events.sqlite")
    yield store
    store.close()


def test_run_is_created_once(store: EventStore) -> None:
    run, is_new = store.create_run("a", "seed: 1", Path("runs/a"))
    assert is_new and run.state == pb.RUN_STATE_STARTING
    again, is_new = store.create_run("a", "seed: 1", Path("runs/a"))
    assert not is_new and again == run
    with pytest.raises(FailedPrecondition, match="'a' exists already with another spec"):
        store.create_run("a", "seed: 2", Path("runs/a"))


def test_a_run_that_failed_before_its_first_step_gives_its_name_back(store: EventStore) -> None:
    store.create_run("a", "seed: 1", Path("runs/a"))
    store.append("a", pb.RunEvent(sequence=1, run_ended=pb.RunEnded(state=pb.RUN_STATE_FAILED, error="no such file")))
    run, is_new = store.create_run("a", "seed: 2", Path("runs/a"))
    assert is_new and run.state == pb.RUN_STATE_STARTING and run.error == ""
    assert store.events("a", 0) == []
    store.append("a", step(1))
    store.append("a", pb.RunEvent(sequence=2, run_ended=pb.RunEnded(state=pb.RUN_STATE_FAILED, error="late")))
    with pytest.raises(FailedPrecondition, match="another spec"):
        store.create_run("a", "seed: 3", Path("runs/a"))


def test_append_is_idempotent_and_refuses_gaps(store: EventStore) -> None:
    store.create_run("a", "seed: 1", Path("runs/a"))
    assert store.append("a", step(1)) == 1
    assert store.append("a", step(2, step=2)) == 2
    assert store.append("a", step(1)) == 2  # sent twice, kept once
    with pytest.raises(InvalidRequest, match="4 leaves a gap; 3 is next"):
        store.append("a", step(4))
    assert [event.sequence for event in store.events("a", 0)] == [1, 2]
    assert [event.sequence for event in store.events("a", 1)] == [2]


def test_an_end_of_an_earlier_life_that_is_told_late_does_not_end_this_one(store: EventStore) -> None:
    store.create_run("a", "seed: 1", Path("runs/a"))
    store.append("a", step(1))
    for number, seconds, state in ((2, 99, pb.RUN_STATE_RUNNING), (3, 101, pb.RUN_STATE_STOPPED)):
        ended = pb.RunEvent(sequence=number, run_ended=pb.RunEnded(state=pb.RUN_STATE_STOPPED))
        ended.time.FromSeconds(seconds)
        store.append("a", ended, since=100.0)
        assert store.run("a").state == state
    assert [event.sequence for event in store.events("a", 0)] == [1, 2, 3]


def test_progress_follows_the_events(store: EventStore) -> None:
    store.create_run("a", "seed: 1", Path("runs/a"))
    store.append("a", pb.RunEvent(sequence=1, stage="sft", stage_started=pb.StageStarted(total_steps=7)))
    assert (store.run("a").state, store.run("a").stage, store.run("a").total_steps) == (pb.RUN_STATE_RUNNING, "sft", 7)
    store.append("a", step(2, step=3))
    assert (store.run("a").stage, store.run("a").step) == ("ppo", 3)
    store.append("a", pb.RunEvent(sequence=3, run_ended=pb.RunEnded(state=pb.RUN_STATE_FAILED, error="why")))
    assert (store.run("a").state, store.run("a").error) == (pb.RUN_STATE_FAILED, "why")
    store.append("a", pb.RunEvent(sequence=4, stage="ppo", step=2, stage_started=pb.StageStarted(total_steps=9)))
    assert store.run("a").step == 2  # it goes on there


def test_acknowledged_events_survive_a_new_process(tmp_path: Path) -> None:
    first = EventStore(tmp_path / "events.sqlite")
    first.create_run("a", "seed: 1", Path("runs/a"))
    first.append("a", step(1))  # no close: as if killed
    second = EventStore(tmp_path / "events.sqlite")
    assert second.last_sequence("a") == 1
    assert second.events("a", 0)[0].step_done.metrics["mean_kl"] == 0.5
    second.close()
    first.close()


def test_paging_is_newest_first(store: EventStore) -> None:
    for name in "abc":
        store.create_run(name, "seed: 1", Path("runs") / name)
    page = store.runs(limit=2)
    assert [run.name for run in page] == ["c", "b"]
    assert [run.name for run in store.runs(before_number=page[-1].number)] == ["a"]


def test_unknown_run(store: EventStore) -> None:
    with pytest.raises(NotFound, match="no run 'x'"):
        store.run("x")


def test_a_checkpoint_order_survives_a_new_process(tmp_path: Path) -> None:
    first = EventStore(tmp_path / "events.sqlite")
    for name in "ab":
        first.create_run(name, "seed: 1", Path("runs") / name)
    number = first.order_checkpoint("a")
    second = EventStore(tmp_path / "events.sqlite")
    assert (second.checkpoint_order("a"), second.checkpoint_order("b")) == (number, 0)
    later = second.order_checkpoint("a")
    second.settle_checkpoint_orders("a", number)
    assert second.checkpoint_order("a") == later > number  # one that came meanwhile stays
    second.settle_checkpoint_orders("a", later)
    assert second.checkpoint_order("a") == 0 and second.order_checkpoint("a") > later
    with pytest.raises(NotFound):
        second.order_checkpoint("x")
    second.close()
    first.close()


def test_a_checkpoint_order_is_settled_by_a_step_that_ended_after_it(store: EventStore, monkeypatch) -> None:
    store.create_run("a", "seed: 1", Path("runs/a"))
    store.order_checkpoint("a")
    stream = CheckpointOrders(store, "a")
    assert stream.take() and not stream.take()  # once on each stream
    stream.settle(step(1))  # may have crossed the order on its way
    assert store.checkpoint_order("a") and CheckpointOrders(store, "a").take()
    monkeypatch.setattr("trimtab_services.trainer.orders._ON_ITS_WAY_S", 0.0)
    stream.settle(pb.RunEvent(sequence=2, message=pb.Message(text="no step")))
    assert store.checkpoint_order("a")
    CheckpointOrders(store, "a").settle(step(2))  # a stream on which it never went out
    assert store.checkpoint_order("a")
    stream.settle(step(2))
    assert store.checkpoint_order("a") == 0 and not CheckpointOrders(store, "a").take()
    store.order_checkpoint("a")
    assert stream.take()


def test_runs_are_found_by_their_state(store: EventStore) -> None:
    for name in "abc":
        store.create_run(name, "seed: 1", Path("runs") / name)
    store.append("b", step(1))
    store.set_state("c", pb.RUN_STATE_FAILED, error="why")
    assert [run.name for run in store.runs_in(AT_WORK)] == ["b"]
    assert [run.name for run in store.runs_in(NOT_ENDED)] == ["b", "a"]
    assert [run.name for run in store.runs_in(ENDED)] == ["c"]


def test_a_relaunch_outlives_the_service_and_goes_with_its_run(tmp_path: Path) -> None:
    first = EventStore(tmp_path / "events.sqlite")
    first.create_run("a", "seed: 1", Path("runs/a"))
    first.append("a", step(1))
    first.order_relaunch("a", 2, "it was preempted")  # no close: as if killed
    second = EventStore(tmp_path / "events.sqlite")
    assert second.run("a").state == pb.RUN_STATE_STARTING
    assert second.relaunch("a") == Relaunch("a", 2, "it was preempted")
    second.settle_relaunch("a")
    assert second.relaunch("a") is None
    second.order_relaunch("a", 3, "again")
    second.delete_run("a")
    second.create_run("a", "seed: 1", Path("runs/a"))
    assert second.relaunch("a") is None
    second.close()
    first.close()
