"""Benchmarks of lm-eval as the alignment tax (InstructGPT 4.2, table 14): figures of models, and what they lost.

Pure functions over the figures of every document, as lm-eval writes them with `--log_samples`. Questions on one text
are no independent draws, so intervals come from a bootstrap over texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.errors import ConfigError, DataError
from trimtab_trainer.bootstrap import LEAST_CLUSTERS, percentile_interval, resampled_sums
from trimtab_trainer.data.readers import stream_rows
from trimtab_trainer.eval.clusters import Measure

__all__ = [
    "TASKS",
    "DocumentFigures",
    "Metric",
    "Task",
    "check_rows",
    "document_figures",
    "document_texts",
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
    """A task of `lm_eval_tasks`.

    Attributes:
        name: of the task.
        metrics: that it has.
        fields: that its rows must have.
        cluster: the field with the text that a document asks about; "" where each has its own.
    """

    name: str
    metrics: tuple[Metric, ...]
    fields: tuple[str, ...]
    cluster: str = ""


TASKS = {
    task.name: task
    for task in (
        Task("hellaswag", (Metric("acc"), Metric("acc_norm")), ("activity_label", "endings", "label")),
        Task("lambada", (Metric("acc"), Metric("perplexity", is_perplexity=True)), ("text",)),
        Task(
            "squad_v2",
            tuple(Metric(name) for name in ("f1", "exact", "HasAns_f1", "HasAns_exact", "NoAns_exact")),
            ("title", "context", "question", "answers"),
            "context",
        ),
        Task(
            "drop",
            (Metric("f1"), Metric("em")),
            ("query_id", "passage", "question", "answer", "validated_answers"),
            "passage",
        ),
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


def document_texts(task: str, rows: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """The text that each document asks about; a name of its own where no other asks about the same.

    Args:
        task: of `TASKS`.
        rows: of lm-eval's samples file.
    """
    field = TASKS[task].cluster
    return {row["doc_id"]: row["doc"][field] if field else str(row["doc_id"]) for row in rows}


def task_figures(
    task: str,
    found: Mapping[str, DocumentFigures],
    baseline: Mapping[str, DocumentFigures] | None,
    texts: Mapping[int, str],
    *,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """The figures of a model on a task; every interval by bootstrap over the texts that documents ask about.

    Args:
        task: of `TASKS`.
        found: the model's figures by metric and document.
        baseline: another model's over the same documents; None where it is the baseline itself.
        texts: of `document_texts`.
        samples: bootstrap resamples.
        seed: of the bootstrap.

    Returns:
        For each metric `value`, `low`, `high` (None below 5 texts), `documents`, `texts`, and against a baseline
        `delta`, this minus the baseline, with `value`, `low`, `high`: both are computed on the same resampled texts.

    Raises:
        DataError: the two were measured on different documents.
    """
    figures: dict[str, Any] = {}
    for metric in TASKS[task].metrics:
        if metric.name not in found:
            continue
        of_model = found[metric.name]
        documents = sorted(of_model)
        columns = [np.ones(len(documents)), _array(of_model, documents)]
        if baseline is not None:
            of_baseline = baseline.get(metric.name, {})
            if sorted(of_baseline) != documents:
                raise DataError(f"{task}: {metric.name} of the baseline is of other documents", field=metric.name)
            columns.append(_array(of_baseline, documents))
        of_text = _sums_by_text(columns, [texts[document] for document in documents])
        enough = len(of_text) >= LEAST_CLUSTERS
        value = _values(metric, of_text.sum(axis=0))
        over = _values(metric, resampled_sums(of_text, samples=samples, seed=seed)) if enough else None
        figures[metric.name] = {
            **_measure(value[0], over[0] if over is not None else None),
            "documents": len(documents),
            "texts": len(of_text),
        }
        if baseline is not None:
            delta = over[0] - over[1] if over is not None else None
            figures[metric.name]["delta"] = _measure(value[0] - value[1], delta)
    return figures


def _array(of_metric: DocumentFigures, documents: Sequence[int]) -> npt.NDArray[np.float64]:
    return np.array([of_metric[document] for document in documents], np.float64)


def _sums_by_text(columns: Sequence[npt.NDArray[np.float64]], texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """[text, column]."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    places = np.array([numbers[text] for text in texts])
    return np.stack([np.bincount(places, weights=column) for column in columns], axis=1).astype(np.float64)


def _values(metric: Metric, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[model, ...] over [..., column]: how many documents, and the sum over them of each model."""
    means: npt.NDArray[np.float64] = sums[..., 1:].T / sums[..., 0]
    return np.exp(-means) if metric.is_perplexity else means


def _measure(value: np.float64, resampled: npt.NDArray[np.float64] | None) -> dict[str, float | None]:
    low, high = percentile_interval(resampled) if resampled is not None else (None, None)
    return asdict(Measure(float(value), low, high))
