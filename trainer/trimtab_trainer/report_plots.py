"""Plots of the report, as inline SVG that takes the page's own colours; the same for one run and for several."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.run_plots import RunPlot, plots_of

__all__ = ["Interval", "Line", "Plot", "calibration_plot", "comparison_plots", "draw", "run_plots"]

Steps = Mapping[int, Mapping[str, float]]
"""Metrics of a stage by step."""

Interval = tuple[float, float] | None
"""Low and high end of a figure; None where it has no interval."""

_COMPARED = ("reward", "gold", "mean_kl", "entropy", "completion_tokens", "explained_variance", "ptx_loss")


@dataclass(frozen=True)
class Line:
    """Points (x, y) under one label.

    Attributes:
        label: in the legend.
        points: (x, y).
        dots: draws them alone, without a line through them.
        intervals: (low, high) of each y, None where there is none; of dots a bar each, of a line a band.
        x_intervals: likewise of each x, of dots alone.
    """

    label: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    intervals: Sequence[Interval] = ()
    x_intervals: Sequence[Interval] = ()


@dataclass(frozen=True)
class Plot:
    """A drawn plot: its title and the SVG element."""

    title: str
    svg: str


def run_plots(series: Mapping[str, Steps]) -> list[Plot]:
    """Every plot of a run that has something to show; which there are is in `trimtab.run_plots`.

    Args:
        series: metrics by stage and step.
    """
    plots = (_drawn(plot, series[plot.stage]) for plot in plots_of([stage for stage, steps in series.items() if steps]))
    return [plot for plot in plots if plot is not None]


def _drawn(plot: RunPlot, steps: Steps) -> Plot | None:
    if not plot.root_of:
        return draw(plot.title, plot.x_label, [_line(name.replace("_", " "), steps, name) for name in plot.figures])
    rows = [row for row in steps.values() if plot.root_of in row]
    lines = [
        Line(name, sorted((math.sqrt(max(row[plot.root_of], 0.0)), row[name]) for row in rows if name in row))
        for name in plot.figures
    ]
    return draw(plot.title, plot.x_label, lines) if all(len(line.points) > 1 for line in lines) else None


def calibration_plot(bins: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Observed against predicted preferences of a reward model, beside the diagonal of a perfect one.

    Args:
        bins: `CalibrationBin` each; those with `low` and `high` have a band of 95 % intervals.
    """
    points = [(one["predicted"], one["observed"]) for one in bins]
    intervals = [None if one.get("low") is None else (one["low"], one["high"]) for one in bins]
    lines = [Line("reward model", points, intervals=intervals), Line("perfect", [(0.5, 0.5), (1.0, 1.0)])]
    return draw("reward model: predicted and observed preference", "predicted", lines)


def comparison_plots(runs: Mapping[str, Steps]) -> list[Plot]:
    """One plot for each figure of PPO, a line for each run.

    Args:
        runs: metrics of PPO by step, by run.
    """
    plots = (
        draw(name.replace("_", " "), "step", [_line(run, steps, name) for run, steps in runs.items()])
        for name in _COMPARED
    )
    return [plot for plot in plots if plot is not None]


def _line(label: str, steps: Steps, name: str) -> Line:
    return Line(label, [(step, metrics[name]) for step, metrics in steps.items() if name in metrics])


def draw(title: str, x_label: str, lines: Sequence[Line]) -> Plot | None:
    """Draws lines over one x axis; None where no line has two points and none has dots."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    present = [line for line in lines if len(line.points) > (0 if line.dots else 1)]
    if not present:
        return None
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "trimtab",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(4.6, 2.6))
        for line in present:
            drawn: Any = {"marker": ".", "linestyle": "", "alpha": 0.6} if line.dots else {"linewidth": 1.4}
            (drawn_line,) = axes.plot(*zip(*line.points, strict=True), label=line.label, **drawn)
            _draw_intervals(axes, line, drawn_line.get_color())
        axes.set_xlabel(x_label)
        if len(present) > 1:
            axes.legend(frameon=False, fontsize=8)
        figure.tight_layout()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    svg = buffer.getvalue()
    return Plot(title, svg[svg.index("<svg") :].replace("#000000", "currentColor"))


def _draw_intervals(axes: Any, line: Line, color: Any) -> None:
    xs, ys = zip(*line.points, strict=True)
    if any(line.intervals):
        low, high = _ends(line.intervals)
        if line.dots:
            axes.vlines(xs, low, high, colors=color, linewidth=1, alpha=0.6)
        else:
            axes.fill_between(xs, low, high, color=color, alpha=0.2, linewidth=0)
    if any(line.x_intervals):
        axes.hlines(ys, *_ends(line.x_intervals), colors=color, linewidth=1, alpha=0.6)


def _ends(intervals: Sequence[Interval]) -> tuple[list[float], list[float]]:
    """Lower and upper ends; NaN, which nothing is drawn for, where there is no interval."""
    known = [interval or (math.nan, math.nan) for interval in intervals]
    return [low for low, _ in known], [high for _, high in known]
