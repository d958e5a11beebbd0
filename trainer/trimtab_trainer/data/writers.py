"""New dataset files: written beside their place and renamed when all of them are whole, so none is ever half there."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from trimtab.errors import ConfigError, DataError

__all__ = ["LineFile", "json_line", "new_files"]


def json_line(row: Mapping[str, Any]) -> bytes:
    """A row as a line of UTF-8.

    Raises:
        DataError: it has what JSON has not: bytes, dates, NaN, half a surrogate pair; or it is nested too deeply.
    """
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"the row cannot be written as JSON: {error}", field="row") from None


class LineFile:
    """A file of lines that is being written; `.gz` compresses it, the same rows to the same bytes."""

    def __init__(self, path: Path, raw: IO[bytes]) -> None:
        self._raw = raw
        compressed = path.suffix == ".gz"
        self._lines = gzip.GzipFile("", "wb", 6, raw, mtime=0) if compressed else raw

    def write(self, line: bytes) -> None:
        """Adds one line, its line end included."""
        self._lines.write(line)

    def finish(self) -> None:
        """Everything is on the disk after it."""
        if self._lines is not self._raw:
            self._lines.close()
        self._raw.flush()
        os.fsync(self._raw.fileno())


@contextmanager
def new_files(*paths: Path) -> Iterator[Sequence[LineFile]]:
    """Files to write, which get their names when the block ends well; otherwise none of them is there.

    Raises:
        ConfigError: one of them is there already, or two are the same.
    """
    if len(set(paths)) < len(paths):
        raise ConfigError(f"output: {paths[0]} is named twice", field="output", value=paths[0])
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path}: it is there already and is not replaced", field="output", value=path)
        path.parent.mkdir(parents=True, exist_ok=True)
    partial = [path.with_name(f".{path.name}.{os.getpid()}.partial") for path in paths]
    try:
        with ExitStack() as opened:
            files = [
                LineFile(path, opened.enter_context(place.open("wb")))
                for path, place in zip(paths, partial, strict=True)
            ]
            yield files
            for file in files:
                file.finish()
        for place, path in zip(partial, paths, strict=True):
            place.rename(path)
    finally:
        for place in partial:
            place.unlink(missing_ok=True)
