"""The few file operations that the store needs, and a local folder that has them; `remote` and `s3` have them too.

A write appears whole or not at all: locally a temporary file is flushed to disk and renamed, and its folder flushed
too; an object store's own write has that property.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

from trimtab.errors import ConfigError, NotFound

__all__ = [
    "CHUNK_BYTES",
    "TEMPORARY",
    "FileChanged",
    "Files",
    "LocalFiles",
    "SharedFiles",
    "Stamped",
    "Upload",
    "missing",
    "sizes",
]

CHUNK_BYTES = 1024 * 1024
_ASKED_AT_A_TIME = 16
TEMPORARY = "tmp"
"""Folder of uploads on their way."""


class Upload(Protocol):
    """Bytes on their way to a file that nobody sees before `commit`."""

    def write(self, chunk: bytes) -> None:
        """Adds bytes at the end."""
        ...

    def commit(self, path: str) -> None:
        """Makes the bytes the content of a file, on disk for good once this returns."""
        ...

    def discard(self) -> None:
        """Forgets the bytes; nothing happens after a commit."""
        ...


class Files(Protocol):
    """File operations; paths are relative to the store and joined by `/`. Missing files raise NotFound."""

    def read(self, path: str) -> bytes:
        """All bytes of a file."""
        ...

    def chunks(self, path: str, start: int, length: int) -> Iterator[bytes]:
        """Bytes [start, start + length) of a file, in pieces; fewer when the file ends before."""
        ...

    def write(self, path: str, content: bytes) -> None:
        """Replaces a file, whole or not at all; on disk for good once this returns."""
        ...

    def upload(self) -> Upload:
        """Begins to take the bytes of a file that is too large to be held."""
        ...

    def size(self, path: str) -> int | None:
        """Bytes of a file; None when it does not exist."""
        ...

    def age_s(self, path: str, now: float) -> float:
        """Seconds since a file was last written, by the clock of the store; `now` as of `time.time()` where that is
        this host's."""
        ...

    def list(self, folder: str) -> list[str]:
        """Paths of all files below a folder, at any depth; none when it does not exist."""
        ...

    def remove(self, path: str) -> None:
        """Removes a file; one that is gone already is no error."""
        ...

    def local_path(self, path: str) -> Path | None:
        """Where the file lies on this host's disk; None in an object store."""
        ...

    def clear_temporary(self) -> None:
        """Removes what uploads of an earlier life of this process left behind."""
        ...


@dataclass(frozen=True, slots=True)
class Stamped:
    """A small file as it was at one moment.

    Attributes:
        content: its bytes.
        stamp: another one after every write that changes it.
        age_s: seconds since it was last written, by the clock of the store.
    """

    content: bytes
    stamp: str
    age_s: float


class FileChanged(Exception):
    """A file is not what a conditional write expected it to be."""


@runtime_checkable
class SharedFiles(Files, Protocol):
    """Files that processes on several hosts write, without a kernel between them that could lock."""

    def read_stamped(self, path: str) -> Stamped:
        """A small file and what tells its states apart."""
        ...

    def replace(self, path: str, content: bytes, stamp: str | None) -> str:
        """Writes a small file if it still is what was seen; returns its new stamp.

        Args:
            path: of the file.
            content: its new bytes.
            stamp: of what it must be now; None: it must not exist.

        Raises:
            FileChanged: it is something else.
        """
        ...


class LocalFiles:
    """Files in a local folder.

    Args:
        root: the folder; made when it does not exist.

    Raises:
        ConfigError: it cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()
        try:
            (self.root / TEMPORARY).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"store: {root}: {error.strerror or error}", field="store", value=root) from None

    def read(self, path: str) -> bytes:
        """As `Files.read`."""
        try:
            return (self.root / path).read_bytes()
        except FileNotFoundError:
            raise missing(path) from None

    def chunks(self, path: str, start: int, length: int) -> Iterator[bytes]:
        """As `Files.chunks`."""
        try:
            with (self.root / path).open("rb") as file:
                file.seek(start)
                while length > 0 and (chunk := file.read(min(CHUNK_BYTES, length))):
                    length -= len(chunk)
                    yield chunk
        except FileNotFoundError:
            raise missing(path) from None

    def write(self, path: str, content: bytes) -> None:
        """As `Files.write`."""
        upload = self.upload()
        try:
            upload.write(content)
            upload.commit(path)
        finally:
            upload.discard()

    def upload(self) -> Upload:
        """As `Files.upload`."""
        return _LocalUpload(self)

    def size(self, path: str) -> int | None:
        """As `Files.size`."""
        try:
            return (self.root / path).stat().st_size
        except FileNotFoundError:
            return None

    def age_s(self, path: str, now: float) -> float:
        """As `Files.age_s`."""
        try:
            return now - (self.root / path).stat().st_mtime
        except FileNotFoundError:
            raise missing(path) from None

    def list(self, folder: str) -> list[str]:
        """As `Files.list`."""
        return sorted(p.relative_to(self.root).as_posix() for p in (self.root / folder).rglob("*") if p.is_file())

    def remove(self, path: str) -> None:
        """As `Files.remove`."""
        (self.root / path).unlink(missing_ok=True)

    def local_path(self, path: str) -> Path | None:
        """As `Files.local_path`."""
        return self.root / path

    def clear_temporary(self) -> None:
        """As `Files.clear_temporary`."""
        for path in (self.root / TEMPORARY).iterdir():
            path.unlink()

    def temporary(self) -> Path:
        """A new name for bytes on their way."""
        return self.root / TEMPORARY / uuid.uuid4().hex

    def move_into_place(self, temporary: Path, path: str) -> None:
        """Renames a flushed file and flushes the folders whose entries change."""
        target = self.root / path
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            for parent in target.parent.relative_to(self.root).parents:
                _sync_folder(self.root / parent)
        temporary.rename(target)
        _sync_folder(target.parent)


class _LocalUpload:
    def __init__(self, files: LocalFiles) -> None:
        self._files = files
        self._path = files.temporary()
        self._file: IO[bytes] = self._path.open("xb")

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)

    def commit(self, path: str) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._files.move_into_place(self._path, path)

    def discard(self) -> None:
        with suppress(OSError):  # a full disk does not take what is still buffered
            self._file.close()
        self._path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def missing(path: str) -> NotFound:
    """The error of a file that is not there."""
    return NotFound(f"{path}: not in the store", field="path", value=path)


def sizes(files: Files, paths: Iterable[str]) -> dict[str, int | None]:
    """Bytes of many files; None for those that do not exist. Of an object store many are asked for at a time."""
    paths = list(paths)
    if files.local_path("") is not None or len(paths) < 2:
        return {path: files.size(path) for path in paths}
    with ThreadPoolExecutor(_ASKED_AT_A_TIME) as pool:
        return dict(zip(paths, pool.map(files.size, paths), strict=True))
