"""Several runs side by side, from their report.json files: what differs in their specs, and what came of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trimtab.errors import ConfigError, CorruptData
from trimtab_trainer.checkpoint import write_file_atomically
from trimtab_trainer.report import page_environment
from trimtab_trainer.report_plots import comparison_plots

__all__ = ["PooledClaim", "pooled_claims", "write_comparison"]

T = TypeVar("T")

_STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Quantiles of Student's t at 0.975 by number of runs; with more runs that of 10 is a little too wide."""
_ABOUT_THE_RUN = ("name", "directory", "services", "data_directory")
"""Keys that differ between any two runs and explain nothing."""


@dataclass(frozen=True)
class PooledClaim:
    """A claim of the paper over several runs.

    Attributes:
        claim, paper: as in each run's table.
        measured: mean over the runs.
        low, high: 95 % interval of that mean over runs, by Student's t; of one run its own.
        holding: runs in which it holds.
        runs: runs that measured it.
    """

    claim: str
    paper: str
    measured: float
    low: float
    high: float
    holding: int
    runs: int


def pooled_claims(tables: Sequence[Sequence[Mapping[str, Any]]]) -> list[PooledClaim]:
    """The claims of several runs, each over those that measured it, in the order of the tables.

    The interval is that of the mean over runs (Student's t); of one run its own.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for table in tables:
        for claim in table:
            found.setdefault(claim["claim"], []).append(claim)
    pooled = []
    for text, claims in found.items():
        values = [claim["measured"] for claim in claims]
        mean = statistics.fmean(values)
        low, high = (mean if end is None else end for end in (claims[0]["low"], claims[0]["high"]))
        if len(values) > 1:
            spread = _STUDENT_T[min(len(values), max(_STUDENT_T))] * statistics.stdev(values) / len(values) ** 0.5
            low, high = mean - spread, mean + spread
        holding = sum(bool(claim["holds"]) for claim in claims)
        pooled.append(PooledClaim(text, claims[0]["paper"], mean, low, high, holding, len(claims)))
    return pooled


def write_comparison(directories: Sequence[Path], path: Path) -> None:
    """Writes one page on the runs in several folders.

    Raises:
        ConfigError: a folder has no report.json.
        CorruptData: one is no report.
    """
    reports = [_read(directory / "report.json") for directory in directories]
    names = _names(reports, directories)
    steps = {
        name: {row["iteration"]: row for row in report["iterations"]}
        for name, report in zip(names, reports, strict=True)
    }
    specs = [_flat(report["config"]) for report in reports]
    differing = _by_run(specs, lambda spec: spec)
    models = dict.fromkeys(name for report in reports for name in report["models"])
    page = page_environment().get_template("comparison.html")
    text = page.render(
        runs=names,
        differences={
            key: [_written(value) for value in values]
            for key, values in differing.items()
            if len({json.dumps(value) for value in values}) > 1 and key.partition(".")[0] not in _ABOUT_THE_RUN
        },
        claims=_by_run(reports, lambda report: {claim["claim"]: claim for claim in report["claims"]}),
        models={
            model: _by_run(reports, lambda report, model=model: report["models"].get(model, {})) for model in models
        },
        plots=comparison_plots(steps),
        seconds=_by_run(reports, lambda report: report["wall_seconds"]),
    )
    write_file_atomically(path, text)


def _read(path: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key in ("name", "config", "models", "claims", "iterations", "wall_seconds"):
            report[key]
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; `trimtab report {path.parent}` writes it", field="directory", value=path.parent
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptData(f"{path}: not the report of a run: {error}", field="report.json", value=path) from error
    return report


def _names(reports: Sequence[Mapping[str, Any]], directories: Sequence[Path]) -> list[str]:
    """The runs' names, or their folders where two have the same."""
    names = [str(report["name"]) for report in reports]
    return names if len(set(names)) == len(names) else [str(directory) for directory in directories]


def _by_run(reports: Sequence[T], of: Callable[[T], Mapping[str, Any]]) -> dict[str, list[Any]]:
    """For each key of any run the values of all runs, None where a run has none."""
    found = [of(report) for report in reports]
    return {key: [one.get(key) for one in found] for key in dict.fromkeys(key for one in found for key in one)}


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of a spec by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _written(value: object) -> object:
    """A value of a spec as people write it."""
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list) else value
