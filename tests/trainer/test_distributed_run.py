"""`trimtab run` over several processes: the run of one process, killed, resumed on another number, by torchrun, whole.

Everything is started as people start it: by the command, or by torchrun.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from trimtab.local import LocalServices
from trimtab_models.loading import load_policy
from trimtab_models.tokenizer import load_tokenizer
from trimtab_trainer.config import RunSpec, spec_to_yaml
from trimtab_trainer.miniature.cloze import cloze_accuracy
from trimtab_trainer.reporter import RunState, step_metrics
from trimtab_trainer.run import read_outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RUN = [sys.executable, "-m", "trimtab", "run"]
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "trimtab",
    "run",
]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
"""The processes import what the tests import."""


def spec_file(directory: Path, base: Path, **changes: Any) -> Path:
    """A fine-tuning of 12 steps, a checkpoint every 3."""
    words = ("the dog sleeps", "the quick brown fox jumps", "say something helpful", "over the lazy dog, twice")
    rows = [{"prompt": f"{words[n % 4]} {n}", "completion": words[(n + 1) % 4]} for n in range(24)]
    data = directory.parent / "data"
    data.mkdir(exist_ok=True)
    (data / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft = {
        "demonstrations": "{data}/demonstrations.jsonl",
        "pretraining": None,
        "epochs": 4,
        "batch_size": 8,
        "held_out_fraction": 0.1,
        "dropout": 0.0,
        "rl_init": None,
        "optimizer": {"learning_rate": 1e-2, "eps": 1e-4},
        "checkpoint_every": 3,
        "micro_batch_tokens": 64,
    }
    spec = RunSpec.model_validate(
        {
            "name": directory.name,
            "directory": directory,
            "model": str(base),
            "data_directory": data,
            "stages": ["sft"],
            "threads": 1,
            "sft": {**sft, **changes},
        }
    )
    path = directory.with_suffix(".yaml")
    path.write_text(spec_to_yaml(spec))
    return path


def run(*arguments: Any, start: list[str] = RUN) -> subprocess.CompletedProcess[str]:
    command = [*start, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False)


def losses(directory: Path, stage: str = "sft") -> list[float]:
    return [metrics["loss"] for metrics in step_metrics(directory / "events.jsonl", stage).values()]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "models" / "sft" / "epoch-4" / "model.safetensors")


def assert_same(directory: Path, other: Path) -> None:
    assert losses(directory) == pytest.approx(losses(other), rel=1e-4)
    expected = weights(other)
    for name, tensor in weights(directory).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


def test_a_run_whose_rank_is_killed_fails_and_goes_on_on_one_process(tmp_path: Path, llama_folder: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert run(spec_file(straight, llama_folder)).returncode == 0
    command = [*RUN, str(spec_file(killed, llama_folder)), "--processes", "2"]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        while len(step_metrics(killed / "events.jsonl", "sft")) < 4 and process.poll() is None:
            time.sleep(0.01)
        (child,) = children_of(process.pid)
        os.kill(child, signal.SIGKILL)
        _, told = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "Traceback" not in told and f"process {child}) was killed by SIGKILL" in told
    outcome = read_outcome(killed)
    assert outcome.state is RunState.FAILED and "rank 1 of 2" in outcome.error
    assert not alive(child)

    resumed = run(spec_file(killed, llama_folder), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same(killed, straight)


def test_torchrun_starts_a_run_too_and_one_of_one_process_goes_on_on_two(tmp_path: Path, llama_folder: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    whole = run(spec_file(straight, llama_folder), start=TORCHRUN)
    assert whole.returncode == 0, whole.stderr
    with subprocess.Popen([*RUN, str(spec_file(stopped, llama_folder))], env=ENVIRONMENT) as process:
        while not step_metrics(stopped / "events.jsonl", "sft") and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 130 and len(losses(stopped)) < len(losses(straight))
    resumed = run(spec_file(stopped, llama_folder), "--resume", "--processes", 2)
    assert resumed.returncode == 0, resumed.stderr
    assert_same(stopped, straight)


def children_of(process: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


SMALL = {
    "stages": ["pretrain", "sft", "collect_rankings", "reward_model", "ppo", "dpo", "evaluate"],
    "miniature": {"pretrain": 2000, "demonstrations": 60, "prompts": 400},
    "pretrain": {"max_steps": 25},
    "sft": {"epochs": 1},
    "collect_rankings": {"limit": 120, "prompts_per_request": 60},
    "ppo": {
        "iterations": 3,
        "prompts_per_iteration": 32,
        "critic_warmup_iterations": 1,
        "ema_decay": 0.9,
        "checkpoint_every": 1,
        "kl_stop": None,
    },
    "evaluate": {
        "models": {"few_shot": None, "ppo": None, "ptx_control": None, "dpo": {"model": "dpo"}},
        "prompts": 20,
        "samples_per_prompt": 2,
    },
}


def test_the_whole_miniature_over_two_ranks_against_real_services(tmp_path: Path) -> None:
    """Every stage of RLHF; PPO-ptx stopped after an iteration, and gone on with."""
    settings = {name: {"threads": 1} for name in ("generation", "reward", "reference")}
    with LocalServices(tmp_path / "services", settings=settings) as services:
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump({"preset": "tiny_dpo", **SMALL}))
        directory = tmp_path / "run"
        command = [str(path), "--dir", str(directory), "--endpoints", str(services.endpoints_file), "--processes", "2"]
        with subprocess.Popen([*RUN, *command], env=ENVIRONMENT) as process:
            while not step_metrics(directory / "events.jsonl", "ppo") and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=300)
        assert process.returncode == 130 and read_outcome(directory).state is RunState.STOPPED
        resumed = run(*command, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    outcome = read_outcome(directory)
    assert outcome.state is RunState.SUCCEEDED and set(outcome.results) == set(SMALL["stages"])
    iterations = step_metrics(directory / "events.jsonl", "ppo")
    assert list(iterations) == [1, 2, 3]
    for metrics in iterations.values():  # the sampler serves what all ranks trained, and the first ratio is 1
        assert metrics["mismatch_mean"] < 1e-4
    assert outcome.results["dpo"].metrics["held_out_accuracy"] > 0.5
    trained = directory / str(outcome.results["dpo"].model)
    measured = json.loads((directory / "samples" / "dpo.json").read_text())
    assert measured["cloze"]["value"] == cloze_accuracy(load_policy(trained), load_tokenizer(trained))
    assert (directory / "report.html").is_file()
