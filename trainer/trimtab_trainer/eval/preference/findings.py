"""The findings of `trimtab eval preference`: every figure over labels, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from trimtab.errors import DataError
from trimtab_trainer.eval.findings import Findings
from trimtab_trainer.eval.preference.answers import flag_names, flag_rates, mean_ratings
from trimtab_trainer.eval.preference.bootstrap import Figure
from trimtab_trainer.eval.preference.labels import Label, contestants_of
from trimtab_trainer.eval.preference.tables import INTERVAL_NOTE, comparison_table, figure_table, signed, too_few
from trimtab_trainer.eval.preference.win_rates import Comparison, Comparisons, first_shown, strengths
from trimtab_trainer.tables import Table, percent

__all__ = ["preference_findings"]

_BRADLEY_TERRY_NOTE = (
    "Bradley-Terry: P(a is preferred to b) = sigmoid(strength of a - strength of b), maximum likelihood, a tie as half "
    "a win of each; {zero}. Resamples without a finite estimate are left out, and where they are more than 2.5 % there "
    "is no interval."
)
_PAPER_NOTE = (
    "Beside it: labelers preferred the paper's 175 B InstructGPT to GPT-3 in 85 ± 3 % of comparisons, and to few-shot "
    "GPT-3 in 71 ± 4 % (Ouyang et al. 2022, section 1)."
)


def preference_findings(
    labels: Sequence[Label],
    settings: Mapping[str, Any],
    *,
    baseline: str | None,
    bradley_terry: bool | None,
    samples: int,
    seed: int,
) -> Findings:
    """Whom people prefer.

    Args:
        labels: at least one.
        settings: of the command.
        baseline: contestant that the others are compared with.
        bradley_terry: whether to fit strengths; None: where there are more than two contestants.
        samples: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        ConfigError: the baseline is no contestant.
        DataError: nothing is compared, or there are no finite strengths.
    """
    names = contestants_of(labels, baseline)
    comparisons = Comparisons(labels, samples=samples, seed=seed)
    pairs = [comparisons.between(*pair) for pair in comparisons.pairs]
    against = [] if baseline is None else _against(comparisons, baseline)
    fitted = len(names) > 2 if bradley_terry is None else bradley_terry
    strong = _strengths(comparisons, baseline) if fitted else None
    groups = [] if baseline is None else _by_group(labels, baseline, samples=samples, seed=seed)
    ratings = _ratings(labels, samples=samples, seed=seed)
    flags = _flags(labels, samples=samples, seed=seed)
    position = first_shown(labels, samples=samples, seed=seed)
    figures = {
        "labels": len(labels),
        "prompts": len({label.prompt for label in labels}),
        "labelers": len({label.labeler for label in labels}),
        "contestants": names,
        "baseline": baseline,
        "pairs_of_one_contestant": comparisons.same,
        "pairs": [asdict(one) for one in pairs],
        "against_baseline": [asdict(one) for one in against],
        "against_baseline_by_group": [{"group": group, **asdict(one)} for group, one in groups],
        "bradley_terry": None if strong is None else {name: asdict(one) for name, one in strong.items()},
        "first_shown": None if position is None else asdict(position),
        "ratings": {name: asdict(one) for (name,), one in ratings.items()},
        "flags": _nested(flags),
    }
    tables = []
    if against:
        tables.append(comparison_table(f"Win rate against {baseline}", against))
    if groups:
        title = f"Win rate against {baseline}, by group of labelers"
        tables.append(comparison_table(title, [one for _, one in groups], [group for group, _ in groups]))
    tables.append(comparison_table("Win rate of each pair", pairs))
    if strong is not None:
        lines = {(name,): one for name, one in strong.items()}
        tables.append(figure_table("Bradley-Terry", ["model"], "strength", "comparisons", lines.items(), signed))
    tables += _answer_tables(ratings, flags, position)
    return Findings(
        "preference",
        "Whom people prefer",
        settings,
        figures,
        tables,
        notes=_notes(labels, comparisons.same, [*pairs, *(one for _, one in groups)], baseline, fitted, position),
    )


def _against(comparisons: Comparisons, baseline: str) -> list[Comparison]:
    """Each contestant that met the baseline, best first."""
    met = [pair[0] if pair[1] == baseline else pair[1] for pair in comparisons.pairs if baseline in pair]
    return sorted((comparisons.between(name, baseline) for name in met), key=lambda one: -one.win_rate.value)


def _strengths(comparisons: Comparisons, baseline: str | None) -> dict[str, Figure]:
    try:
        return strengths(comparisons, baseline)
    except DataError as error:
        advice = "--no-bradley-terry gives the win rates alone"
        raise DataError(f"{error.message}; {advice}", field=error.field, value=error.value) from None


def _by_group(labels: Sequence[Label], baseline: str, *, samples: int, seed: int) -> list[tuple[str, Comparison]]:
    """Win rates by each group's labelers, where there are several groups."""
    groups = sorted({label.group for label in labels})
    if len(groups) < 2:
        return []
    found = []
    for group in groups:
        mine = [label for label in labels if label.group == group]
        if len(contestants_of(mine)) > 1:
            found += [(group, one) for one in _against(Comparisons(mine, samples=samples, seed=seed), baseline)]
    return found


def _ratings(labels: Sequence[Label], *, samples: int, seed: int) -> dict[tuple[str, ...], Figure]:
    means = mean_ratings(labels, samples=samples, seed=seed)
    return {} if means is None else {(name,): means.mean(name) for name in means.names}


def _flags(labels: Sequence[Label], *, samples: int, seed: int) -> dict[tuple[str, ...], Figure]:
    """By flag and contestant."""
    found = {}
    for flag in flag_names(labels):
        rates = flag_rates(labels, flag, samples=samples, seed=seed)
        if rates is not None:
            found |= {(flag, name): rates.mean(name) for name in rates.names}
    return found


def _nested(flags: Mapping[tuple[str, ...], Figure]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for (flag, name), figure in flags.items():
        nested.setdefault(flag, {})[name] = asdict(figure)
    return nested


def _answer_tables(
    ratings: Mapping[tuple[str, ...], Figure], flags: Mapping[tuple[str, ...], Figure], position: Figure | None
) -> list[Table]:
    tables = []
    if ratings:
        tables.append(
            figure_table("Ratings, 1 to 7", ["model"], "mean", "ratings", ratings.items(), lambda x: f"{x:.2f}")
        )
    if flags:
        spoken = {(flag.replace("_", " "), name): figure for (flag, name), figure in flags.items()}
        tables.append(
            figure_table("Questions answered yes", ["question", "model"], "share", "answers", spoken.items(), percent)
        )
    if position is not None:
        lines = {("shown first",): position}
        tables.append(
            figure_table("Position on the page", ["answer"], "preferred", "comparisons", lines.items(), percent)
        )
    return tables


def _notes(
    labels: Sequence[Label],
    same: int,
    compared: Sequence[Comparison],
    baseline: str | None,
    fitted: bool,
    position: Figure | None,
) -> list[str]:
    prompts, labelers = len({label.prompt for label in labels}), len({label.labeler for label in labels})
    notes = [
        f"{len(labels)} labels of {prompts} prompts by {labelers} labelers. A ranking counts as all its pairs, each "
        f"pair once; a tie counts one half for each side. {same} pairs of answers of one contestant are left out.",
        INTERVAL_NOTE,
        *too_few(one.win_rate for one in compared),
    ]
    if baseline is not None:
        notes.append(_PAPER_NOTE)
    if fitted:
        zero = "the mean of all strengths is 0" if baseline is None else f"the strength of {baseline} is 0"
        notes.append(_BRADLEY_TERRY_NOTE.format(zero=zero))
    if position is None:
        notes.append("The files do not say in which order answers were shown, so a bias to the first is not measured.")
    else:
        notes.append("Without a bias of position the answer shown first is preferred in 50 % of comparisons.")
    return notes
