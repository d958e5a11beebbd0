"""A blob that is being read, whole or a part: an open file on this host's disk, or an object elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from trimtab_services.weights.files import CHUNK_BYTES, Files

__all__ = ["OpenBlob", "open_blob", "open_file"]


class OpenBlob:
    """Readable until it is closed, on a local disk even when it is pruned meanwhile.

    Args:
        read: returns bytes [start, start + length) of the object that it is a part of, in pieces.
        start: first byte of that which belongs to it.
        size: its bytes.
        file: the object, where it is an open file on this host's disk.
    """

    def __init__(
        self, read: Callable[[int, int], Iterator[bytes]], *, start: int, size: int, file: IO[bytes] | None = None
    ) -> None:
        self.file = file
        self.start = start
        self.size = size
        self._read = read

    def chunks(self, start: int, length: int) -> Iterator[bytes]:
        """Its bytes [start, start + length), in pieces."""
        return self._read(self.start + start, length)

    def close(self) -> None:
        """Lets go of the file."""
        if self.file is not None:
            self.file.close()


def open_blob(files: Files, path: str, *, start: int = 0, length: int | None = None) -> OpenBlob | None:
    """Opens a blob; None when it is not there.

    Args:
        files: the store's files.
        path: of the blob among them.
        start, length: the part of it that is to be read; None: to its end.
    """
    local = files.local_path(path)
    if local is not None:
        return open_file(local, start=start, length=length)
    size = files.size(path)
    if size is None:
        return None
    return OpenBlob(partial(files.chunks, path), start=start, size=size - start if length is None else length)


def open_file(path: Path, *, start: int = 0, length: int | None = None) -> OpenBlob | None:
    """As `open_blob`, of a file on this host's disk."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    size = os.fstat(file.fileno()).st_size
    return OpenBlob(partial(_pieces, file), start=start, size=size - start if length is None else length, file=file)


def _pieces(file: IO[bytes], start: int, length: int) -> Iterator[bytes]:
    while length > 0 and (piece := os.pread(file.fileno(), min(CHUNK_BYTES, length), start)):
        start, length = start + len(piece), length - len(piece)
        yield piece
