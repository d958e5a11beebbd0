"""Pretraining of the miniature: it learns its text, and a killed run goes on bit for bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from trimtab.errors import TrainingDiverged
from trimtab_models.loading import load_policy, save_model
from trimtab_models.tokenizer import load_tokenizer
from trimtab_trainer.config import RunSpec, load_run_spec, preset_path
from trimtab_trainer.reporter import step_metrics
from trimtab_trainer.run import RunOutcome


def spec(directory: Path, *overrides: str) -> RunSpec:
    return load_run_spec(
        preset_path("tiny"),
        [
            f"directory={directory}",
            "stages=[pretrain]",
            "threads=1",
            "miniature={pretrain: 2500, pretrain_held_out: 50, demonstrations: 1, prompts: 1, prompts_held_out: 1}",
            "pretrain.max_steps=40",
            "pretrain.optimizer.warmup_steps=5",
            "pretrain.checkpoint_every=10",
            *overrides,
        ],
    )


def test_it_learns_and_survives_a_kill(tmp_path: Path, go: Callable[..., RunOutcome]) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    go(spec(straight))
    steps = step_metrics(straight / "events.jsonl", "pretrain")
    assert steps[1]["loss"] > 4.0 and steps[40]["loss"] < 2.5

    written = tmp_path / "spec.yaml"
    written.write_text(yaml.safe_dump(spec(killed).model_dump(mode="json")))
    code = (
        "from trimtab_trainer.config import load_run_spec; from trimtab_trainer.run import run; "
        f"run(load_run_spec({str(written)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(step_metrics(killed / "events.jsonl", "pretrain")) < 13:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()

    go(spec(killed), resume=True)
    assert step_metrics(killed / "events.jsonl", "pretrain") == steps
    one, other = (load_file(d / "models/pretrain/model/model.safetensors") for d in (straight, killed))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_loss_that_is_not_finite_ends_the_run_with_its_batch(
    tmp_path: Path, llama_folder: Path, go: Callable[..., RunOutcome]
) -> None:
    model = load_policy(llama_folder)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    save_model(model, load_tokenizer(llama_folder), tmp_path / "broken")
    with pytest.raises(TrainingDiverged, match="pretrain: step 1: loss is nan") as caught:
        go(spec(tmp_path / "r", f"model={tmp_path / 'broken'}"))
    assert "token_ids" in load_file(caught.value.metadata["batch"])
