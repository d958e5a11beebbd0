"""Plots of the report, as inline SVG that takes the page's own colours; the same for one run and for several."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Line", "Plot", "calibration_plot", "comparison_plots", "draw", "run_plots"]

Steps = Mapping[int, Mapping[str, float]]
"""Metrics of a stage by step."""

_SECONDS = ("seconds_rollouts", "seconds_experience", "seconds_update", "seconds_publish")
_OF_A_STAGE = (
    ("ppo", "reward and gold score", ("reward", "score", "gold")),
    ("ppo", "KL to the reference, nats of a sequence", ("mean_kl", "kl_k3")),
    ("ppo", "entropy, nats of a token", ("entropy",)),
    ("ppo", "completion: tokens", ("completion_tokens",)),
    ("ppo", "ended, repeated, clipped: share", ("ended_fraction", "repeated_fraction", "clip_fraction")),
    ("ppo", "value model: explained variance", ("explained_variance",)),
    ("ppo", "pretraining loss (ptx)", ("ptx_loss",)),
    ("ppo", "gradient norms", ("policy_gradient_norm", "ppo_gradient_norm", "ptx_gradient_norm")),
    ("ppo", "sampler against trainer: log-prob mismatch", ("mismatch_mean", "mismatch_max")),
    ("ppo", "versions that sampling was behind", ("lag",)),
    ("ppo", "publication: bytes sent over those of the model", ("publication_share",)),
    ("ppo", "seconds of a phase", _SECONDS),
    ("dpo", "DPO: loss", ("loss", "held_out_loss")),
    ("dpo", "DPO: accuracy of the implicit reward", ("accuracy", "held_out_accuracy")),
    ("dpo", "DPO: implicit reward of the better and the worse answer", ("better_reward", "worse_reward")),
    ("dpo", "DPO: log-prob of the better and the worse answer", ("better_logprob", "worse_logprob")),
    ("reward_model", "reward model: loss", ("loss",)),
    ("reward_model", "reward model: accuracy on its batches", ("accuracy",)),
    ("sft", "SFT: loss", ("loss", "held_out_loss")),
    ("pretrain", "pretraining: loss", ("loss",)),
)
_COMPARED = ("reward", "gold", "mean_kl", "entropy", "completion_tokens", "explained_variance", "ptx_loss")


@dataclass(frozen=True)
class Line:
    """Points (x, y) under one label; `dots` draws them alone, without a line through them."""

    label: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


@dataclass(frozen=True)
class Plot:
    """A drawn plot: its title and the SVG element."""

    title: str
    svg: str


def run_plots(series: Mapping[str, Steps]) -> list[Plot]:
    """Every plot of a run that has something to show.

    Args:
        series: metrics by stage and step.
    """
    plots = [
        draw(title, "step", [_line(name.replace("_", " "), series.get(stage, {}), name) for name in names])
        for stage, title, names in _OF_A_STAGE
    ]
    farthest = "ppo_without_kl" if series.get("ppo_without_kl") else "ppo"
    rows = [row for row in series.get(farthest, {}).values() if "mean_kl" in row]
    optimized = [
        Line(name, sorted((math.sqrt(max(row["mean_kl"], 0.0)), row[name]) for row in rows if name in row))
        for name in ("reward", "gold")
    ]
    title = f"over-optimisation in {farthest}: proxy and gold over the root of the KL"
    both = all(len(line.points) > 1 for line in optimized)
    plots.insert(1, draw(title, "square root of the KL, nats", optimized) if both else None)
    return [plot for plot in plots if plot is not None]


def calibration_plot(bins: Sequence[Mapping[str, float]]) -> Plot | None:
    """Observed against predicted preferences of a reward model, beside the diagonal of a perfect one."""
    points = [(one["predicted"], one["observed"]) for one in bins]
    lines = [Line("reward model", points), Line("perfect", [(0.5, 0.5), (1.0, 1.0)])]
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
    """Draws lines over one x axis; None where no line has two points."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    present = [line for line in lines if len(line.points) > 1]
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
            axes.plot(*zip(*line.points, strict=True), label=line.label, **drawn)
        axes.set_xlabel(x_label)
        if len(present) > 1:
            axes.legend(frameon=False, fontsize=8)
        figure.tight_layout()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    svg = buffer.getvalue()
    return Plot(title, svg[svg.index("<svg") :].replace("#000000", "currentColor"))
