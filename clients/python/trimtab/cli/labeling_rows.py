"""Rows of `trimtab labeling import` and `draw`: read and checked as a whole before anything is sent.

A row is a JSON object with `prompt` or `messages`, `answers` where they are to be ranked or compared, and optionally
`task_key`, `context`, `category`, `user`, `overlap`, `sources` [{model, version, temperature, seed, sample_index}] and
`gold_ranking` (tie groups, best first: a qualification task). Rows of the dataset formats are such rows; what they have
besides is left out, and told; a field that is nearly one of these is an error.
"""

from __future__ import annotations

import difflib
import functools
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from trimtab.errors import DataError, InvalidRequest
from trimtab.v1 import labeling_pb2 as pb

__all__ = ["TaskRow", "in_file", "read_tasks"]

_TEXTS = ("task_key", "prompt", "context", "category", "user")
_TAKEN = (*_TEXTS, "messages", "answers", "sources", "overlap", "gold_ranking")
_SOURCE = {"model": str, "version": int, "temperature": float, "seed": int, "sample_index": int}
_NEAR = 0.9
"""Least likeness of a misspelt name; by it `content` and `context_id` are no `context`."""
_OTHERS = ("source",)
"""Fields of the dataset formats that are like a field of a task and are not one."""
_IN_IMPORT = re.compile(r"tasks\[(\d+)\]\.?(.*)")


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One row: the line of its file, from 1, and the task."""

    line: int
    task: pb.LabelTask


def read_tasks(path: Path, *, warn: Callable[[str], None]) -> list[TaskRow]:
    """All rows of a file (JSON lines, `.gz` too).

    Args:
        path: the file.
        warn: takes one sentence about fields that are left out.

    Raises:
        DataError: names file, line, field and reason of the first row that is wrong, or says that there is none.
        OSError: the file cannot be opened.
    """
    rows: list[TaskRow] = []
    left_out: set[str] = set()
    advice = ""
    for line, content in _lines(path):
        try:
            row = _parsed(content)
            rows.append(TaskRow(line, _task(row)))
        except DataError as error:
            raise DataError(f"{path}:{line}: {error.message}", field=error.field, value=error.value) from None
        left_out |= set(row) - set(_TAKEN)
        if row.get("systems") and not row.get("sources"):
            advice = '; a task keeps `systems` as `sources`: [{"model": NAME}, ...]'
    if not rows:
        raise DataError(f"{path}: it has no rows", field="rows", value=0, limit="at least 1")
    if left_out:
        warn(f"{path}: left out of the tasks are the fields {', '.join(sorted(left_out))}{advice}")
    return rows


def in_file(error: InvalidRequest, path: Path, rows: Sequence[TaskRow]) -> DataError | InvalidRequest:
    """What the service says of a task, with the file and line of its row instead of its number in the import."""
    found = _IN_IMPORT.fullmatch(error.field)
    if found is None:
        return error
    line, field = rows[int(found[1])].line, found[2]
    reason = error.message.removeprefix(f"{error.field}: ")
    return DataError(f"{path}:{line}: {field}: {reason}", field=field, value=error.value, limit=error.limit)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    try:
        with opened as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}:{number + 1}: cannot be read: {error}", field="line") from None


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"line: not UTF-8 at byte {error.start}", field="line") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"line: not a JSON object: {error}", field="line") from None
    if not isinstance(row, dict):
        raise DataError(f"line: a JSON object is expected, found {type(row).__name__}", field="line")
    return row


def _refuse_misspelt(row: Mapping[str, Any]) -> None:
    for name in row:
        if name not in _TAKEN and name not in _OTHERS:
            if near := _meant(name):
                raise DataError(f"{name}: no field of a task; is {near} meant?", field=name)


@functools.lru_cache(1024)
def _meant(name: str) -> str | None:
    return next(iter(difflib.get_close_matches(name.lower().replace("-", "_"), _TAKEN, 1, _NEAR)), None)


def _check_sources(sources: Any) -> None:
    expected = f"a mapping with {', '.join(_SOURCE)}"
    if not isinstance(sources, list):
        raise DataError(
            f"sources: a list is expected, of {expected} for each answer; got {sources!r:.80}", field="sources"
        )
    for index, one in enumerate(sources):
        if not isinstance(one, dict):
            raise DataError(f"sources[{index}]: {expected} is expected; got {one!r:.80}", field=f"sources[{index}]")
        for name, value in one.items():
            field = f"sources[{index}].{name}"
            if name not in _SOURCE:
                raise DataError(f"{field}: is no field of a source; {expected} is expected", field=field)
            wanted = _SOURCE[name]
            if value is None or (isinstance(value, str) and wanted is int and value.isdecimal()):
                continue  # the latter as protobuf writes 64-bit numbers into JSON
            if isinstance(value, bool) or not isinstance(value, (int, float) if wanted is float else wanted):
                kind = {str: "a text", int: "a whole number", float: "a number"}[wanted]
                raise DataError(f"{field}: must be {kind}; got {value!r:.80}", field=field, value=value)


def _task(row: Mapping[str, Any]) -> pb.LabelTask:
    _refuse_misspelt(row)
    values = {key: row[key] for key in _TAKEN if row.get(key) is not None}
    for field in _TEXTS:
        if not isinstance(values.get(field, ""), str):
            raise DataError(f"{field}: must be a text, found {type(values[field]).__name__}", field=field)
    if "sources" in values:
        _check_sources(values["sources"])
    if isinstance(values.get("gold_ranking"), list):
        values["gold_ranking"] = [{"indices": group} for group in values["gold_ranking"]]
    if isinstance(values.get("messages"), list):  # a turn may have more than role and content, as a tool's name
        values["messages"] = [
            {key: turn.get(key) for key in ("role", "content")} if isinstance(turn, dict) else turn
            for turn in values["messages"]
        ]
    for field, value in values.items():
        try:
            json_format.ParseDict({field: value}, pb.LabelTask())
        except (json_format.ParseError, ValueError, TypeError, AttributeError) as error:
            reason = str(error).removeprefix(f"Failed to parse {field} field: ")
            raise DataError(f"{field}: {reason}", field=field) from None
    return json_format.ParseDict(values, pb.LabelTask())
