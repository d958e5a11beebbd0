"""A disk that is full and file descriptors that have run out: a clear error, nothing torn, and work that goes on."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from processes import ServiceProcess, run_process, serving
from small_disks import SmallDisk, small_disk
from trimtab.client import Client
from trimtab.errors import TrimtabError
from trimtab.types import GenerateRequest, GenerationPrompt, SamplingParams
from trimtab.weights import Publisher, TensorData
from trimtab_models.loading import load_policy
from trimtab_models.tokenizer import load_tokenizer
from trimtab_models.versions import publish_model
from trimtab_trainer.checkpoint import CheckpointStore, write_file_atomically
from trimtab_trainer.reporter import Reporter, read_events

CHANNEL = "policy/latest"
STEPS = 100


def until(condition: Callable[[], bool], *, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def write_sft(folder: Path, directory: Path, model: Path) -> Path:
    """A run of many small steps, each with a checkpoint."""
    demonstrations = folder / "demonstrations.jsonl"
    rows = [{"prompt": f"the dog {number}", "completion": "It sleeps."} for number in range(STEPS)]
    demonstrations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft = {
        "demonstrations": str(demonstrations),
        "held_out_fraction": 0.0,
        "pretraining": None,
        "rl_init": None,
        "epochs": 1,
        "batch_size": 1,
        "checkpoint_every": 1,
    }
    spec = {
        "name": "full-disk",
        "directory": str(directory),
        "model": str(model),
        "data_directory": str(folder),
        "stages": ["sft"],
        "sft": sft,
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def fill_after_a_checkpoint(disk: SmallDisk, checkpoints: CheckpointStore, process: subprocess.Popen[str]) -> str:
    """Leaves room for what a run says, not for its next checkpoint; returns what it wrote on standard error."""
    until(lambda: len(checkpoints.steps()) > 0 or process.poll() is not None)
    disk.fill(leave_bytes=64 * 1024)
    return process.communicate(timeout=80)[1]


def test_a_run_whose_disk_is_full_says_so_and_is_resumed(tmp_path: Path, llama_folder: Path) -> None:
    with small_disk(tmp_path / "disk", mebibytes=8) as disk:
        directory = disk.folder / "run"
        spec = write_sft(tmp_path, directory, llama_folder)
        checkpoints = CheckpointStore(directory / "checkpoints" / "sft")
        process = run_process(spec)
        errors = fill_after_a_checkpoint(disk, checkpoints, process)
        assert process.returncode == 2 and "Traceback" not in errors, errors
        for words in (f"error: {checkpoints.folder}/step-", "No space left on device", "make space", "--resume"):
            assert words.lower() in errors.lower(), errors
        state = json.loads((directory / "state.json").read_text())
        assert state["state"] == "FAILED" and "No space left on device" in state["error"]
        told: list[str] = []
        whole = CheckpointStore(checkpoints.folder, warn=told.append).load_latest()
        assert whole is not None and 0 < whole.step < STEPS and told == []
        assert not list(checkpoints.folder.glob(".partial*"))
        disk.make_space()
        process = run_process(spec, "--resume")
        output = process.communicate(timeout=80)
        assert process.returncode == 0, output
        events = list(read_events(directory / "events.jsonl"))
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        steps = [event.step for event in events if event.event == "step_done"]
        assert steps[: whole.step] == list(range(1, whole.step + 1)) and steps[-1] == STEPS


def test_events_are_numbered_without_gaps_over_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mebibytes=1) as disk:
        with Reporter(disk.folder) as reporter:
            reporter.message("before")
            disk.fill()
            for _ in range(3):
                with pytest.raises(OSError, match=r"No space left on device; make space .*--resume.*events\.jsonl"):
                    reporter.message("does not fit " * 1000)
            disk.make_space()
            reporter.message("after")
        with Reporter(disk.folder) as reporter:
            reporter.message("resumed")
        events = list(read_events(disk.folder / "events.jsonl"))
        assert [(e.sequence, e.fields["text"]) for e in events] == [(1, "before"), (2, "after"), (3, "resumed")]


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mebibytes=1) as disk:
        path = disk.folder / "state.json"
        write_file_atomically(path, "old")
        disk.fill()
        with pytest.raises(OSError, match=r"No space left on device; .*Make space.*state\.json"):
            write_file_atomically(path, "new" * 10_000)
        assert path.read_text() == "old"
        assert sorted(entry.name for entry in disk.folder.iterdir()) == ["ballast", "state.json"]


def limit_descriptors(service: ServiceProcess, *, spare: int | None) -> None:
    """Lets a process open so many more; None: plenty."""
    used = len(os.listdir(f"/proc/{service.pid}/fd"))
    most = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (1024 if spare is None else used + spare, most))


def some_tensors(seed: int) -> list[TensorData]:
    return [TensorData.from_array("w", np.random.default_rng(seed).normal(size=(50, 50)).astype(np.float32))]


def test_a_weights_service_without_descriptors_answers_in_time_and_goes_on(tmp_path: Path) -> None:
    with serving("weights", tmp_path / "weights", store=str(tmp_path / "store")) as weights:
        with weights.client() as known, weights.client(timeout_s=3.0) as newcomer:
            publisher = Publisher(known)
            publisher.publish(some_tensors(0), {}, channels=[CHANNEL])
            limit_descriptors(weights, spare=0)
            began = time.monotonic()
            with pytest.raises(TrimtabError):
                newcomer.info()
            with pytest.raises(TrimtabError):
                publisher.publish(some_tensors(1), {}, channels=[CHANNEL], timeout_s=5.0)
            assert time.monotonic() - began < 20
            assert "File descriptor limit reached" in weights.log()
            limit_descriptors(weights, spare=None)
            assert publisher.publish(some_tensors(1), {}, channels=[CHANNEL]).version == 2
            until(lambda: _answers(newcomer))


def _answers(client: Client) -> bool:
    try:
        client.info()
    except TrimtabError:
        return False
    return True


def publish_policy(store: Client, folder: Path, version: int) -> None:
    """Weights that differ from version to version."""
    model = load_policy(folder)
    torch.manual_seed(version)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    assert publish_model(store, model, load_tokenizer(folder), channels=[CHANNEL]).version == version


def sampled_by(connection: Client) -> int:
    """Version that samples a completion now."""
    request = GenerateRequest(
        prompts=(GenerationPrompt(prompt_id="a", prompt=(5, 6)),), sampling=SamplingParams(max_new_tokens=4)
    )
    (result,) = connection.generate(request)
    assert result.completion is not None
    return result.completion.version_spans[0].version


def test_a_replica_without_descriptors_serves_on_and_catches_up(tmp_path: Path, llama_folder: Path) -> None:
    with serving("weights", tmp_path / "weights", store=str(tmp_path / "store")) as weights, weights.client() as store:
        publish_policy(store, llama_folder, 1)
        settings = {"weights": {"address": weights.target, "channel": CHANNEL}, "slots": 2}
        with serving("generation", tmp_path / "replica", **settings) as replica, replica.client() as connection:
            until(lambda: connection.info().models[0].served.version == 1)
            limit_descriptors(replica, spare=0)
            publish_policy(store, llama_folder, 2)
            until(lambda: "Too many open files" in replica.log())
            assert sampled_by(connection) == 1
            limit_descriptors(replica, spare=None)
            until(lambda: sampled_by(connection) == 2)
            assert connection.info().models[0].last_swap_error == ""
