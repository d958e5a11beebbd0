"""Checkpoints of several ranks: each its part, read on any other number, whole or not there whoever is killed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from rank_calls import die_after_writing, limit_files, limit_memory, whole
from trimtab.errors import ConfigError, Mismatch, Unavailable
from trimtab_models.loading import load_policy
from trimtab_trainer import ranks
from trimtab_trainer.checkpoint import CheckpointStore, Snapshot, capture_random_state, restore_random_state
from trimtab_trainer.checkpoint_tensors import check_seen_by_all
from trimtab_trainer.config import OptimizerConfig, RunSpec
from trimtab_trainer.context import Orders
from trimtab_trainer.distributed import shard
from trimtab_trainer.language_modeling import Example, train_on
from trimtab_trainer.optimization import Learner, make_learner, prepare_for_training
from trimtab_trainer.places import Place
from trimtab_trainer.running_mean import RunningMean, running_mean_of

STEADY = OptimizerConfig(learning_rate=1e-2, schedule="constant", final_fraction=1.0, eps=1e-4)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", autouse=True)
def one_thread_and_paths() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]))
        yield
    torch.set_num_threads(before)


def leading(size: int, directory: Path) -> Any:
    spec = RunSpec(name="r", directory=directory, model="base", stages=("sft",), data_directory=directory, threads=1)
    place = Place.of({}, processes=size)
    assert place is not None
    return ranks.leading(place, Orders(), spec, start=[sys.executable, "-m", "trimtab", "run", "-"])


def on(size: int, directory: Path, work: Callable[[], Any]) -> Any:
    """The work on that many ranks."""
    if size == 1:
        return work()
    with leading(size, directory):
        return work()


def started(folder: Path) -> tuple[Learner, RunningMean]:
    model = shard(load_policy(folder), torch.device("cpu"))
    prepare_for_training(model)
    return make_learner(model, STEADY, total_steps=10), running_mean_of(model)


def stepped(learner: Learner, average: RunningMean) -> float:
    """One step on a batch that depends on the step alone; its loss."""
    draw = np.random.default_rng(learner.step)
    batch = [Example(tuple(draw.integers(5, 290, n).tolist()), 1) for n in draw.integers(2, 30, 7)]
    loss = train_on(learner, batch, micro_batch_tokens=64)
    learner.update()
    average.move(0.1)
    return loss


def save(store: CheckpointStore, learner: Learner, average: RunningMean) -> Path:
    return store.save(Snapshot(learner.step, capture_random_state(), {"kl": 0.5}, [learner, average]))


def gone_on(folder: Path, store: CheckpointStore, steps: int) -> list[float]:
    """Goes on from the last checkpoint, whose tensors are first compared with what was read; saves; the losses."""
    learner, average = started(folder)
    if (snapshot := store.load_latest()) is not None:
        learner.restore(snapshot.saved)
        average.restore(snapshot.saved)
        restore_random_state(snapshot.saved)
        assert snapshot.state == {"kl": 0.5} and learner.step == snapshot.step
        for name, tensor in whole(learner, average).items():
            assert torch.equal(tensor, snapshot.saved[name]), name
    losses = [stepped(learner, average) for _ in range(steps)]
    save(store, learner, average)
    return losses


@pytest.mark.parametrize("sizes", [(2, 1), (1, 2), pytest.param((2, 4, 1), marks=pytest.mark.slow)])
def test_a_run_goes_on_on_another_number_of_ranks(tmp_path: Path, llama_folder: Path, sizes: tuple[int, ...]) -> None:
    learner, average = started(llama_folder)
    expected = [stepped(learner, average) for _ in range(2 * len(sizes))]
    store = CheckpointStore(tmp_path / "c", warn=pytest.fail)
    found = []
    for size in sizes:
        found += on(size, tmp_path, lambda: gone_on(llama_folder, store, 2))
        files = list(max(store.folder.glob("step-*")).glob("*.safetensors"))
        assert {path.name.partition("-model")[0] for path in files} == {f"shard-{n + 1:05d}" for n in range(size)}
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    saved = store.load(2 * len(sizes)).saved
    for name, tensor in {**learner.capture(), **average.capture()}.items():
        torch.testing.assert_close(saved[name], tensor, rtol=1e-4, atol=1e-5)


def test_whoever_is_killed_while_it_is_written_the_one_before_it_is_used(tmp_path: Path, llama_folder: Path) -> None:
    store = CheckpointStore(tmp_path / "c", warn=pytest.fail)
    expected, losses = gone_on(llama_folder, CheckpointStore(tmp_path / "straight"), 3), []
    with pytest.raises(Unavailable, match=r"rank 1 of 2 \(.*, process \d+\) was killed by SIGKILL"):
        with leading(2, tmp_path):
            learner, average = started(llama_folder)
            losses.append(stepped(learner, average))
            save(store, learner, average)
            stepped(learner, average)
            die_after_writing(1)
            save(store, learner, average)
    assert store.steps() == [1] and list(store.folder.glob(".partial*/shard-00002*"))
    losses += on(2, tmp_path, lambda: gone_on(llama_folder, store, 2))
    assert store.steps() == [1, 3] and not list(store.folder.glob(".partial*"))
    np.testing.assert_allclose(losses, expected, rtol=2e-5)


def test_a_rank_whose_memory_is_full_is_named_and_the_run_goes_on(tmp_path: Path, llama_folder: Path) -> None:
    store = CheckpointStore(tmp_path / "c", warn=pytest.fail)
    expected, losses = gone_on(llama_folder, CheckpointStore(tmp_path / "straight"), 2), []
    large = [Example(tuple([5] * 400), 1)] * 64
    with pytest.raises(Unavailable, match=r"rank 1 of 2 \(.*, process \d+\): out of memory.*micro_batch_tokens"):
        with leading(2, tmp_path):
            learner, average = started(llama_folder)
            losses.append(stepped(learner, average))
            save(store, learner, average)
            limit_memory(1, 2**24)
            began = time.monotonic()
            train_on(learner, large, micro_batch_tokens=2**20)
    assert time.monotonic() - began < 60
    losses += gone_on(llama_folder, store, 1)
    np.testing.assert_allclose(losses, expected, rtol=2e-5)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two ranks. Tests before the fixture is asked for start their own."""
    with leading(2, tmp_path_factory.mktemp("ranks")):
        yield


def test_each_rank_writes_its_part_and_no_more(world: None, tmp_path: Path, llama_folder: Path) -> None:
    learner, average = started(llama_folder)
    stepped(learner, average)
    path = save(CheckpointStore(tmp_path / "c"), learner, average)
    sizes: dict[str, int] = {}
    for file in path.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            names = [name for name in opened.keys() if "/model/" in name or "average/" in name]  # noqa: SIM118
            sizes[file.name.partition("-model")[0]] = sum(opened.get_tensor(name).nbytes for name in names)
    everything = sum(tensor.numel() * 4 for tensor in load_policy(llama_folder).parameters())
    assert sum(sizes.values()) == 2 * everything  # weights and their mean
    assert len(sizes) == 2 and max(sizes.values()) < 1.1 * everything


def test_a_checkpoint_of_another_model_is_refused_and_the_ranks_go_on(
    world: None, tmp_path: Path, llama_folder: Path, gpt2_folder: Path
) -> None:
    store = CheckpointStore(tmp_path / "c")
    save(store, *started(gpt2_folder))
    learner, average = started(llama_folder)
    with pytest.raises(Mismatch, match="tensors are on one side only"):
        learner.restore(store.load(0).saved)
    assert stepped(learner, average) > 0


@pytest.mark.parametrize("rank", [0, 1])
def test_a_damaged_file_is_found_whoever_reads_it(world: None, tmp_path: Path, llama_folder: Path, rank: int) -> None:
    told: list[str] = []
    store = CheckpointStore(tmp_path / "c", warn=told.append)
    learner, average = started(llama_folder)
    save(store, learner, average)
    stepped(learner, average)
    file = save(store, learner, average) / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 0x55]))
    loaded = store.load_latest()
    assert loaded is not None and loaded.step == 0
    assert len(told) == 1 and file.name in told[0] and "checkpoint 0 is tried instead" in told[0]


def test_a_rank_that_does_not_see_the_folder_is_named(world: None) -> None:
    only_here = Path(f"/proc/self/task/{os.getpid()}")
    with pytest.raises(ConfigError, match=f"rank 1 of 2 does not see {only_here}"):
        check_seen_by_all(only_here)


def test_a_rank_that_cannot_write_is_named_and_the_ranks_go_on(world: None, tmp_path: Path, llama_folder: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    learner, average = started(llama_folder)
    save(store, learner, average)
    stepped(learner, average)
    limit_files(1, 1000)
    with pytest.raises(OSError, match="not written: File too large on rank 1 of 2; what was there before is whole"):
        save(store, learner, average)
    assert [path.name for path in store.folder.iterdir()] == ["step-00000000"]
    assert stepped(learner, average) > 0
