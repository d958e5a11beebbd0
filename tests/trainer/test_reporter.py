"""Events: numbered without gaps over resumes, written before they are sent, readable as messages of the wire."""

from __future__ import annotations

import io
import json
import math
import threading
from pathlib import Path

import pytest
from rich.console import Console

from trimtab.errors import DataError
from trimtab.v1 import trainer_pb2 as pb
from trimtab_trainer.reporter import (
    Event,
    Reporter,
    RolloutSample,
    RunState,
    Severity,
    read_events,
    stage_metrics,
    step_metrics,
)


class Sink:
    """Takes events and looks whether each is in the file already."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []

    def send(self, event: Event) -> None:
        assert list(read_events(self.path))[-1] == event
        self.events.append(event)


def console(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=160)


def tell_all(reporter: Reporter) -> None:
    reporter.stage_started("sft", 2)
    samples = [RolloutSample("Why?", "Because.", reward, True) for reward in (0.5, math.nan)]
    reporter.step_done("sft", 1, 2, {"loss": 1.5}, samples)
    reporter.rollout_queue("ppo", 3, waiting=4, running=5, replicas=2)
    reporter.message("half done", severity=Severity.WARNING, stage="sft", step=1)
    reporter.stage_done("sft", 2, {"held_out_loss": 2.0}, version=7)
    reporter.run_ended(RunState.STOPPED)


def test_every_event_reaches_file_sink_and_wire(tmp_path: Path) -> None:
    sink = Sink(tmp_path / "events.jsonl")
    with Reporter(tmp_path, sinks=[sink], console=console()) as reporter:
        tell_all(reporter)
    events = list(read_events(tmp_path / "events.jsonl"))
    assert events == sink.events
    assert [e.sequence for e in events] == [1, 2, 3, 4, 5, 6]
    messages = [e.to_message() for e in events]
    assert [m.WhichOneof("event") for m in messages] == [e.event.value for e in events]
    assert messages[0].stage_started.total_steps == 2
    assert (messages[1].step, dict(messages[1].step_done.metrics)) == (1, {"loss": 1.5})
    (sample,) = messages[1].step_done.samples  # of the other the reward is no number
    assert sample == pb.RolloutSample(prompt="Why?", completion="Because.", reward=0.5, ended=True)
    assert messages[2].rollout_queue == pb.RolloutQueue(waiting_rollouts=4, running_rollouts=5, replicas=2)
    assert messages[3].message == pb.Message(severity=pb.SEVERITY_WARNING, text="half done")
    assert (messages[4].stage_done.version, dict(messages[4].stage_done.metrics)) == (7, {"held_out_loss": 2.0})
    assert messages[5].run_ended.state == pb.RUN_STATE_STOPPED
    assert abs(messages[0].time.ToNanoseconds() / 1e9 - events[0].time) < 1e-3


def test_numbers_go_on_after_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    with Reporter(tmp_path, console=console()) as reporter:
        tell_all(reporter)
    path = tmp_path / "events.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    assert len(list(read_events(path))) == 5
    with Reporter(tmp_path, console=console()) as reporter:
        reporter.run_ended(RunState.SUCCEEDED)
    assert [e.sequence for e in read_events(path)] == [1, 2, 3, 4, 5, 6]


def test_a_broken_line_before_the_last_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"sequence": 1}\n')
    with pytest.raises(DataError, match="events.jsonl:1"):
        list(read_events(path))


def test_a_metric_that_is_not_finite_is_left_out_and_told_once(tmp_path: Path) -> None:
    out = console()
    with Reporter(tmp_path, console=out) as reporter:
        for step in (1, 2):
            reporter.step_done("ppo", step, 2, {"loss": 1.0, "explained_variance": float("nan")})
    assert step_metrics(tmp_path / "events.jsonl", "ppo") == {1: {"loss": 1.0}, 2: {"loss": 1.0}}
    warnings = [e for e in read_events(tmp_path / "events.jsonl") if e.event == "message"]
    assert len(warnings) == 1 and "explained_variance is nan" in warnings[0].fields["text"]


def test_of_a_step_done_twice_the_last_counts(tmp_path: Path) -> None:
    with Reporter(tmp_path, console=console()) as reporter:
        for step, loss in ((1, 3.0), (2, 2.0), (2, 1.0)):
            reporter.step_done("sft", step, 2, {"loss": loss})
    assert step_metrics(tmp_path / "events.jsonl", "sft") == {1: {"loss": 3.0}, 2: {"loss": 1.0}}


def test_the_metrics_of_every_stage_in_one_reading(tmp_path: Path) -> None:
    with Reporter(tmp_path, console=console()) as reporter:
        for stage, step, loss in (("sft", 2, 2.0), ("sft", 1, 3.0), ("ppo", 1, 5.0), ("sft", 2, 1.0)):
            reporter.step_done(stage, step, 2, {"loss": loss})
        reporter.message("neither a step nor a stage")
    found = stage_metrics(tmp_path / "events.jsonl")
    assert found == {"sft": {1: {"loss": 3.0}, 2: {"loss": 1.0}}, "ppo": {1: {"loss": 5.0}}}
    assert list(found["sft"]) == [1, 2] and step_metrics(tmp_path / "events.jsonl", "dpo") == {}


def test_threads_share_it(tmp_path: Path) -> None:
    with Reporter(tmp_path, console=console()) as reporter:

        def tell() -> None:
            for _ in range(50):
                reporter.rollout_queue("ppo", 1, waiting=1, running=1, replicas=1)

        threads = [threading.Thread(target=tell) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == list(range(1, 201))


@pytest.mark.parametrize("terminal", [False, True])
def test_people_see_stage_figures_and_warnings(tmp_path: Path, terminal: bool) -> None:
    out = console(terminal)
    with Reporter(tmp_path, console=out) as reporter:
        tell_all(reporter)
    assert isinstance(out.file, io.StringIO)
    shown = out.file.getvalue()
    assert "sft" in shown and "half done" in shown and "held_out_loss" in shown and "STOPPED" in shown
