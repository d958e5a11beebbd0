"""report.json and report.html of a run: figures, plots and samples, in one file that needs nothing else.

report.json: `{"name", "config", "versions", "stages": {stage: {"metrics", "details"}}, "models": {name: {figure: {
"value", "low", "high"}}}, "claims": [{"claim", "paper", "measured", "low", "high", "holds", "note"}], "iterations":
[{...}], "wall_seconds": {stage: seconds}}`.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from trimtab_trainer.checkpoint import write_file_atomically
from trimtab_trainer.reporter import step_metrics
from trimtab_trainer.run import read_outcome

__all__ = ["write_report"]

_ORDER = ("base", "few_shot", "sft", "ppo", "ppo_ptx", "ptx_control")
_PLOTS = (
    ("ppo", "reward and score", ("reward", "score")),
    ("ppo", "KL to the reference, nats of a sequence", ("mean_kl", "kl_k3")),
    ("ppo", "value model: explained variance", ("explained_variance",)),
    ("ppo", "pretraining loss (ptx)", ("ptx_loss",)),
    ("ppo", "entropy, nats of a token", ("entropy",)),
    ("ppo", "completion: tokens", ("completion_tokens",)),
    ("ppo", "ended, clipped: share", ("ended_fraction", "clip_fraction")),
    ("ppo", "sampler against trainer: log-prob mismatch", ("mismatch_mean", "mismatch_max")),
    ("ppo", "gradient norms", ("policy_gradient_norm", "ppo_gradient_norm", "ptx_gradient_norm")),
    ("ppo", "seconds of a phase", ("seconds_rollouts", "seconds_experience", "seconds_update", "seconds_publish")),
    ("reward_model", "reward model: loss", ("loss",)),
    ("reward_model", "reward model: accuracy on its batches", ("accuracy",)),
    ("sft", "SFT: loss", ("loss",)),
    ("pretrain", "pretraining: loss", ("loss",)),
)
_SHOWN_SAMPLES = 40


def write_report(directory: Path) -> dict[str, Any]:
    """Writes DIR/report.json and DIR/report.html of a finished run; returns what report.json holds.

    Raises:
        ConfigError: there is no run in this folder.
    """
    outcome = read_outcome(directory)
    config = yaml.safe_load((directory / "spec.yaml").read_text())
    samples = {path.stem: _read_lines(path) for path in sorted((directory / "samples").glob("*.jsonl"))}
    models = {path.stem: json.loads(path.read_text()) for path in sorted((directory / "samples").glob("*.json"))}
    series = {stage: step_metrics(directory / "events.jsonl", stage) for stage in config["stages"]}
    written = {
        "name": config["name"],
        "config": config,
        "versions": _versions(),
        "stages": {
            stage: {"metrics": dict(result.metrics), "details": dict(result.details)}
            for stage, result in outcome.results.items()
        },
        "models": {name: models[name] for name in sorted(models, key=_place)},
        "claims": outcome.results["evaluate"].details["claims"] if "evaluate" in outcome.results else [],
        "iterations": [{"iteration": step, **metrics} for step, metrics in series.get("ppo", {}).items()],
        "wall_seconds": {**outcome.seconds, "all": sum(outcome.seconds.values())},
    }
    write_file_atomically(directory / "report.json", json.dumps(written, indent=1) + "\n")
    write_file_atomically(directory / "report.html", _page(written, series, samples))
    return written


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _place(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)


def _versions() -> dict[str, str]:
    names = ("trimtab", "torch", "transformers", "numpy", "grpcio", "protobuf")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _page(
    written: Mapping[str, Any],
    series: Mapping[str, Mapping[int, Mapping[str, float]]],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trimtab_trainer", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    figures = list(dict.fromkeys(key for model in written["models"].values() for key in model))
    return environment.get_template("report.html").render(
        report=written,
        figures=figures,
        plots=[plot for stage, title, names in _PLOTS if (plot := _plot(title, names, series.get(stage, {})))],
        samples=_side_by_side(samples),
        sample_models=sorted(samples, key=_place),
        config=yaml.safe_dump(written["config"], sort_keys=False),
    )


def _side_by_side(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The first prompts with every model's answer; all models answer the same prompts in the same order."""
    if not samples:
        return []
    count = min(_SHOWN_SAMPLES, *(len(rows) for rows in samples.values()))
    first = next(iter(samples.values()))
    return [
        {"prompt": first[i]["prompt"], "answers": {name: rows[i] for name, rows in samples.items()}}
        for i in range(count)
    ]


def _plot(title: str, names: Sequence[str], steps: Mapping[int, Mapping[str, float]]) -> dict[str, str] | None:
    """One plot as inline SVG, coloured by the page's own style; None when there is nothing to draw."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    present = [name for name in names if sum(name in metrics for metrics in steps.values()) > 1]
    if not present:
        return None
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
                                "axes.spines.right": False, "svg.hashsalt": "trimtab"}):  # fmt: skip
        figure, axes = pyplot.subplots(figsize=(4.6, 2.6))
        for name in present:
            points = [(step, metrics[name]) for step, metrics in steps.items() if name in metrics]
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=1.4)
        axes.set_xlabel("step")
        if len(present) > 1:
            axes.legend(frameon=False, fontsize=8)
        figure.tight_layout()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    svg = buffer.getvalue()
    return {"title": title, "svg": svg[svg.index("<svg") :].replace("#000000", "currentColor")}
