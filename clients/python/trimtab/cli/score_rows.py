"""Rows of `trimtab score`: how they are read, what in them is scored, and where the rewards go.

| a row with | gets |
| --- | --- |
| `prompt`, `completion` | `reward` |
| `messages` | `reward` |
| `prompt`, `chosen`, `rejected` | `reward_chosen`, `reward_rejected` |
| `prompt`, `answers` | `rewards` |

`reward_model` and `reward_version`, what scored it. A `prompt` is a text or a conversation, as `messages` are; all
else is text. A row that lacks these fields is bad (`DataError`); one that has them and that the contract or the service
refuses, since a completion is empty or too long, is a matter of that row (`InvalidRequest`).
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from trimtab.errors import DataError, InvalidRequest, TrimtabError
from trimtab.types import ScoreItem

__all__ = ["InputRow", "RowReader", "field_error"]

_TAKEN = {
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
    "chosen": ("prompt", "chosen", "rejected"),
    "answers": ("prompt", "answers"),
}
"""Fields that each form takes, under the one that tells it from the others."""

_GIVEN = {
    "completion": ("reward",),
    "messages": ("reward",),
    "chosen": ("reward_chosen", "reward_rejected"),
    "answers": ("rewards",),
}
_MODEL, _VERSION, _ERROR = "reward_model", "reward_version", "error"


@dataclass(frozen=True, slots=True)
class InputRow:
    """One row.

    Attributes:
        line: of the file, from 1.
        position: bytes of the file that had been read when the row was there.
        fields: all of them, in their order.
        form: which of the four forms it has: a key of the table above.
    """

    line: int
    position: int
    fields: Mapping[str, Any]
    form: str

    @property
    def names(self) -> tuple[str, ...]:
        """What is scored, by the name that errors have for it."""
        match self.form:
            case "chosen":
                return ("chosen", "rejected")
            case "answers":
                return tuple(f"answers[{index}]" for index in range(len(self.fields["answers"])))
        return (self.form,)

    def items(self) -> list[ScoreItem]:
        """One for each of `names`.

        Raises:
            InvalidRequest: an empty text, a conversation that does not end in an assistant turn, ...
        """
        made = []
        for name, content in self._contents():
            try:
                made.append(ScoreItem(**content))
            except InvalidRequest as error:
                raise field_error(name, error) from None
        return made

    def _contents(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if self.form == "messages":
            yield "messages", {"messages": self.fields["messages"]}
            return
        texts = self.fields["answers"] if self.form == "answers" else [self.fields[name] for name in self.names]
        for name, text in zip(self.names, texts, strict=True):
            yield name, {"prompt": self.fields["prompt"], "completion": text}

    def with_rewards(self, rewards: Sequence[float], model: str, version: int) -> dict[str, Any]:
        """The row to be written; rewards are those of `items`."""
        values = [list(rewards)] if self.form == "answers" else rewards
        return {**self.fields, **dict(zip(_GIVEN[self.form], values, strict=True)), _MODEL: model, _VERSION: version}

    def with_error(self, error: TrimtabError) -> dict[str, Any]:
        """The row to be written when it was refused."""
        shown = {
            "reason": error.reason.value,
            "message": error.message,
            "field": error.field,
            "value": error.value,
            "limit": error.limit,
        }
        return {**self.fields, _ERROR: shown}

    def is_origin_of(self, written: bytes) -> bool:
        """Whether a line that was written is this row with its rewards or its error."""
        try:
            found = json.loads(written)
        except ValueError:
            return False
        if not isinstance(found, dict):
            return False
        given = {*_GIVEN[self.form], _MODEL, _VERSION} if _VERSION in found else {_ERROR}
        kept = {key: value for key, value in found.items() if key not in given}
        # as text, since NaN is not equal to itself
        return given <= set(found) and json.dumps(kept) == json.dumps(self.fields)


def field_error(name: str, error: TrimtabError) -> TrimtabError:
    """The error of one thing that was scored, with the row's own name for it instead of its place in a request."""
    inner = error.field.partition("].")[2] if error.field.startswith("items[") else error.field
    outer, dot, rest = inner.partition(".")
    if outer.startswith(("prompt", "messages")):
        field = inner
    elif outer == "completion":
        field = f"{name}{dot}{rest}"
    else:
        field = name
    return error.at(field)


class RowReader:
    """Reads JSON lines, one at a time; a context manager.

    Args:
        file: JSON lines, `.gz` too; `-` is standard input.
        skip_bad_rows: bad rows that are left out, each of them told; one more is an error.
        warn: takes one sentence for each of them.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, file: Path, *, skip_bad_rows: int, warn: Callable[[str], None]) -> None:
        self.name = "standard input" if str(file) == "-" else str(file)
        self._skip_bad_rows = skip_bad_rows
        self._warn = warn
        self._open = ExitStack()
        self.byte_count: int | None = None
        """Length of the file; None where it is not known."""
        if str(file) == "-":
            self._raw = _standard_input()
        else:
            self._raw = self._open.enter_context(file.open("rb"))
            self.byte_count = file.stat().st_size or None
        self._lines: Iterator[bytes] = iter(self._raw)
        if file.suffix == ".gz":
            self._lines = iter(self._open.enter_context(gzip.GzipFile(fileobj=self._raw)))

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def rows(self) -> Iterator[InputRow]:
        """The rows that are good, in order.

        Raises:
            DataError: a bad row more than tolerated, or the file cannot be read on; names file and line.
        """
        bad = 0
        number = 0
        try:
            for number, line in enumerate(self._lines, 1):
                if not line.strip():
                    continue
                try:
                    fields = _parsed(line)
                    form = _form(fields)
                except DataError as error:
                    bad += 1
                    message = f"{self.name}:{number}: {error.message}"
                    if bad > self._skip_bad_rows:
                        tolerated = f"; {self._skip_bad_rows} bad rows are tolerated" if self._skip_bad_rows else ""
                        raise DataError(f"{message}{tolerated}", field=error.field, value=error.value) from None
                    self._warn(f"{message}; the row is left out")
                    continue
                yield InputRow(number, self._position(), fields, form)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{self.name}:{number + 1}: cannot be read: {error}", field="line") from None

    def _position(self) -> int:
        return 0 if self.byte_count is None else self._raw.tell()


def _standard_input() -> BinaryIO:
    """Apart from `sys.stdin`: a thread that waits in it holds a lock that the interpreter needs to end."""
    try:
        return open(os.dup(sys.stdin.fileno()), "rb")
    except OSError:  # what stands for it has no descriptor
        return sys.stdin.buffer


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_distinct)
    except UnicodeDecodeError as error:
        raise DataError(f"line: not UTF-8 at byte {error.start}", field="line") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"line: not a JSON object: {error}", field="line") from None
    if not isinstance(row, dict):
        raise DataError(f"line: a JSON object is expected, found {type(row).__name__}", field="line")
    return row


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ; json would keep the last of equal ones and drop the others without a word."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return made


def _form(fields: Mapping[str, Any]) -> str:
    """Which form a row has; raises DataError for none, for two, and where a result would overwrite a field."""
    found = [form for form in _TAKEN if form in fields]
    if len(found) != 1:
        what = (
            f"it has {' and '.join(found)}, and which to score is not clear" if found else "there is nothing to score"
        )
        allowed = " | ".join(" + ".join(taken) for taken in _TAKEN.values())
        raise DataError(f"row: {what}; exactly one of: {allowed}", field="row", limit=allowed)
    form = found[0]
    for name in _TAKEN[form]:
        _check(name, fields.get(name))
    for name in (*_GIVEN[form], _MODEL, _VERSION, _ERROR):
        if name in fields:
            raise DataError(f"{name}: the row has this field already, which a result would overwrite", field=name)
    return form


def _check(name: str, value: object) -> None:
    match name:
        case "prompt":
            allowed, fits = "a text or a list of messages", isinstance(value, str) or _is_list_of(dict, value)
        case "messages":
            allowed, fits = "a list of messages", _is_list_of(dict, value)
        case "answers":
            allowed, fits = "a list of texts", _is_list_of(str, value)
        case _:
            allowed, fits = "a text", isinstance(value, str)
    if not fits:
        raise DataError(f"{name}: must be {allowed}; found {type(value).__name__}", field=name, limit=allowed)


def _is_list_of(kind: type, value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, kind) for item in value)
