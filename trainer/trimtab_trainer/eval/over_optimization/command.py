"""`trimtab eval over-optimization`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimtab_trainer.eval.options import Output, findings_options

if TYPE_CHECKING:
    from trimtab_trainer.eval.clusters import Measure
    from trimtab_trainer.eval.over_optimization.curve import Course, Curve
    from trimtab_trainer.eval.over_optimization.runs import SampledModel
    from trimtab_trainer.report_plots import Interval, Plot
    from trimtab_trainer.tables import Table

__all__ = ["command"]

_X_LABEL = "square root of the KL, nats"
_NOTES = (
    "d is the square root of the KL from PPO's start, in nats of a sequence, estimated on the batch itself (k1); an "
    "estimate below 0 counts as 0. Proxy is the reward model that was optimised.",
    "The curve is start + d (alpha - beta log d) (Gao, Schulman and Hilton 2022, section 3.1, for RL) by least "
    "squares; intervals are 95 %, by a bootstrap over blocks of neighbouring iterations of this one training: another "
    "seed of it is not in them. A peak is told only where it surely lies among the policies that were there.",
)


@click.command("over-optimization")
@click.argument("directories", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@findings_options("over-optimization")
def command(directories: tuple[Path, ...], resamples: int, seed: int, output: Output) -> None:
    """Proxy reward and gold score over the square root of the KL, in the runs of DIR....

    Of every PPO of a run (`ppo`, `ppo_without_ptx`, `ppo_without_kl`): its iterations, with the fitted curve of Gao et
    al. 2022 and the place of its peak; and of the models that stage `evaluate` sampled: reward, gold and judge over KL.
    """
    from trimtab_trainer.digests import content_digest
    from trimtab_trainer.eval.findings import Findings
    from trimtab_trainer.eval.over_optimization.curve import fit_course
    from trimtab_trainer.eval.over_optimization.runs import courses_of, sampled_models

    several = len(directories) > 1
    courses = [one for path in directories for one in courses_of(path, name=str(path) if several else "")]
    digests = {str(path): content_digest(path / "events.jsonl") for path in directories}
    fits = {
        (course.name, side): fit_course(course, yardstick=side == "gold", samples=resamples, seed=seed)
        for course in courses
        for side in ("proxy", "gold")
    }
    models = {path: sampled_models(path, samples=resamples, seed=seed) for path in directories}
    findings = Findings(
        kind="over-optimization",
        title="Over-optimisation",
        settings={
            "directories": [str(path) for path in directories],
            "events_sha256": digests,
            "bootstrap_samples": resamples,
            "seed": seed,
        },
        figures={
            "courses": {
                course.name: {
                    "points": [asdict(point) for point in course.points],
                    **{side: _record(fits[course.name, side]) for side in ("proxy", "gold")},
                }
                for course in courses
            },
            "models": {str(path): [asdict(model) for model in of_run] for path, of_run in models.items()},
        },
        tables=_tables(courses, fits, models, several=several),
        plots=[
            *(plot for course in courses for plot in _plots(course, fits)),
            *(plot for path in directories for plot in _model_plots(models[path], run=str(path) if several else "")),
        ],
        notes=[*_NOTES, *_missing(directories, courses, fits, models)],
    )
    output.tell(findings)


def _record(fit: Curve | str) -> dict[str, Any]:
    return {"missing": fit} if isinstance(fit, str) else asdict(fit)


def _tables(
    courses: list[Course],
    fits: dict[tuple[str, str], Curve | str],
    models: dict[Path, list[SampledModel]],
    *,
    several: bool,
) -> list[Table]:
    from trimtab_trainer.eval.findings import interval
    from trimtab_trainer.tables import Table

    rows = []
    for course in courses:
        for side in ("proxy", "gold"):
            fit = fits[course.name, side]
            if isinstance(fit, str):
                rows.append([course.name, side, str(len(course.points)), "", "", "", "", "", ""])
                continue
            peak = fit.peak
            rows.append(
                [
                    course.name,
                    side,
                    str(len(course.points)),
                    f"{fit.farthest:.3g}",
                    interval(fit.alpha),
                    interval(fit.beta),
                    f"{fit.explained:.3f}",
                    interval(peak.distance) if peak else "not told",
                    interval(peak.gain) if peak else "",
                ]
            )
    header = ["training", "reward", "policies", "farthest d", "alpha", "beta", "explained", "peak d", "gain at peak"]
    tables = [Table("Proxy and gold along the training", header, rows, names=2)] if rows else []
    for path, of_run in models.items():
        if not of_run:
            continue
        sides = [key for key in ("gold", "judge") if any(key in model.yardsticks for model in of_run)]
        tables.append(
            Table(
                f"Models on held-out prompts{f': {path}' if several else ''}",
                ["model", "prompts", "KL", "proxy", *sides],
                [
                    [
                        model.name,
                        str(model.prompts),
                        interval(model.kl) if model.kl else "not known",
                        interval(model.proxy),
                        *(interval(model.yardsticks[key]) if key in model.yardsticks else "" for key in sides),
                    ]
                    for model in of_run
                ],
            )
        )
    return tables


def _plots(course: Course, fits: dict[tuple[str, str], Curve | str]) -> list[Plot]:
    """One plot for each side: scales of rewards and of gold scores have nothing to do with each other."""
    from trimtab_trainer.report_plots import Line, draw

    plots = []
    for side in ("proxy", "gold"):
        values = [(point.distance, point.proxy if side == "proxy" else point.yardstick) for point in course.points]
        lines = [Line("iterations", [(d, value) for d, value in values if value is not None], dots=True)]
        if not isinstance(fit := fits[course.name, side], str):
            curve = [(d, height.value) for d, height in fit.heights]
            band = [(height.low, height.high) for _, height in fit.heights]
            lines.append(Line("fitted curve", curve, intervals=band))
        plots.append(draw(f"{course.name}: {side} reward", _X_LABEL, lines))
    return [plot for plot in plots if plot is not None]


def _model_plots(models: Sequence[SampledModel], *, run: str) -> list[Plot]:
    """The models of a run that have a KL: one plot for the proxy and one for each yardstick."""
    from trimtab_trainer.eval.over_optimization.curve import distance
    from trimtab_trainer.report_plots import Line, draw

    plots = []
    for side in ("proxy", "gold", "judge"):
        lines = []
        for model in models:
            found = model.proxy if side == "proxy" else model.yardsticks.get(side)
            if found is None or model.kl is None:
                continue
            point = [(distance(model.kl.value), found.value)]
            of_x, of_y = _ends(model.kl, distance), _ends(found, float)
            lines.append(Line(model.name, point, dots=True, intervals=[of_y], x_intervals=[of_x]))
        plots.append(draw(f"{run}: {side} of models on held-out prompts".removeprefix(": "), _X_LABEL, lines))
    return [plot for plot in plots if plot is not None]


def _ends(found: Measure, scale: Callable[[float], float]) -> Interval:
    return None if found.low is None or found.high is None else (scale(found.low), scale(found.high))


def _missing(
    directories: tuple[Path, ...],
    courses: list[Course],
    fits: dict[tuple[str, str], Curve | str],
    models: dict[Path, list[SampledModel]],
) -> list[str]:
    """What is not there, and why no peak is told."""
    notes = []
    for path in directories:
        of_run = models[path]
        if not of_run:
            notes.append(f"{path}: no samples/*.jsonl: stage evaluate has not run, so no held-out prompt was answered.")
        elif not any(model.yardsticks for model in of_run):
            notes.append(
                f"{path}: its answers have neither gold nor judge; evaluate.judge names a reward model that no policy "
                "was optimised against."
            )
    if not courses:
        notes.append("No run has iterations of PPO.")
    for course in courses:
        if all(point.yardstick is None for point in course.points):
            notes.append(f"{course.name}: its iterations have no gold score, which only the miniature has.")
        below = sum(point.kl < 0 for point in course.points)
        if below:
            notes.append(f"{course.name}: {below} of {len(course.points)} KL estimates are below 0.")
        for side in ("proxy", "gold"):
            fit = fits[course.name, side]
            if isinstance(fit, str):
                notes.append(f"{course.name}, {side}: no curve: {fit}.")
            elif fit.why_no_peak:
                notes.append(f"{course.name}, {side}: no peak: {fit.why_no_peak}.")
    return notes
