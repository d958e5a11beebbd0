"""TRL itself, against a running reward service: GRPOTrainer with our reward function, RewardTrainer beside our figures.

TRL is installed into a folder of its own, over the packages of this environment, which it does not change.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from processes import serving
from running import running
from trimtab.integrations.trl import evaluate_preferences

ROOT = Path(__file__).parents[3]
TRL = "trl==1.16.0"
"""As in `benchmarks/reward_model_training.py`."""

EVALUATE = """
import json, sys
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

folder, rows, output = sys.argv[1:]
config = RewardConfig(output_dir=output, per_device_eval_batch_size=8, bf16=False, report_to="none", max_length=None)
rows = Dataset.from_list(json.loads(rows))
trainer = RewardTrainer(model=folder, args=config, train_dataset=rows, eval_dataset=rows)
print(json.dumps(trainer.evaluate()))
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # it installs a package


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("trl")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), TRL]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_grpo_trains_on_served_rewards(
    environment: dict[str, str], llama_folder: Path, reward_folder: Path, tmp_path: Path
) -> None:
    with serving("reward", tmp_path, model_folder=str(reward_folder)) as service:
        command = [sys.executable, str(ROOT / "examples" / "trl_grpo.py"), service.target, str(llama_folder)]
        told = run(command, environment)
        metrics = service.metrics()
    steps = re.findall(r"step (\d): reward (-?[\d.]+), standard deviation ([\d.]+)", told)
    assert [step for step, *_ in steps] == ["1", "2"], told
    assert all(float(deviation) > 0 for *_, deviation in steps)
    counted = re.findall(r'trimtab_request_total\{[^}]*method="[^"]*Score"[^}]*\} ([\d.]+)', metrics)
    assert sum(map(float, counted)) >= 2, metrics


def test_reward_trainer_reports_the_same(environment: dict[str, str], reward_folder: Path, tmp_path: Path) -> None:
    def turns(*texts: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=False)]

    rows = [
        {
            "prompt": turns(f"What is {number}?"),
            "chosen": [{"role": "assistant", "content": f"It is a number, {number * 7}."}],
            "rejected": [{"role": "assistant", "content": f"It sleeps, {number}; what does the fox do?"}],
        }
        for number in range(8)
    ]
    command = [sys.executable, "-c", EVALUATE, str(reward_folder), json.dumps(rows), str(tmp_path)]
    theirs = json.loads(run(command, environment).splitlines()[-1])
    with running("reward", model_folder=reward_folder) as server:
        ours = evaluate_preferences(rows, server.target)
    assert ours.loss == pytest.approx(theirs["eval_loss"], abs=1e-5)
    assert ours.accuracy == pytest.approx(theirs["eval_accuracy"], abs=1e-6)
    assert ours.margin == pytest.approx(theirs["eval_margin"], abs=1e-5)
    bias = 0.25  # the service subtracts the folder's `reward_bias`, of which TRL does not know
    for figure in ("mean", "min", "max"):
        assert getattr(ours, f"{figure}_reward") + bias == pytest.approx(theirs[f"eval_{figure}_reward"], abs=1e-4)
