"""The courses of runs, from their events, and the models that their stage `evaluate` sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import ConfigError
from trimtab_trainer.data.readers import stream_rows
from trimtab_trainer.eval.clusters import Measure, clustered_mean
from trimtab_trainer.eval.over_optimization.curve import Course, Point
from trimtab_trainer.reporter import stage_metrics

__all__ = ["SampledModel", "courses_of", "sampled_models"]

_STAGES = ("ppo", "ppo_without_ptx", "ppo_without_kl")
_YARDSTICKS = ("gold", "judge")


@dataclass(frozen=True)
class SampledModel:
    """One model of stage `evaluate`, on held-out prompts; intervals over prompts, of 5 at least.

    Attributes:
        name: as `evaluate.models` has it.
        kl: nats of a sequence from PPO's start; None for a few-shot prompt, which the reference does not see.
        proxy: reward by the model that was optimised.
        yardsticks: gold and judge, where they are known.
        prompts: how many.
    """

    name: str
    kl: Measure | None
    proxy: Measure
    yardsticks: Mapping[str, Measure]
    prompts: int


def courses_of(directory: Path, *, name: str = "") -> list[Course]:
    """Every PPO of a run with its iterations; those that made none are left out.

    Args:
        directory: of the run.
        name: put before the stage; empty for none.

    Raises:
        ConfigError: there are no events in this folder.
    """
    path = directory / "events.jsonl"
    if not path.is_file():
        raise ConfigError(f"{directory}: no run in this folder (it has no events.jsonl)", field="DIR", value=directory)
    courses = []
    metrics = stage_metrics(path)
    for stage in _STAGES:
        points = [
            Point(step["mean_kl"], step["reward"], step.get("gold"))
            for step in metrics.get(stage, {}).values()
            if "mean_kl" in step and "reward" in step
        ]
        if points:
            courses.append(Course(f"{name} {stage}".strip(), points))
    return courses


def sampled_models(directory: Path, *, samples: int, seed: int) -> list[SampledModel]:
    """The models in DIR/samples, nearest to the start first; those without KL last."""
    models = [_sampled(path, samples=samples, seed=seed) for path in sorted((directory / "samples").glob("*.jsonl"))]
    return sorted(models, key=lambda one: (one.kl is None, one.kl.value if one.kl else 0.0))


def _sampled(path: Path, *, samples: int, seed: int) -> SampledModel:
    rows = [row for _, row in stream_rows(path, dict)]

    def mean(key: str) -> Measure | None:
        by_prompt: dict[Any, list[float]] = {}
        for row in rows:
            if row.get(key) is None:
                return None
            by_prompt.setdefault(row["number"], []).append(float(row[key]))
        means = np.array([np.mean(of_prompt) for of_prompt in by_prompt.values()], np.float64)
        return clustered_mean(means, list(by_prompt), samples=samples, seed=seed)

    proxy = mean("reward")
    if proxy is None:
        raise ConfigError(f"{path}: an answer has no reward", field="reward", value=path)
    known: Sequence[tuple[str, Measure | None]] = [(key, mean(key)) for key in _YARDSTICKS]
    return SampledModel(
        name=path.stem,
        kl=mean("kl"),
        proxy=proxy,
        yardsticks={key: found for key, found in known if found is not None},
        prompts=len({row["number"] for row in rows}),
    )
