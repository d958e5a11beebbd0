"""Checkpoints: exact, atomic, and a corrupt one is told and replaced by the one before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trimtab.errors import CorruptData, Mismatch
from trimtab.weights.transfer import file_digest
from trimtab_trainer import checkpoint_tensors
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
    assert torch.equal(loaded.saved["w"], torch.full((3,), 15.0))
    assert store.steps() == [10, 15]


FIRST = "shard-00001-model-00001-of-00001.safetensors"


@pytest.mark.parametrize("name", [FIRST, "state.json", "manifest.json"])
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
    left_over = tmp_path / "c" / ".partial-step-00000002"
    left_over.mkdir()
    loaded = store.load_latest()
    assert loaded is not None and loaded.step == 1
    store.save(snapshot(3))
    assert not left_over.exists()


def test_no_whole_one_is_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    (store.save(snapshot(1)) / "state.json").write_text("{}")
    with pytest.raises(CorruptData, match="none of the checkpoints 1 is whole"):
        store.load_latest()


def test_a_large_one_is_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_tensors, "_FILE_BYTES", 100)
    one, other = learner(0, width=50), learner(1, width=50)
    steps(one, 2)
    store = CheckpointStore(tmp_path / "c")
    path = store.save(Snapshot(2, capture_random_state(), parts=[one]))
    assert len(list(path.glob("*.safetensors"))) > 5
    other.restore(store.load(2).saved)
    assert all(torch.equal(other.capture()[name], tensor) for name, tensor in one.capture().items())


def test_one_whose_tensors_are_in_one_file_as_they_once_were_is_read(tmp_path: Path) -> None:
    one, other = learner(0), learner(1)
    steps(one, 3)
    path = tmp_path / "c" / "step-00000003"
    path.mkdir(parents=True)
    save_file(one.capture(), path / "tensors.safetensors")
    (path / "state.json").write_text('{"position": 3}')
    files = {file.name: {"sha256": file_digest(file), "bytes": file.stat().st_size} for file in path.iterdir()}
    (path / "manifest.json").write_text(json.dumps({"format": 1, "step": 3, "files": files}))
    loaded = CheckpointStore(tmp_path / "c").load_latest()
    assert loaded is not None and (loaded.step, loaded.state) == (3, {"position": 3})
    other.restore(loaded.saved)
    assert all(torch.equal(other.capture()[name], tensor) for name, tensor in one.capture().items())


def test_learner_goes_on_bit_for_bit(tmp_path: Path) -> None:
    straight = learner(0)
    steps(straight, 10)
    first = learner(0)
    steps(first, 5)
    store = CheckpointStore(tmp_path / "c")
    store.save(Snapshot(step=5, parts=[first]))
    second = learner(1)
    loaded = store.load_latest()
    assert loaded is not None
    second.restore(loaded.saved)
    steps(second, 5)
    assert second.step == 10
    expected, found = straight.capture(), second.capture()
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_another_model_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    store.save(Snapshot(1, parts=[learner(0)]))
    with pytest.raises(Mismatch, match="learner/model/0.weight is torch.float32"):
        learner(0, width=5).restore(store.load(1).saved)


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
