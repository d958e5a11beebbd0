"""report.json and report.html of a run: figures, plots and samples, in one file that needs nothing else.

report.json: `{"name", "config", "versions", "stages": {stage: {"metrics", "details"}}, "models": {name: {figure: {
"value", "low", "high"}}}, "claims": [{"claim", "paper", "measured", "low", "high", "holds", "note"}], "iterations":
[{...}], "wall_seconds": {stage: seconds}, "compute": {...}, "evaluations": {name: {"kind", "title", "at", "page",
"figures", "tables", "notes"}}}`: `compute` is the ledger of `trimtab eval compute`, `evaluations` what the files in
DIR/eval hold, with the page beside each.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from trimtab.errors import CorruptData
from trimtab_trainer.checkpoint import write_file_atomically
from trimtab_trainer.eval.compute.ledger import Ledger, ledger_notes, ledger_record, ledger_tables
from trimtab_trainer.eval.compute.run import run_ledger
from trimtab_trainer.report_plots import Plot, calibration_plot, run_plots
from trimtab_trainer.reporter import stage_metrics
from trimtab_trainer.run import read_outcome
from trimtab_trainer.tables import Table, percent

__all__ = ["page_environment", "versions", "write_report"]

_ORDER = ("base", "base_4x", "few_shot", "sft", "ppo", "ppo_ptx", "dpo", "ptx_control", "ppo_without_kl")
_SHOWN_SAMPLES = 40
_OF_FINDINGS = ("kind", "title", "at", "figures", "tables", "notes")


def write_report(directory: Path, *, warn: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Writes DIR/report.json and DIR/report.html of a finished run; returns what report.json holds.

    Args:
        directory: of the run.
        warn: takes one sentence for each file in DIR/eval that holds no findings, which is then left out; None makes
            it an error.

    Raises:
        ConfigError: there is no run in this folder.
        CorruptData: a file in DIR/eval holds no findings, and nobody takes the warning.
    """
    outcome = read_outcome(directory)
    config = yaml.safe_load((directory / "spec.yaml").read_text())
    samples = {path.stem: _read_lines(path) for path in sorted((directory / "samples").glob("*.jsonl"))}
    models = {path.stem: json.loads(path.read_text()) for path in sorted((directory / "samples").glob("*.json"))}
    ledger = run_ledger(directory)
    metrics = stage_metrics(directory / "events.jsonl")
    series = {stage: metrics.get(stage, {}) for stage in config["stages"]}
    written = {
        "name": config["name"],
        "config": config,
        "versions": versions(),
        "stages": {
            stage: {"metrics": dict(result.metrics), "details": dict(result.details)}
            for stage, result in outcome.results.items()
        },
        "ppo_start": config["ppo"]["policy"] if "ppo" in config["stages"] else None,
        "models": {name: models[name] for name in sorted(models, key=_place)},
        "claims": outcome.results["evaluate"].details["claims"] if "evaluate" in outcome.results else [],
        "iterations": [{"iteration": step, **metrics} for step, metrics in series.get("ppo", {}).items()],
        "wall_seconds": {**outcome.seconds, "all": sum(outcome.seconds.values())},
        "compute": ledger_record(ledger),
        "evaluations": _evaluations(directory, warn),
    }
    write_file_atomically(directory / "report.json", json.dumps(written, indent=1) + "\n")
    write_file_atomically(directory / "report.html", _page(written, series, samples, ledger))
    return written


def page_environment() -> jinja2.Environment:
    """Templates of the pages; what they are given is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trimtab_trainer", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["figure"] = _figure
    return environment


def versions() -> dict[str, str]:
    """Of what figures depend on: Python and the packages."""
    names = ("trimtab", "torch", "transformers", "numpy", "grpcio", "protobuf")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _place(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)


def _page(
    written: Mapping[str, Any],
    series: Mapping[str, Mapping[int, Mapping[str, float]]],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    ledger: Ledger,
) -> str:
    figures = list(dict.fromkeys(key for model in written["models"].values() for key in model))
    return (
        page_environment()
        .get_template("report.html")
        .render(
            report=written,
            reward_model=_reward_model(written),
            figures=figures,
            plots=[*run_plots(series), *_calibration(written)],
            samples=_side_by_side(samples),
            sample_models=sorted(samples, key=_place),
            compute_tables=ledger_tables(ledger),
            compute_notes=ledger_notes(ledger),
            config=yaml.safe_dump(written["config"], sort_keys=False),
        )
    )


def _reward_model(written: Mapping[str, Any]) -> dict[str, Any] | None:
    """How well the stage's model orders held-out pairs; None where the stage did not run."""
    if "reward_model" not in written["stages"]:
        return None
    result = written["stages"]["reward_model"]
    metrics, details = result["metrics"], result["details"]
    measured = {"labelers learnt from": (details.get("accuracy"), details.get("longer_wins"))}
    for label, found in details.get("accuracy_by_group", {}).items():
        measured[label] = found, details.get("longer_wins_by_group", {}).get(label)
    rows = [
        [label, _share(found), _share(longer) if longer else "", str(found["pairs"]), str(found["prompts"])]
        if found
        else [label, "no pair held out", "", "0", "0"]
        for label, (found, longer) in measured.items()
    ]
    return {
        "table": Table(
            "", ["labels of", "accuracy", "the longer answer wins", "pairs", "prompts"], rows if details else []
        ),
        "agreement": percent(metrics["labeler_agreement"]) if "labeler_agreement" in metrics else None,
        "agreement_pairs": metrics.get("labeler_agreement_pairs"),
    }


def _share(accuracy: Mapping[str, Any]) -> str:
    """An accuracy for people, with its interval where there is one."""
    if accuracy["low"] is None or accuracy["high"] is None:
        return percent(accuracy["value"])
    return f"{percent(accuracy['value'])} ({percent(accuracy['low'])} to {percent(accuracy['high'])})"


def _evaluations(directory: Path, warn: Callable[[str], None] | None) -> dict[str, dict[str, Any]]:
    """What `trimtab eval` saved in DIR/eval, by name; `page` is relative to DIR, None where the page is not there."""
    found = {}
    for path in sorted((directory / "eval").glob("*.json")):
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            findings = {key: saved[key] for key in _OF_FINDINGS}
        except (ValueError, KeyError, TypeError) as error:
            text = f"{path}: no findings of `trimtab eval`: {error}"
            if warn is None:
                raise CorruptData(text, field="eval", value=path) from error
            warn(f"{text}; the report leaves it out")
            continue
        page = path.with_suffix(".html")
        found[path.stem] = {**findings, "page": f"eval/{page.name}" if page.is_file() else None}
    return found


def _calibration(written: Mapping[str, Any]) -> list[Plot]:
    bins = written["stages"].get("reward_model", {}).get("details", {}).get("calibration", [])
    plot = calibration_plot(bins)
    return [plot] if plot is not None else []


def _side_by_side(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The first prompts with every model's first answer; all models answer the same prompts in the same order."""
    if not samples:
        return []
    firsts = {name: _first_answers(rows) for name, rows in samples.items()}
    count = min(_SHOWN_SAMPLES, *map(len, firsts.values()))
    prompts = next(iter(firsts.values()))
    return [
        {"prompt": prompts[i]["prompt"], "answers": {name: rows[i] for name, rows in firsts.items()}}
        for i in range(count)
    ]


def _first_answers(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    found: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        found.setdefault(row["number"], row)
    return [found[number] for number in sorted(found)]


def _figure(value: float) -> str:
    """A figure for people: counts as counts, the rest to four digits."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e12 else f"{value:.4g}"
