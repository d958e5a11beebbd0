"""What people said of answers whose source is known: labels as the labeling service exports them.

A row is one of the dataset format for rankings with `labels`, of a project that ranks or compares. Its `sources` say
where each answer comes from; labelers never saw them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from trimtab.errors import ConfigError, DataError
from trimtab_trainer.data.on_disk import digest
from trimtab_trainer.data.readers import stream_rows
from trimtab_trainer.data.records import Ranking, prompt_key
from trimtab_trainer.eval.preference.bootstrap import Bootstrap

__all__ = ["BY", "Label", "bootstrap_of", "contestants_of", "read_labels"]

BY = ("model", "version", "temperature", "system")
"""What can make the name of a contestant: fields of `sources`, or the row's list `systems`."""
_OTHERWISE = {
    "sources": "; it has `systems`: name contestants by system",
    "systems": "; it has `sources`: name contestants by model",
}


@dataclass(frozen=True)
class Label:
    """What one labeler said of the answers to one prompt.

    Attributes:
        prompt: equal for labels of the same prompt.
        labeler, group: who, and of which group ("" for none).
        category: use case of the prompt; "" when not known.
        contestants: whose each answer is.
        ranks: of each answer; 0 is best, ties share one.
        ratings: of each answer, 1 to 7; empty when none were given.
        flags: answered questions on each answer; empty when none were.
        order: index of the answer at each place of the labeler's page; empty when not known.
    """

    prompt: str
    labeler: str
    group: str
    category: str
    contestants: tuple[str, ...]
    ranks: tuple[int, ...]
    ratings: tuple[int, ...]
    flags: tuple[Mapping[str, bool], ...]
    order: tuple[int, ...]


def read_labels(
    files: Sequence[Path], by: Sequence[str], *, groups: Sequence[str], skip_bad_rows: int, warn: Callable[[str], None]
) -> list[Label]:
    """The labels of exported files.

    A row that comes again in its file replaces the earlier one, as an export that follows a project writes it. A
    labeler's label of the same answers to the same prompt that stands in two files is refused, since it would count
    twice; names of tasks are of one project and tell nothing between files.

    Args:
        files: of the labeling service's export, or of that form.
        by: of `BY`; what makes the name of a contestant.
        groups: only labelers of these; empty for all.
        skip_bad_rows: bad rows tolerated in each file.
        warn: takes one sentence for each of them.

    Raises:
        ConfigError: `by` mixes `system` with others; no such file; no label of these groups.
        DataError: a bad row more than tolerated, or a label that stands in two files.
    """
    if "system" in by and len(by) > 1:
        raise ConfigError("by: system stands alone, without fields of sources", field="by", value=",".join(by))
    labels: list[Label] = []
    seen: dict[tuple[bytes, str], tuple[int, str]] = {}
    for number, file in enumerate(files):
        rows: dict[str, tuple[int, _Row]] = {}
        parsed = stream_rows(file, partial(_parsed, by=by), skip_bad_rows=skip_bad_rows, warn=warn)
        for line, row in parsed:
            rows[row.task_key or f"line {line}"] = line, row
        for line, row in rows.values():
            _refuse_known(seen, row, number, f"{file}:{line}")
            labels += [label for label in row.labels if not groups or label.group in groups]
    if not labels:
        raise ConfigError(
            f"group: no label of {', '.join(groups)} in {', '.join(map(str, files))}", field="group", value=groups
        )
    return labels


def contestants_of(labels: Sequence[Label], baseline: str | None = None) -> list[str]:
    """Names of all contestants, in order.

    Raises:
        ConfigError: the baseline is none of them.
    """
    names = sorted({name for label in labels for name in label.contestants})
    if baseline is not None and baseline not in names:
        known = ", ".join(names)
        raise ConfigError(f"baseline: {baseline}; the contestants are {known}", field="baseline", value=baseline)
    return names


def bootstrap_of(labels: Sequence[Label], *, samples: int, seed: int) -> Bootstrap:
    """The bootstrap over the prompts and labelers of some labels."""
    prompts, labelers = [label.prompt for label in labels], [label.labeler for label in labels]
    return Bootstrap(prompts, labelers, samples=samples, seed=seed)


class _Row(NamedTuple):
    """The name of a task, "" for none; a digest of prompt and answers; the labels."""

    task_key: str
    item: bytes
    labels: tuple[Label, ...]


def _refuse_known(seen: dict[tuple[bytes, str], tuple[int, str]], row: _Row, file: int, place: str) -> None:
    for label in row.labels:
        known, before = seen.setdefault((row.item, label.labeler), (file, place))
        if known != file:
            raise DataError(
                f"{place}: labels: {label.labeler}'s label of the same answers is in {before} already and would count "
                "twice",
                field="labels",
                value=label.labeler,
            )


def _parsed(row: Mapping[str, Any], by: Sequence[str]) -> _Row:
    ranking = Ranking.from_row(row)
    contestants = _contestants(row, by, len(ranking.answers))
    said = row.get("labels")
    if not isinstance(said, list):
        raise DataError("labels is missing: who said what of the answers", field="labels")
    labels = []
    for index, (one, labeling) in enumerate(zip(said, ranking.labelings, strict=True)):
        field, count = f"labels[{index}]", len(ranking.answers)
        if not labeling.labeler:
            raise DataError(f"{field}.labeler must not be empty: intervals need it", field=f"{field}.labeler")
        labels.append(
            Label(
                ranking.prompt_id,
                labeling.labeler,
                labeling.group,
                ranking.category,
                contestants,
                labeling.ranks,
                _each(f"{field}.ratings", one.get("ratings"), count, "a whole number, 1..7", _is_rating),
                _each(f"{field}.flags", one.get("flags"), count, "an object of true and false", _is_flags),
                _order(f"{field}.order", one.get("order"), count),
            )
        )
    key = row.get("task_key")
    if not isinstance(key or "", str):
        raise DataError(f"task_key must be a text, found {type(key).__name__}", field="task_key")
    item = digest(json.dumps([prompt_key(ranking.prompt), *sorted(ranking.answers)]))
    return _Row(key or "", item, tuple(labels))


def _contestants(row: Mapping[str, Any], by: Sequence[str], count: int) -> tuple[str, ...]:
    if "system" in by:
        return _each("systems", _there(row, "systems"), count, "a text that is not empty", _is_name)
    sources = _each("sources", _there(row, "sources"), count, "an object with `model`", _is_source)
    return tuple(_name(source, by) for source in sources)


def _there(row: Mapping[str, Any], field: str) -> Any:
    if not row.get(field):
        if row.get("sources" if field == "systems" else "systems"):
            other = _OTHERWISE[field]
        else:
            other = "; labels of people have `sources` where the tasks of their project had them"
        raise DataError(
            f"{field} is missing: whose answers these are{other}; --skip-bad-rows N leaves out up to N such rows",
            field=field,
        )
    return row[field]


def _name(source: Mapping[str, Any], by: Sequence[str]) -> str:
    """Such as `ppo@9:t0.7`: version 0, which a folder without versions has, is left out."""
    model = source["model"] if "model" in by else ""
    version = f"@{source['version']}" if "version" in by and source.get("version") else ""
    temperature = f":t{source.get('temperature', 0):g}" if "temperature" in by else ""
    return f"{model}{version}{temperature}"


def _each(field: str, values: Any, count: int, expected: str, is_right: Callable[[Any], bool]) -> tuple[Any, ...]:
    """A value for each answer, or none at all."""
    if values is None or values == []:
        return ()
    if not isinstance(values, list) or len(values) != count:
        found = f"{len(values)} values" if isinstance(values, list) else type(values).__name__
        raise DataError(f"{field} must have one value for each of {count} answers, found {found}", field=field)
    for index, value in enumerate(values):
        if not is_right(value):
            raise DataError(f"{field}[{index}] must be {expected}", field=f"{field}[{index}]", value=str(value)[:80])
    return tuple(values)


def _order(field: str, values: Any, count: int) -> tuple[int, ...]:
    order: tuple[int, ...] = _each(field, values, count, "an index of an answer", _is_whole)
    if order and sorted(order) != list(range(count)):
        raise DataError(f"{field} must name each of {count} answers once, from 0", field=field, value=str(values))
    return order


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_rating(value: Any) -> bool:
    return _is_whole(value) and 1 <= value <= 7


def _is_flags(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(answer, bool) for answer in value.values())


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_source(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and _is_name(value.get("model"))
        and _is_whole(value.get("version", 0))
        and isinstance(value.get("temperature", 0), int | float)
    )
