"""Checkpoints: exact, atomic, and a corrupt one is told and replaced by the one before it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trimtab.errors import CorruptData, Mismatch
from trimtab_trainer.checkpoint import (
    CheckpointStore,
    Snapshot,
    capture_random_state,
    restore_random_state,
    write_file_atomically,
)
from trimtab_trainer.config import OptimizerConfig
from trimtab_trainer.optimization import Learner


def snapshot(step: int) -> Snapshot:
    return Snapshot(step=step, tensors={"w": torch.full((3,), float(step))}, state={"position": step})


def learner(seed: int, width: int = 4) -> Learner:
    torch.manual_seed(seed)
    layers = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 1))
    return Learner(layers, OptimizerConfig(learning_rate=0.01), total_steps=10)


def steps(one: Learner, count: int) -> None:
    for _ in range(count):
        torch.manual_seed(one.step)
        one.backward(one.model(torch.randn(8, 3)).square().mean())
        one.update()


def test_it_returns_what_was_saved_and_keeps_the_last(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", keep=2)
    assert store.load_latest() is None
    for step in (5, 10, 15):
        store.save(snapshot(step))
    loaded = store.load_latest()
    assert loaded is not None
    assert (loaded.step, loaded.state) == (15, {"position": 15})
    assert torch.equal(loaded.tensors["w"], torch.full((3,), 15.0))
    assert store.steps() == [10, 15]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_one_is_told_and_the_one_before_is_used(tmp_path: Path, name: str, damage: str) -> None:
    told: list[str] = []
    store = CheckpointStore(tmp_path / "c", warn=told.append)
    store.save(snapshot(1))
    newest = store.save(snapshot(2)) / name
    content = newest.read_bytes()
    if damage == "remove":
        newest.unlink()
    elif damage == "cut":
        newest.write_bytes(content[: len(content) // 2])
    else:
        newest.write_bytes(content[:-5] + bytes([content[-5] ^ 0x55]) + content[-4:])
    loaded = store.load_latest()
    assert loaded is not None and loaded.step == 1
    assert len(told) == 1 and "step-00000002" in told[0] and "checkpoint 1 is tried instead" in told[0]
    store.save(snapshot(2))  # the step done again takes its place
    assert store.load(2).step == 2


def test_an_unfinished_one_does_not_count(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    store.save(snapshot(1))
    (tmp_path / "c" / ".partial-step-00000002").mkdir()
    loaded = store.load_latest()
    assert loaded is not None and loaded.step == 1


def test_no_whole_one_is_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    (store.save(snapshot(1)) / "state.json").write_text("{}")
    with pytest.raises(CorruptData, match="none of the checkpoints 1 is whole"):
        store.load_latest()


def test_learner_goes_on_bit_for_bit(tmp_path: Path) -> None:
    straight = learner(0)
    steps(straight, 10)
    first = learner(0)
    steps(first, 5)
    store = CheckpointStore(tmp_path / "c")
    store.save(Snapshot(step=5, tensors=first.capture()))
    second = learner(1)
    loaded = store.load_latest()
    assert loaded is not None
    second.restore(loaded.tensors)
    steps(second, 5)
    assert second.step == 10
    expected, found = straight.capture(), second.capture()
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_another_model_is_refused() -> None:
    with pytest.raises(Mismatch, match="learner/model/0.weight is torch.float32"):
        learner(0, width=5).restore(learner(0).capture())


def test_random_state_goes_on() -> None:
    torch.manual_seed(3)
    state = capture_random_state()
    drawn = torch.rand(4)
    restore_random_state(state)
    assert torch.equal(torch.rand(4), drawn)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.json"
    write_file_atomically(path, "one")
    write_file_atomically(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["state.json"]
