"""The few file operations that the store needs, over a local folder or over anything that fsspec knows.

A write appears whole or not at all: locally a temporary file is flushed to disk and renamed, and its folder flushed
too; an object store's own write has that property.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import fsspec

from trimtab.errors import ConfigError, NotFound

__all__ = ["Files", "LocalFiles", "RemoteFiles", "Upload", "open_files"]

CHUNK_BYTES = 1024 * 1024
_TEMPORARY = "tmp"


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
        """Seconds since a file was last written, `now` as of `time.time()`."""
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


def open_files(store: str) -> Files:
    """Opens a store by folder or URL.

    Raises:
        ConfigError: the folder cannot be made, or fsspec does not know the URL or lacks a package for it.
    """
    if "://" not in store:
        return LocalFiles(Path(store))
    if store.startswith(("file://", "local://")):
        return LocalFiles(Path(store.partition("://")[2]))
    try:
        filesystem, root = fsspec.core.url_to_fs(store)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"store: {store}: {error}", field="store", value=store) from None
    return RemoteFiles(filesystem, root)


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
            (self.root / _TEMPORARY).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"store: {root}: {error.strerror or error}", field="store", value=root) from None

    def read(self, path: str) -> bytes:
        """As `Files.read`."""
        try:
            return (self.root / path).read_bytes()
        except FileNotFoundError:
            raise _missing(path) from None

    def chunks(self, path: str, start: int, length: int) -> Iterator[bytes]:
        """As `Files.chunks`."""
        try:
            with (self.root / path).open("rb") as file:
                file.seek(start)
                while length > 0 and (chunk := file.read(min(CHUNK_BYTES, length))):
                    length -= len(chunk)
                    yield chunk
        except FileNotFoundError:
            raise _missing(path) from None

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
            raise _missing(path) from None

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
        for path in (self.root / _TEMPORARY).iterdir():
            path.unlink()

    def temporary(self) -> Path:
        """A new name for bytes on their way."""
        return self.root / _TEMPORARY / uuid.uuid4().hex

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
        self._file.close()
        self._path.unlink(missing_ok=True)


class RemoteFiles:
    """Files of an fsspec file system whose writes appear whole, as those of object stores do.

    Args:
        filesystem: an fsspec file system.
        root: folder or bucket prefix within it.
    """

    def __init__(self, filesystem: Any, root: str) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")

    def read(self, path: str) -> bytes:
        """As `Files.read`."""
        try:
            return bytes(self._fs.cat_file(self._at(path)))
        except FileNotFoundError:
            raise _missing(path) from None

    def chunks(self, path: str, start: int, length: int) -> Iterator[bytes]:
        """As `Files.chunks`."""
        size = self.size(path)
        if size is None:
            raise _missing(path)
        end = min(size, start + length)
        step = 8 * CHUNK_BYTES  # each piece is a request of its own
        for at in range(start, end, step):
            try:
                yield bytes(self._fs.cat_file(self._at(path), start=at, end=min(at + step, end)))
            except FileNotFoundError:
                raise _missing(path) from None

    def write(self, path: str, content: bytes) -> None:
        """As `Files.write`."""
        self._make_parent(path)
        self._fs.pipe_file(self._at(path), content)

    def upload(self) -> Upload:
        """As `Files.upload`."""
        return _RemoteUpload(self)

    def size(self, path: str) -> int | None:
        """As `Files.size`."""
        self._fs.invalidate_cache()
        try:
            return int(self._fs.info(self._at(path))["size"])
        except FileNotFoundError:
            return None

    def age_s(self, path: str, now: float) -> float:
        """As `Files.age_s`."""
        try:
            return now - float(self._fs.modified(self._at(path)).timestamp())
        except FileNotFoundError:
            raise _missing(path) from None

    def list(self, folder: str) -> list[str]:
        """As `Files.list`."""
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(self._at(folder))
        except FileNotFoundError:
            return []
        return sorted(str(path)[len(self._root) :].lstrip("/") for path in found)

    def remove(self, path: str) -> None:
        """As `Files.remove`."""
        try:
            self._fs.rm_file(self._at(path))
        except FileNotFoundError:
            pass

    def local_path(self, path: str) -> Path | None:
        """As `Files.local_path`."""
        return None

    def clear_temporary(self) -> None:
        """As `Files.clear_temporary`."""
        for path in self.list(_TEMPORARY):
            self.remove(path)

    def open_temporary(self) -> tuple[str, IO[bytes]]:
        """A new file for bytes on their way, and its path."""
        path = f"{_TEMPORARY}/{uuid.uuid4().hex}"
        self._make_parent(path)
        return path, self._fs.open(self._at(path), "wb")

    def move(self, source: str, target: str) -> None:
        """Moves a file; object stores copy it within themselves."""
        self._make_parent(target)
        self._fs.mv(self._at(source), self._at(target))

    def _make_parent(self, path: str) -> None:
        self._fs.makedirs(self._at(path).rpartition("/")[0], exist_ok=True)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"


class _RemoteUpload:
    def __init__(self, files: RemoteFiles) -> None:
        self._files = files
        self._path, self._file = files.open_temporary()

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)

    def commit(self, path: str) -> None:
        self._file.close()
        self._files.move(self._path, path)

    def discard(self) -> None:
        self._file.close()
        self._files.remove(self._path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _missing(path: str) -> NotFound:
    return NotFound(f"{path}: not in the store", field="path", value=path)
