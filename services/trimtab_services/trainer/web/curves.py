"""The steps of a stage as curves of bounded length: every step counts, however many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["MOST_POINTS", "StageCurves"]

MOST_POINTS = 400
"""Most points of a curve: about one for each pixel of a plot."""


@dataclass(slots=True)
class _Point:
    """Neighbouring steps: the number of the last one, and of each figure its last, lowest and highest value."""

    step: int
    last: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]

    def take(self, later: _Point) -> None:
        self.step = later.step
        self.last |= later.last
        for name, value in later.low.items():
            self.low[name] = min(value, self.low.get(name, value))
        for name, value in later.high.items():
            self.high[name] = max(value, self.high.get(name, value))


class StageCurves:
    """The figures of a stage by step.

    A point stands for `width` steps. Whenever there are more than `MOST_POINTS` of them, `width` doubles and neighbours
    become one, whose lowest and highest values keep what the last one does not show.

    Args:
        figures: that are kept; others of a step are not.
    """

    def __init__(self, figures: Sequence[str]) -> None:
        self.width = 1
        self._figures = figures
        self._points: dict[int, _Point] = {}

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a step, from 1. One that is done again after a resume replaces what it was, while `width` is 1."""
        found = {name: metrics[name] for name in self._figures if name in metrics}
        point = _Point(step, found, dict(found), dict(found))
        place = (step - 1) // self.width
        if self.width == 1 or place not in self._points:
            self._points[place] = point
        else:
            self._points[place].take(point)
        if len(self._points) > MOST_POINTS:
            self._double()

    def _double(self) -> None:
        self.width *= 2
        halved: dict[int, _Point] = {}
        for place, point in sorted(self._points.items()):
            if place // 2 in halved:
                halved[place // 2].take(point)
            else:
                halved[place // 2] = point
        self._points = halved

    def to_json(self) -> dict[str, Any]:
        """`{width, steps: [N], figures: {name: {last, low, high}}}`, each a list with a place for each of `steps`.

        A step without the figure has null there. `low` and `high` are left out where `width` is 1.
        """
        points = [point for _, point in sorted(self._points.items())]
        names = [name for name in self._figures if any(name in point.last for point in points)]
        kinds = ("last",) if self.width == 1 else ("last", "low", "high")
        return {
            "width": self.width,
            "steps": [point.step for point in points],
            "figures": {
                name: {kind: [_short(getattr(point, kind).get(name)) for point in points] for kind in kinds}
                for name in names
            },
        }


def _short(value: float | None) -> float | None:
    """To the six digits that a plot can show."""
    return None if value is None else float(f"{value:.6g}")
