"""K-fold over labelers, by the run's own stage `reward_model_folds`: made where it is not there yet, else read.

The stage trains a reward model for each part of the labelers on the labels of the others. Its run lives in a folder of
its own, so that it goes on where it was stopped, and its spec and events say exactly what was done.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trimtab.errors import ConfigError
from trimtab_trainer.config import RunSpec, load_run_spec
from trimtab_trainer.run import begins_anew, check_same_spec, read_outcome, run

__all__ = ["PAPER", "Folds", "FoldsPlan", "read_folds", "train_folds"]

PAPER: Mapping[str, tuple[float, float]] = {"training": (0.724, 0.004), "held_out": (0.696, 0.009)}
"""InstructGPT, section 4.1: accuracy on training labelers and on those held out, and the standard errors."""

_STAGE = "reward_model_folds"


@dataclass(frozen=True)
class FoldsPlan:
    """What folds to train.

    Attributes:
        model: folder of the model to start from; a causal model gets a new head.
        rankings: file.
        groups: labeler groups that take part; None for all.
        count: parts of the labelers.
        overrides: `key=value` of the run spec, such as `reward_model.optimizer.learning_rate=1e-4`.
    """

    model: Path
    rankings: Path
    groups: Sequence[str] | None
    count: int
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Folds:
    """What the stage found, mean over folds with its standard error.

    Attributes:
        training: accuracy on the labelers trained on; (mean, standard error).
        held_out: on the labelers of the fold, on the same held-out prompts.
        accuracies: of each fold, both.
        labelers: of each fold.
        spec: of the run's section `reward_model`.
    """

    training: tuple[float, float]
    held_out: tuple[float, float]
    accuracies: Sequence[tuple[float, float]]
    labelers: Sequence[Sequence[str]]
    spec: Mapping[str, Any]


def train_folds(directory: Path, plan: FoldsPlan) -> Folds:
    """Trains the folds in a folder of their own; what is there is gone on with, and what is done is read.

    Raises:
        ConfigError: the folder holds another run, or one of another plan; a wrong override. A run that failed before it
            had done anything gives way.
        DataError: a bad row, or fewer known labelers than folds.
    """
    spec = _spec(directory, plan)
    if begins_anew(directory):
        run(spec)
    else:
        check_same_spec(spec)
        if _STAGE not in read_outcome(directory).results:
            run(spec, resume=True)
    return read_folds(directory)


def read_folds(directory: Path) -> Folds:
    """The folds of a run.

    Raises:
        ConfigError: there is no run in this folder, or none that has done the stage.
    """
    result = read_outcome(directory).results.get(_STAGE)
    if result is None:
        raise ConfigError(
            f"folds: the run in {directory} has not done stage {_STAGE}", field="folds", value=directory, limit=_STAGE
        )
    section = load_run_spec(directory / "spec.yaml").reward_model

    def figure(name: str) -> tuple[float, float]:
        return result.metrics[f"accuracy_{name}"], result.metrics[f"accuracy_{name}_error"]

    return Folds(
        training=figure("training_labelers"),
        held_out=figure("held_out_labelers"),
        accuracies=[(both[0], both[1]) for both in result.details["accuracies"]],
        labelers=[fold["labelers"] for fold in result.details["folds"]],
        spec=section.model_dump(mode="json"),
    )


def _spec(directory: Path, plan: FoldsPlan) -> RunSpec:
    """The run of a plan, the same from whatever folder the command is given."""
    written = {
        "name": "folds",
        "directory": str(directory.resolve()),
        "model": str(plan.model.resolve()),
        "stages": [_STAGE],
        "tensorboard": False,
        "reward_model": {
            "initial_model": "base",
            "rankings": str(plan.rankings.resolve()),
            "demonstrations": None,
            "groups": None if plan.groups is None else list(plan.groups),
            "folds": plan.count,
            "too_long": "leave_out",
        },
    }
    with tempfile.TemporaryDirectory(prefix="trimtab-folds-") as folder:
        file = Path(folder) / "spec.yaml"
        file.write_text(yaml.safe_dump(written), encoding="utf-8")
        return load_run_spec(file, plan.overrides)
