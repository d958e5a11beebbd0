"""Files over anything that fsspec knows and whose writes appear whole, as those of object stores do; S3 is in `s3`.

Every answer is the store's own at that moment: fsspec's caches of listings are off. What a library raises becomes
NotFound or Unavailable.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from trimtab.errors import NotFound, TrimtabError, Unavailable
from trimtab_services.weights.files import CHUNK_BYTES, TEMPORARY, FileChanged, Stamped, Upload, missing

__all__ = ["PART_BYTES", "RemoteFiles"]

_log = logging.getLogger(__name__)

PART_BYTES = 16 * CHUNK_BYTES
"""What an upload holds in memory, a few times over while it is sent. S3 takes 10,000 parts, which are 156 GiB."""

_READ_BYTES = 8 * CHUNK_BYTES
"""Bytes of one request of a download."""


class RemoteFiles:
    """Files of an fsspec file system; those of `Files` and `SharedFiles`.

    A conditional write that must make the file is one request, which of two at once succeeds once, where the file
    system knows `mode="create"`. One that must replace what was seen looks first and writes then: two processes that do
    so within the same milliseconds both succeed, and the second stays.

    Args:
        filesystem: an fsspec file system without a cache of listings.
        root: folder or bucket prefix within it.
    """

    def __init__(self, filesystem: Any, root: str) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")

    def read(self, path: str) -> bytes:
        """As `Files.read`."""
        with self.asking(path):
            return bytes(self._fs.cat_file(self.at(path)))

    def chunks(self, path: str, start: int, length: int) -> Iterator[bytes]:
        """As `Files.chunks`."""
        end = start + length
        for begin in range(start, end, _READ_BYTES):
            stop = min(begin + _READ_BYTES, end)
            if piece := self.read_range(path, begin, stop):
                yield piece
            if len(piece) < stop - begin:
                return

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file in one request; fewer when the file ends before."""
        with self.asking(path):
            return bytes(self._fs.cat_file(self.at(path), start=start, end=stop))

    def write(self, path: str, content: bytes) -> None:
        """As `Files.write`."""
        self.put(path, content)

    def put(self, path: str, content: bytes) -> None:
        """Writes a file in one request, whatever was there."""
        with self.asking(path):
            self.make_parent(path)
            self._fs.pipe_file(self.at(path), content)

    def upload(self) -> Upload:
        """As `Files.upload`."""
        return _RemoteUpload(self)

    def size(self, path: str) -> int | None:
        """As `Files.size`."""
        try:
            with self.asking(path):
                return int(self._fs.info(self.at(path))["size"])
        except NotFound:
            return None

    def age_s(self, path: str, now: float) -> float:
        """As `Files.age_s`."""
        with self.asking(path):
            return now - float(self._fs.modified(self.at(path)).timestamp())

    def list(self, folder: str) -> list[str]:
        """As `Files.list`."""
        try:
            with self.asking(folder):
                found = self._fs.find(self.at(folder))
        except NotFound:
            return []
        paths = (str(path)[len(self._root) :].lstrip("/") for path in found)
        return sorted(path for path in paths if not path.endswith("/"))  # a console's mark of an empty folder

    def remove(self, path: str) -> None:
        """As `Files.remove`."""
        with suppress(NotFound), self.asking(path):
            self._fs.rm_file(self.at(path))

    def local_path(self, path: str) -> Path | None:
        """As `Files.local_path`."""
        return None

    def clear_temporary(self) -> None:
        """As `Files.clear_temporary`."""
        for path in self.list(TEMPORARY):
            self.remove(path)

    def read_stamped(self, path: str) -> Stamped:
        """As `SharedFiles.read_stamped`."""
        content = self.read(path)
        return Stamped(content, _stamp(content), self.age_s(path, time.time()))

    def replace(self, path: str, content: bytes, stamp: str | None) -> str:
        """As `SharedFiles.replace`; see the class for how far two at once are kept apart."""
        if stamp is None:
            with self.asking(path):
                self.make_parent(path)
                try:
                    self._fs.pipe_file(self.at(path), content, mode="create")
                except FileExistsError:
                    raise FileChanged(path) from None
        else:
            try:
                found = _stamp(self.read(path))
            except NotFound:
                found = ""
            if found != stamp:
                raise FileChanged(path)
            self.put(path, content)
        return _stamp(content)

    def open_temporary(self) -> tuple[str, IO[bytes]]:
        """A new file for bytes on their way, and its path."""
        path = f"{TEMPORARY}/{uuid.uuid4().hex}"
        with self.asking(path):
            self.make_parent(path)
            return path, self._fs.open(self.at(path), "wb", block_size=PART_BYTES)

    def copy(self, source: str, target: str) -> None:
        """Copies a file; object stores do it within themselves."""
        with self.asking(source):
            self.make_parent(target)
            self._fs.cp_file(self.at(source), self.at(target))

    def abandon(self, file: IO[bytes]) -> None:
        """Closes a file that was not written to its end."""
        file.close()

    def make_parent(self, path: str) -> None:
        """Makes the folder of a file, where folders have to be made."""
        self._fs.makedirs(self.at(path).rpartition("/")[0], exist_ok=True)

    def at(self, path: str) -> str:
        """The path within the file system."""
        return f"{self._root}/{path}"

    @contextmanager
    def asking(self, path: str) -> Iterator[None]:
        """Around every request: what the library raises becomes NotFound or Unavailable."""
        try:
            yield
        except (TrimtabError, FileChanged):
            raise
        except FileNotFoundError:
            raise missing(path) from None
        except Exception as error:  # each file system has its own exceptions
            raise Unavailable(f"{self.at(path).rstrip('/')}: {type(error).__name__}: {error}", field="store") from error


class _RemoteUpload:
    """Bytes in memory up to a part's size; more go to a temporary file, which object stores take in parts."""

    def __init__(self, files: RemoteFiles) -> None:
        self._files = files
        self._held = bytearray()
        self._path = ""
        self._file: IO[bytes] | None = None

    def write(self, chunk: bytes) -> None:
        if self._file is None:
            self._held += chunk
            if len(self._held) < PART_BYTES:
                return
            self._path, self._file = self._files.open_temporary()
            chunk = bytes(self._held)
            self._held.clear()
        with self._files.asking(self._path):
            self._file.write(chunk)

    def commit(self, path: str) -> None:
        if self._file is None:
            self._files.put(path, bytes(self._held))
            return
        with self._files.asking(self._path):
            self._file.close()
        self._files.copy(self._path, path)

    def discard(self) -> None:
        self._held.clear()
        if self._file is None:
            return
        try:
            with self._files.asking(self._path):
                self._files.abandon(self._file)
            self._files.remove(self._path)
        except Unavailable as error:  # whatever is left, the next start removes
            _log.warning("an upload left bytes behind", extra={"path": self._path, "error": error.message})


def _stamp(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
