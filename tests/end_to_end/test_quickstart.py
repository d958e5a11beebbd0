"""The whole job through the real services, as `trimtab quickstart` does it, cut to seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SMALL = {
    "miniature.pretrain": 2000,
    "miniature.demonstrations": 60,
    "miniature.prompts": 400,
    "pretrain.max_steps": 25,
    "sft.epochs": 1,
    "collect_rankings.limit": 120,
    "collect_rankings.prompts_per_request": 60,
    "ppo.iterations": 4,
    "ppo.prompts_per_iteration": 32,
    "evaluate.prompts": 20,
    "evaluate.samples_per_prompt": 2,
    "ppo.critic_warmup_iterations": 1,
    "ppo.checkpoint_every": 1,
    "ppo.kl_stop": "null",
}


def command(directory: Path, **overrides: object) -> list[str]:
    settings = {**SMALL, **{key.replace("__", "."): value for key, value in overrides.items()}}
    pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "trimtab", "quickstart", "--dir", str(directory), *pairs]


def _interruptible() -> None:
    """Undoes what a shell does to its background jobs, whose children would else never see Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def started(directory: Path, **overrides: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(directory, **overrides),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_interruptible,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(directory: Path, event: str, process: subprocess.Popen[str], timeout_s: float = 150) -> None:
    path = directory / "runs" / "quickstart" / "events.jsonl"
    deadline = time.monotonic() + timeout_s
    while not (path.exists() and event in path.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{event} did not come"
        time.sleep(0.1)


@pytest.mark.timeout(400)
def test_whole_job_survives_a_killed_replica_and_a_stop(tmp_path: Path) -> None:
    """SFT -> reward model -> PPO-ptx; a generation replica dies on the way; Ctrl-C stops, the same command goes on."""
    with started(tmp_path) as process:
        wait_for(tmp_path, '"stage": "ppo", "step": 1, "event": "step_done"', process)
        replica = json.loads((tmp_path / "endpoints.json").read_text())["generation"][0]
        os.kill(replica["pid"], signal.SIGKILL)
        wait_for(tmp_path, '"stage": "ppo", "step": 2, "event": "step_done"', process)
        process.send_signal(signal.SIGTERM)  # is heeded as Ctrl-C is
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 130, output
        assert "a checkpoint is saved" in " ".join(output.split())
    finished = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "goes on where it was stopped" in " ".join(finished.stdout.split())

    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["iteration"] for row in report["iterations"]] == [1, 2, 3, 4]
    assert list(report["models"]) == ["base", "few_shot", "sft", "ppo", "ppo_ptx", "ptx_control"]
    assert {"reward", "gold", "hallucinated", "pretraining_loss", "cloze"} <= report["models"]["ppo_ptx"].keys()
    assert "kl" not in report["models"]["few_shot"] and abs(report["models"]["sft"]["kl"]["value"]) < 1e-3
    assert len(report["claims"]) == 9 and all(claim["measured"] == claim["measured"] for claim in report["claims"])
    assert 0 <= report["stages"]["reward_model"]["metrics"]["accuracy"] <= 1
    versions = [row["version"] for row in report["iterations"]]
    assert versions == sorted(set(versions))
    assert all(row["lag"] == 0 and row["mismatch_max"] < 2e-3 for row in report["iterations"])
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page and "Claims of the paper" in page


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_lag_of_one_version(tmp_path: Path) -> None:
    """`max_lag: 1`: from the second iteration on, rollouts come from the version before."""
    finished = subprocess.run(command(tmp_path, ppo__max_lag=1), capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    iterations = json.loads((tmp_path / "report.json").read_text())["iterations"]
    assert [row["lag"] for row in iterations] == [0, 1, 1, 1]
    assert all(0 < row["importance_weight"] <= 2 for row in iterations)
