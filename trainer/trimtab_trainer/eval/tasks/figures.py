"""Benchmarks of lm-eval as the alignment tax (InstructGPT 4.2, table 14): figures of models, and what they lost.

Pure functions over the figures of every document, as lm-eval writes them with `--log_samples`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.errors import ConfigError, DataError
from trimtab_trainer.data.readers import stream_rows
from trimtab_trainer.eval.clusters import Measure
from trimtab_trainer.evaluation import LEAST_CLUSTERS

__all__ = [
    "TASKS",
    "DocumentFigures",
    "Metric",
    "Task",
    "check_rows",
    "document_figures",
    "parse_tasks",
    "task_figures",
]

DocumentFigures = Mapping[int, float]
"""One metric of one task by document; a document that it says nothing of is not there."""


@dataclass(frozen=True)
class Metric:
    """A metric of a task: its name, and whether its value is exp(-mean) over documents, a perplexity, or the mean."""

    name: str
    is_perplexity: bool = False


@dataclass(frozen=True)
class Task:
    """A task of `lm_eval_tasks`: its name, metrics, and the fields that its rows must have."""

    name: str
    metrics: tuple[Metric, ...]
    fields: tuple[str, ...]


TASKS = {
    task.name: task
    for task in (
        Task("hellaswag", (Metric("acc"), Metric("acc_norm")), ("activity_label", "endings", "label")),
        Task("lambada", (Metric("acc"), Metric("perplexity", is_perplexity=True)), ("text",)),
        Task(
            "squad_v2",
            tuple(Metric(name) for name in ("f1", "exact", "HasAns_f1", "HasAns_exact", "NoAns_exact")),
            ("title", "context", "question", "answers"),
        ),
        Task("drop", (Metric("f1"), Metric("em")), ("query_id", "passage", "question", "answer", "validated_answers")),
    )
}


def parse_tasks(texts: Sequence[str]) -> dict[str, Path]:
    """Files by task, each text NAME=FILE.

    Raises:
        ConfigError: an unknown name, one named twice, or no such file.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, _, file = text.partition("=")
        if name not in TASKS or not file:
            limit = f"NAME=FILE, NAME one of {', '.join(TASKS)}"
            raise ConfigError(f"task: {text!r}: allowed: {limit}", field="task", value=text, limit=limit)
        if name in found:
            raise ConfigError(f"task: {name} is named twice", field="task", value=name)
        if not Path(file).is_file():
            raise ConfigError(f"task: {name}: {file}: no such file", field="task", value=file)
        found[name] = Path(file)
    return found


def check_rows(task: str, path: Path) -> None:
    """Refuses a file that lm-eval would fail on.

    Raises:
        DataError: names line and field.
    """

    def check(row: Mapping[str, Any]) -> None:
        for field in TASKS[task].fields:
            if row.get(field) is None:
                raise DataError(f"{field} is missing", field=field)

    for _ in stream_rows(path, check):
        pass


def document_figures(task: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, DocumentFigures]:
    """Metrics of a task by document.

    Args:
        task: of `TASKS`.
        rows: of lm-eval's samples file.

    Raises:
        DataError: a metric is missing, or a document is there twice.
    """
    found: dict[str, dict[int, float]] = {metric.name: {} for metric in TASKS[task].metrics}
    for row in rows:
        for name, values in found.items():
            if name not in row:
                raise DataError(f"lm-eval: {task}: a document has no {name}", field=name)
            if row["doc_id"] in values:
                raise DataError(f"lm-eval: {task}: document {row['doc_id']} is there twice", field="doc_id")
            if row[name] is not None:
                values[row["doc_id"]] = float(row[name])
    return {name: values for name, values in found.items() if values}


def task_figures(
    task: str,
    found: Mapping[str, DocumentFigures],
    baseline: Mapping[str, DocumentFigures] | None,
    *,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """The figures of a model on a task; every interval by bootstrap over documents.

    Args:
        task: of `TASKS`.
        found: the model's figures by metric and document.
        baseline: another model's over the same documents; None where it is the baseline itself.
        samples: bootstrap resamples.
        seed: of the bootstrap.

    Returns:
        For each metric `value`, `low`, `high` (None below 5 documents), `documents`, and against a baseline `delta`,
        this minus the baseline, with `value`, `low`, `high`: both are computed on the same resampled documents.

    Raises:
        DataError: the two were measured on different documents.
    """
    figures: dict[str, Any] = {}
    for metric in TASKS[task].metrics:
        if metric.name not in found:
            continue
        of_model = found[metric.name]
        documents = sorted(of_model)
        values = _array(of_model, documents)
        drawn = np.random.default_rng(seed).integers(0, len(documents), size=(samples, len(documents)))
        figures[metric.name] = {
            **asdict(_measure(_value(metric, values), _value(metric, values[drawn]), len(documents))),
            "documents": len(documents),
        }
        if baseline is not None:
            of_baseline = baseline.get(metric.name, {})
            if sorted(of_baseline) != documents:
                raise DataError(f"{task}: {metric.name} of the baseline is of other documents", field=metric.name)
            theirs = _array(of_baseline, documents)
            figures[metric.name]["delta"] = asdict(
                _measure(
                    _value(metric, values) - _value(metric, theirs),
                    _value(metric, values[drawn]) - _value(metric, theirs[drawn]),
                    len(documents),
                )
            )
    return figures


def _array(of_metric: DocumentFigures, documents: Sequence[int]) -> npt.NDArray[np.float64]:
    return np.array([of_metric[document] for document in documents], np.float64)


def _value(metric: Metric, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[...] over [..., document]."""
    means: npt.NDArray[np.float64] = values.mean(axis=-1)
    return np.exp(-means) if metric.is_perplexity else means


def _measure(value: npt.NDArray[np.float64], resampled: npt.NDArray[np.float64], documents: int) -> Measure:
    if documents < LEAST_CLUSTERS:
        return Measure(float(value), None, None)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Measure(float(value), float(low), float(high))
