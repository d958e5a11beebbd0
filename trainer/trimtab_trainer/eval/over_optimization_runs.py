"""The courses of runs, from their events, and the models that their stage `evaluate` sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError
from trimtab_trainer.claims import Estimate, sample_mean
from trimtab_trainer.data.readers import stream_rows
from trimtab_trainer.eval.over_optimization import Course, Point
from trimtab_trainer.reporter import step_metrics

__all__ = ["SampledModel", "courses_of", "sampled_models"]

_STAGES = ("ppo", "ppo_without_ptx", "ppo_without_kl")
_YARDSTICKS = ("gold", "judge")


@dataclass(frozen=True)
class SampledModel:
    """One model of stage `evaluate`, on held-out prompts; intervals over prompts.

    Attributes:
        name: as `evaluate.models` has it.
        kl: nats of a sequence from PPO's start; None for a few-shot prompt, which the reference does not see.
        proxy: reward by the model that was optimised.
        yardsticks: gold and judge, where they are known.
        prompts: how many.
    """

    name: str
    kl: Estimate | None
    proxy: Estimate
    yardsticks: Mapping[str, Estimate]
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
    for stage in _STAGES:
        points = [
            Point(step["mean_kl"], step["reward"], step.get("gold"))
            for step in step_metrics(path, stage).values()
            if "mean_kl" in step and "reward" in step
        ]
        if points:
            courses.append(Course(f"{name} {stage}".strip(), points))
    return courses


def sampled_models(directory: Path, *, samples: int, seed: int) -> list[SampledModel]:
    """The models in DIR/samples, nearest to the start first; those without KL last."""
    models = [
        _sampled(path, samples=samples, seed=seed)
        for path in sorted(
            path for pattern in ("*.jsonl", "*.jsonl.gz") for path in (directory / "samples").glob(pattern)
        )
    ]
    return sorted(models, key=lambda one: (one.kl is None, one.kl.value if one.kl else 0.0))


def _sampled(path: Path, *, samples: int, seed: int) -> SampledModel:
    rows = [row for _, row in stream_rows(path, dict)]

    def mean(key: str) -> Estimate | None:
        by_prompt: dict[Any, list[float]] = {}
        for row in rows:
            if row.get(key) is None:
                return None
            by_prompt.setdefault(row["number"], []).append(float(row[key]))
        return sample_mean(list(by_prompt.values()), samples=samples, seed=seed)

    proxy = mean("reward")
    if proxy is None:
        raise ConfigError(f"{path}: an answer has no reward", field="reward", value=path)
    known: Sequence[tuple[str, Estimate | None]] = [(key, mean(key)) for key in _YARDSTICKS]
    return SampledModel(
        name=path.name.partition(".")[0],
        kl=mean("kl"),
        proxy=proxy,
        yardsticks={key: found for key, found in known if found is not None},
        prompts=len({row["number"] for row in rows}),
    )
