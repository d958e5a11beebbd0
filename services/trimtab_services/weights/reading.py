"""A blob that is being read, whole or a part: an open file on this host's disk, or an object elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from trimtab_services.weights.files import CHUNK_BYTES, Files

__all__ = ["OpenBlob", "open_blob", "open_file"]


class OpenBlob:
    """Readable until it is closed, on a local disk even when it is pruned meanwhile.

    Args:
        files: the store's files.
        path: of the object among them.
        file: the open file instead; None in an object store.
        start: first byte that belongs to it.
        size: its bytes.
    """

    def __init__(self, files: Files, path: str, file: IO[bytes] | None, *, start: int, size: int) -> None:
        self.file = file
        self.start = start
        self.size = size
        self._files = files
        self._path = path

    def chunks(self, start: int, length: int) -> Iterator[bytes]:
        """Its bytes [start, start + length), in pieces."""
        start += self.start
        if self.file is None:
            yield from self._files.chunks(self._path, start, length)
            return
        while length > 0 and (chunk := os.pread(self.file.fileno(), min(CHUNK_BYTES, length), start)):
            start, length = start + len(chunk), length - len(chunk)
            yield chunk

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
    file = None
    if local is None:
        size = files.size(path)
    else:
        try:
            file = local.open("rb")
        except FileNotFoundError:
            return None
        size = os.fstat(file.fileno()).st_size
    if size is None:
        return None
    return OpenBlob(files, path, file, start=start, size=size - start if length is None else length)


def open_file(files: Files, path: Path) -> OpenBlob | None:
    """Opens a file that lies beside the store's; None when it is not there."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    return OpenBlob(files, "", file, start=0, size=os.fstat(file.fileno()).st_size)
