"""What was drawn so far, on disk: an interrupted drawing goes on where it stopped, without a loss and without doubles.

JSON lines. The first has the settings and the name of the import; each other one answer, written before it is used, so
that a process killed at any moment has lost none that it counted. A last line that was cut off is drawn again.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from trimtab.errors import ConfigError, DataError, FailedPrecondition

__all__ = ["Drawn", "Journal", "Place", "opened_journal"]

Parsed = TypeVar("Parsed")
Place = tuple[int, int, int]
"""Number of the prompt, place of the answer, number of the try; all from 0."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One completion and, as JSON, where it came from."""

    text: str
    source: Mapping[str, Any]


class Journal:
    """An open journal.

    Attributes:
        import_id: name of the import that its tasks are added by.
        drawn: every answer so far.

    Args:
        path: of the file.
        file: the same, open to append.
        import_id: of its first line.
        drawn: of its other lines.
    """

    def __init__(self, path: Path, file: IO[bytes], import_id: str, drawn: dict[Place, Drawn]) -> None:
        self._path = path
        self._file = file
        self.import_id = import_id
        self.drawn = drawn

    def add(self, place: Place, drawn: Drawn) -> None:
        """Keeps an answer; it is on the disk afterwards."""
        _write(self._file, {"place": place, "text": drawn.text, "source": drawn.source})
        self.drawn[place] = drawn

    def remove(self) -> None:
        """Once nobody needs it any more."""
        self._path.unlink()


@contextmanager
def opened_journal(path: Path, settings: Mapping[str, Any]) -> Iterator[Journal]:
    """The journal of a file, begun or continued; no other process can have it at the same time.

    Args:
        path: of the file.
        settings: what decides what is drawn, as JSON.

    Raises:
        ConfigError: it has answers and was begun with other settings; names the first that differs.
        DataError: names file and line of what is no journal.
        FailedPrecondition: another process is drawing to it.
    """
    with path.open("a+b") as file:
        _hold(file, path)
        file.seek(0)
        *lines, cut_off = file.read().split(b"\n")
        if cut_off:
            file.truncate(sum(len(line) + 1 for line in lines))
        begun, import_id = _parsed(path, 1, lines[0], _beginning) if lines else ({}, "")
        if len(lines) > 1:
            _refuse_others(path, begun, settings)
            drawn = dict(_parsed(path, number, line, _answer) for number, line in enumerate(lines[1:], 2))
        else:  # without an answer it binds nobody
            file.truncate(0)
            import_id, drawn = f"draw-{secrets.token_hex(16)}", {}
            _write(file, {"settings": settings, "import_id": import_id})
        yield Journal(path, file, import_id, drawn)


def _hold(file: IO[bytes], path: Path) -> None:
    import fcntl  # of POSIX only; the other commands run elsewhere too

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FailedPrecondition(f"{path}: another process is drawing to it", field="out", value=path) from None


def _beginning(row: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    return dict(row["settings"]), str(row["import_id"])


def _refuse_others(path: Path, begun: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if (before := begun.get(name)) == value:
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            _refuse_others(path, before, value)
            continue
        raise ConfigError(
            f"{path}: it was begun with {_option(name, before)}, and this is {_option(name, value)}; go on with the "
            "same, or name another --out",
            field=name,
            value=value,
            limit=before,
        )


def _option(name: str, value: Any) -> str:
    """A setting as the command line has it."""
    if name == "contestants" and isinstance(value, list):
        return "; ".join(
            f"{model}{'' if version is None else f'@{version}'} --temperature {temperature:g}"
            + "".join(f" --few-shot-stop {json.dumps(stop)}" for stop in stops)
            for model, version, temperature, stops in value
        )
    if name == "prompts":
        return f"--prompts of SHA-256 {value!s:.12}"
    return f"PROJECT {value}" if name == "project" else f"--{name.replace('_', '-')} {value}"


def _answer(row: Mapping[str, Any]) -> tuple[Place, Drawn]:
    prompt, place, attempt = map(int, row["place"])
    return (prompt, place, attempt), Drawn(str(row["text"]), dict(row["source"]))


def _parsed(path: Path, number: int, line: bytes, read: Callable[[Any], Parsed]) -> Parsed:
    try:
        return read(json.loads(line))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}:{number}: no line of a drawing ({error!r}); move the file away to draw anew",
            field="line",
            value=number,
        ) from None


def _write(file: IO[bytes], line: Mapping[str, Any]) -> None:
    file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    file.flush()
    os.fsync(file.fileno())
