"""Pieces of a run's log, run.log in the run's folder: that of its process, or a copy of that of its first pod."""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import Any

from trimtab.errors import InvalidRequest

__all__ = ["MOST_OUTPUT_BYTES", "MOST_PIECE_BYTES", "check_offset", "read_end", "read_output", "read_piece"]

MOST_PIECE_BYTES = 256 * 1024
MOST_OUTPUT_BYTES = 64 * 1024
"""Bytes that are shown of the end of a process's output."""


def check_offset(directory: Path, offset: int) -> None:
    """Refuses to read from before the log, or from behind its end.

    Raises:
        InvalidRequest: names the offset and the log's size.
    """
    try:
        size = os.stat(_log_of(directory)).st_size
    except FileNotFoundError:
        size = 0
    if not 0 <= offset <= size:
        raise InvalidRequest(
            f"offset_bytes: {offset} is not in 0..{size}, the size of the log",
            field="offset_bytes",
            value=offset,
            limit=size,
        )


def read_piece(directory: Path, offset: int) -> bytes:
    """At most MOST_PIECE_BYTES from a byte on; empty where there is no more, or no log yet."""
    try:
        with _log_of(directory).open("rb") as file:
            file.seek(offset)
            return file.read(MOST_PIECE_BYTES)
    except FileNotFoundError:
        return b""


def read_end(path: Path, most_bytes: int) -> tuple[str, int]:
    """The end of a log, and the size of all of it.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - most_bytes))
        return file.read(most_bytes).decode(errors="replace"), size


def read_output(directory: Path, after: int) -> dict[str, Any] | None:
    """A piece of the log from byte `after` on, or, where there is more than MOST_OUTPUT_BYTES of it, of its end.

    Returns:
        `{text, begin, end, size}`: the bytes `begin` to `end` of `size`, where `end` leaves out half a character; None
        where there is no log.
    """
    try:
        with _log_of(directory).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = after if 0 <= size - after <= MOST_OUTPUT_BYTES else max(0, size - MOST_OUTPUT_BYTES)
            file.seek(begin)
            piece = file.read(size - begin)
    except FileNotFoundError:
        return None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(piece)
    half = len(decoder.getstate()[0])
    return {"text": text, "begin": begin, "end": begin + len(piece) - half, "size": size}


def _log_of(directory: Path) -> Path:
    return directory / "run.log"
