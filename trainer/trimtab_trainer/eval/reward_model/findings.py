"""The findings of `trimtab eval reward-model`: tables, plot and notes from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from trimtab_trainer.claims import Estimate
from trimtab_trainer.eval.clusters import Measure
from trimtab_trainer.eval.findings import Findings, interval
from trimtab_trainer.eval.reward_model.agreement import ALL, LONGER, MODEL, ORACLE, Measured
from trimtab_trainer.eval.reward_model.training import PAPER, Folds
from trimtab_trainer.evaluation import Accuracy, Calibration
from trimtab_trainer.report_plots import calibration_plot
from trimtab_trainer.tables import Table, percent

__all__ = ["reward_model_findings"]

_SCORES = (MODEL, LONGER, ORACLE)


def reward_model_findings(
    found: Measured, folds: Folds | None, settings: Mapping[str, Any], notes: Sequence[str]
) -> Findings:
    """Tables, calibration plot and notes.

    Args:
        found: of the model.
        folds: of the cross-validation, where there is one.
        settings: of the findings; `model` is `Scored.model`.
        notes: further ones, on what was left out.
    """
    calibrated = found.calibration.get(ALL)
    plot = calibration_plot([asdict(one) for one in calibrated.bins]) if calibrated else None
    tables = [
        _model(settings["model"]),
        _sides(found),
        *_parts("By source", ["source"], {(key,): by for key, by in _by_label(found.by_source).items()}),
        *_parts("By source and labeler group", ["source", "group"], _by_label(found.by_group)),
        *_agreement(found),
        *([_calibration(calibrated)] if calibrated else []),
        *([_folds(folds)] if folds else []),
    ]
    return Findings(
        kind="reward-model",
        title="Reward model against labelers",
        settings=settings,
        figures={
            "rankings": found.rankings,
            "tied_rankings": found.tied,
            "accuracy": {name: {whose: asdict(one) for whose, one in of.items()} for name, of in found.by_side.items()},
            "accuracy_by_source": {
                name: {source: asdict(one) for source, one in of.items()} for name, of in found.by_source.items()
            },
            "accuracy_by_group": [
                {"score": name, "source": source, "group": group, **asdict(one)}
                for name, of in found.by_group.items()
                for (source, group), one in of.items()
            ],
            "above_longer_wins": {
                whose: asdict(one) if one is not None else None for whose, one in found.above_longer.items()
            },
            "calibration": {whose: asdict(one) for whose, one in found.calibration.items()},
            "labeler_agreement": [asdict(one) for one in found.agreements],
            "folds": asdict(folds) if folds else None,
        },
        tables=tables,
        plots=[plot] if plot is not None else [],
        notes=[*_notes(found, folds), *notes],
    )


def _model(described: Mapping[str, str]) -> Table:
    """Which model it was: its place, version and digest."""
    header = [name.replace("_", " ") for name in described]
    return Table("Reward model", header, [list(described.values())], names=len(header))


def _sides(found: Measured) -> Table:
    rows = []
    for name in _SCORES:
        for whose, accuracy in found.by_side.get(name, {}).items():
            above = _above(found.above_longer.get(whose)) if name == MODEL else ""
            rows.append([name, whose, *_figures(accuracy), above])
    header = ["score", "labels of", "accuracy", "pairs", "prompts", "above longer wins"]
    return Table("Accuracy", header, rows, names=2)


def _by_label(found: Mapping[str, Mapping[Any, Accuracy]]) -> dict[Any, dict[str, Accuracy]]:
    """By label, then by score."""
    turned: dict[Any, dict[str, Accuracy]] = {}
    for name, of_name in found.items():
        for label, accuracy in of_name.items():
            turned.setdefault(label, {})[name] = accuracy
    return turned


def _parts(title: str, names: Sequence[str], found: Mapping[tuple[str, ...], Mapping[str, Accuracy]]) -> list[Table]:
    """One table; none where there is but one part without a name."""
    if not any(part for label in found for part in label):
        return []
    present = [score for score in _SCORES if any(score in by for by in found.values())]
    rows = [
        [
            *(part or "not known" for part in label),
            *(_accuracy(by[score]) if score in by else "" for score in present),
            str(by[MODEL].pairs),
            str(by[MODEL].prompts),
        ]
        for label, by in sorted(found.items())
    ]
    return [Table(title, [*names, *present, "pairs", "prompts"], rows, names=len(names))]


def _agreement(found: Measured) -> list[Table]:
    rows = [
        [
            one.source or "all",
            one.group or "any",
            _accuracy(Accuracy(one.value, one.low, one.high, one.decisions, one.prompts)),
            str(one.decisions),
            str(one.prompts),
        ]
        for one in found.agreements
    ]
    header = ["source", "groups", "agreement", "decisions", "prompts"]
    return [Table("How often two labelers agree", header, rows, names=2)] if rows else []


def _calibration(calibrated: Calibration) -> Table:
    rows = [
        [f"{one.predicted:.3f}", interval(Measure(one.observed, one.low, one.high)), str(one.pairs)]
        for one in calibrated.bins
    ]
    return Table("Calibration over the pairs of all labelers", ["predicted", "observed", "pairs"], rows, names=0)


def _folds(folds: Folds) -> Table:
    rows = [
        [f"fold {number}", str(len(labelers)), percent(both[0]), percent(both[1])]
        for number, (labelers, both) in enumerate(zip(folds.labelers, folds.accuracies, strict=True), 1)
    ]
    rows.append(["mean ± standard error", "", _plus_minus(folds.training), _plus_minus(folds.held_out)])
    rows.append(["InstructGPT", "", _plus_minus(PAPER["training"]), _plus_minus(PAPER["held_out"])])
    header = ["", "labelers held out", "on training labelers", "on held-out labelers"]
    return Table(f"{len(folds.labelers)}-fold over labelers", header, rows)


def _notes(found: Measured, folds: Folds | None) -> list[str]:
    notes = [
        "Accuracy is the share of pairs that the score orders as a labeler did; pairs that the labeler ties are left "
        f"out, equal scores count one half. {found.tied} of {found.rankings} rankings are wholly tied. Intervals are "
        "95 %, by a bootstrap over prompts. Longer is by characters.",
        "What was trained on is not told by a file: held-out labelers say something of new people only, and figures on "
        "prompts that the model was trained on are too high; --held-out-fraction keeps those that a run held out.",
    ]
    errors = "; ".join(f"{whose} {one.error:.3f}" for whose, one in found.calibration.items())
    if errors:
        notes.append(
            f"Expected calibration error (Guo et al. 2017, ten bins of 0.5..1): {errors}. It has no interval: "
            "resampling can only raise it."
        )
    if ORACLE in found.by_side:
        notes.append(
            "The oracle orders by the gold score, which no model is trained on: no reward model can honestly do better."
        )
    if not found.agreements:
        notes.append("No two labelers decided a pair of the same answers, so there is no agreement to compare with.")
    if folds is not None:
        notes.append(
            "The folds are reward models of their own, each trained without the labels of its fold and measured on "
            "prompts that were held out (InstructGPT 4.1 and E.2); the model above is none of them."
        )
    return notes


def _figures(accuracy: Accuracy) -> list[str]:
    return [_accuracy(accuracy), str(accuracy.pairs), str(accuracy.prompts)]


def _accuracy(one: Accuracy) -> str:
    return interval(one, percent)


def _above(one: Estimate | None) -> str:
    return interval(one, percent) if one is not None else "too few"


def _plus_minus(figure: tuple[float, float]) -> str:
    return f"{100 * figure[0]:.1f} ± {100 * figure[1]:.1f} %"
