"""What TensorBoard and Weights & Biases get, read back with their own readers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trimtab.errors import ConfigError
from trimtab_trainer.config import RunSpec
from trimtab_trainer.experiment_logs import experiment_logs
from trimtab_trainer.reporter import Reporter


def spec(directory: Path, **changes: object) -> RunSpec:
    fields = {"name": "r", "directory": directory, "model": "base", "data_directory": directory, "stages": ["sft"]}
    return RunSpec.model_validate({**fields, **changes})


def test_tensorboard_reads_every_metric_by_stage(tmp_path: Path) -> None:
    with experiment_logs(spec(tmp_path)) as logs, Reporter(tmp_path, sinks=logs) as reporter:
        for step in (1, 2, 3):
            reporter.step_done("sft", step, 3, {"loss": 1 / step})
        reporter.step_done("ppo", 1, 1, {"mean_kl": 0.25})
        reporter.warn("look here", stage="ppo")
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(one.step, pytest.approx(one.value)) for one in found.Scalars("sft/loss")] == [(1, 1), (2, 0.5), (3, 1 / 3)]
    assert [one.value for one in found.Scalars("ppo/mean_kl")] == [0.25]
    assert "ppo/messages/text_summary" in found.Tags()["tensors"]


def test_nothing_is_written_where_nothing_is_asked_for(tmp_path: Path) -> None:
    with experiment_logs(spec(tmp_path, tensorboard=False)) as logs:
        assert logs == []
    assert not (tmp_path / "tensorboard").exists()


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    with (
        experiment_logs(spec(tmp_path, wandb={"project": "p", "mode": "offline"}, tensorboard=False)) as logs,
        Reporter(tmp_path, sinks=logs) as reporter,
    ):
        reporter.step_done("sft", 1, 3, {"loss": 0.5})
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))[0].stat().st_size > 0


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match="tensorboard: the package is not installed: pip install 'tensorboardX'"):
        with experiment_logs(spec(tmp_path)):
            pass
