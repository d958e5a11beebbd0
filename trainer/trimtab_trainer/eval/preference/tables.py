"""Tables of figures over labels: each with both of its intervals, and the counts that it was measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from trimtab_trainer.eval.preference.bootstrap import Figure, Interval
from trimtab_trainer.eval.preference.win_rates import Comparison
from trimtab_trainer.tables import Table, percent

__all__ = ["INTERVAL_NOTE", "comparison_table", "figure_table", "points", "signed", "too_few"]

Shown = Callable[[float], str]

INTERVAL_NOTE = (
    "Intervals of 95 %: over other prompts with the same labelers (prompts resampled whole), and over other prompts "
    "and other such labelers (prompts and labelers resampled independently: the pigeonhole bootstrap of Owen 2007, "
    "which errs to the wide side). Below 5 prompts or labelers there is none."
)
_INTERVALS = ("95 %, other prompts", "95 %, other labelers too")
_COUNTS = ("prompts", "labelers")


def comparison_table(title: str, comparisons: Sequence[Comparison], groups: Sequence[str] = ()) -> Table:
    """Win rates; with `groups` each line begins with the group of labelers that it is of."""
    rows = [[one.model, one.other, *_cells(one.win_rate, percent, [percent(one.ties.value)])] for one in comparisons]
    header = ["model", "against", "win rate", *_INTERVALS, "ties", "comparisons", *_COUNTS]
    if not groups:
        return Table(title, header, rows, names=2)
    with_group = [[group or "(none)", *row] for group, row in zip(groups, rows, strict=True)]
    return Table(title, ["group", *header], with_group, names=3)


def figure_table(
    title: str,
    names: Sequence[str],
    value: str,
    count: str,
    figures: Iterable[tuple[Sequence[str], Figure]],
    shown: Shown,
) -> Table:
    """One figure a line.

    Args:
        title: of the table.
        names: headings of the names.
        value: heading of the figure.
        count: heading of what it was measured on.
        figures: each with the names of its line.
        shown: a figure for people.
    """
    rows = [[*line, *_cells(figure, shown)] for line, figure in figures]
    return Table(title, [*names, value, *_INTERVALS, count, *_COUNTS], rows, names=len(names))


def points(difference: float) -> str:
    """A difference of shares for people, in percentage points."""
    return f"{100 * difference:+.1f}"


def signed(value: float) -> str:
    """A number whose sign matters."""
    return f"{value:+.3f}"


def too_few(figures: Iterable[Figure]) -> list[str]:
    """A sentence on what a missing interval over other labelers means; none where none is missing."""
    if all(figure.over_both for figure in figures):
        return []
    return ["Where the interval over other labelers is missing, a figure speaks for its own labelers only."]


def _cells(figure: Figure, shown: Shown, further: Sequence[str] = ()) -> list[str]:
    return [
        shown(figure.value),
        _interval(figure.over_prompts, shown),
        _interval(figure.over_both, shown),
        *further,
        str(figure.count),
        str(figure.prompts),
        str(figure.labelers),
    ]


def _interval(interval: Interval | None, shown: Shown) -> str:
    return "none" if interval is None else f"{shown(interval[0])} to {shown(interval[1])}"
