"""One writer process for each store: a second one refuses to start and names the first.

A local store is guarded by the kernel's lock on a file, which a process that dies lets go of. An object store has no
such lock: there the file says who writes, and the writer writes it again and again. One that has not done so for
90 seconds, by the clock of the store, is taken for dead; one whose process is gone from this host, at once.

In S3 all of this is done by conditional writes, so that of two that start in the same instant one is refused, and a
writer that was taken for dead too early changes nothing any more (`s3`). Where a store has no conditional writes, two
that start within the same milliseconds may both begin; the first is told at its next renewal.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from trimtab.errors import ConfigError, NotFound, Unavailable
from trimtab_services.weights.files import FileChanged, Files, SharedFiles, Stamped

__all__ = ["RENEW_S", "WriterLock"]

_log = logging.getLogger(__name__)

_PATH = "writer.lock"

RENEW_S = 20.0
"""Seconds between two renewals."""

_EXPIRE_S = 90.0


class _Lock(Protocol):
    def renew(self) -> None: ...

    def release(self) -> None: ...


class WriterLock:
    """Held from construction to `release`.

    Args:
        files: the store's files.
        store: its name in messages.

    Raises:
        ConfigError: another process writes to the store; names its host and process id.
        Unavailable: the object store does not answer.
    """

    def __init__(self, files: Files, store: str) -> None:
        path = files.local_path(_PATH)
        if path is not None:
            self._lock: _Lock = _KernelLock(path, store)
        elif isinstance(files, SharedFiles):
            self._lock = _RenewedLock(files, store)
        else:
            raise TypeError(f"{type(files).__name__} can neither be locked by the kernel nor written conditionally")

    def renew(self) -> None:
        """Says that this process still writes; must be called every `RENEW_S`.

        Raises:
            ConfigError: another process has taken the store over.
        """
        self._lock.renew()

    def release(self) -> None:
        """Lets the next process write."""
        self._lock.release()


class _KernelLock:
    """The kernel's lock on a local file."""

    def __init__(self, path: Path, store: str) -> None:
        self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            text = self._file.read()
            self._file.close()
            raise _held(store, _parse(text)) from None
        self._file.truncate(0)
        self._file.write(_line(uuid.uuid4().hex))
        self._file.flush()

    def renew(self) -> None:
        """Nothing to do."""

    def release(self) -> None:
        self._file.truncate(0)
        self._file.close()


class _RenewedLock:
    """A file that its owner writes again and again."""

    def __init__(self, files: SharedFiles, store: str) -> None:
        self._files = files
        self._store = store
        self._nonce = uuid.uuid4().hex
        self._stamp = self._take()
        self._check_conditions()

    def renew(self) -> None:
        """As `WriterLock.renew`. A store that does not answer has not been taken over yet: the next renewal tells."""
        try:
            self._stamp = self._files.replace(_PATH, self._line(), self._stamp)
        except Unavailable as error:
            _log.warning("the lock on the store was not renewed", extra={"error": error.message})
        except FileChanged:
            found = self._find()
            owner = _parse(found.content.decode(errors="replace")) if found is not None else {}
            if found is None or owner.get("nonce") != self._nonce:
                raise _held(self._store, owner) from None
            self._stamp = found.stamp  # of a renewal whose answer got lost

    def release(self) -> None:
        """Leaves an empty file, which nobody owns."""
        with suppress(FileChanged, Unavailable):
            self._files.replace(_PATH, b"", self._stamp)

    def _take(self) -> str:
        """Waits for nobody; returns the stamp of our file."""
        while True:
            found = self._find()
            if found is not None and not _is_over(found):
                raise _held(self._store, _parse(found.content.decode(errors="replace")))
            with suppress(FileChanged):  # somebody was faster: look again
                return self._files.replace(_PATH, self._line(), found.stamp if found is not None else None)

    def _check_conditions(self) -> None:
        """Tries to make the file that is there, which must be refused."""
        with suppress(FileChanged):
            self._stamp = self._files.replace(_PATH, self._line(), None)
            _log.warning(
                "the object store ignores conditional writes: two services that start in the same instant could both "
                "write to it",
                extra={"store": self._store},
            )

    def _find(self) -> Stamped | None:
        try:
            return self._files.read_stamped(_PATH)
        except NotFound:
            return None

    def _line(self) -> bytes:
        return _line(self._nonce).encode()


def _line(nonce: str) -> str:
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "kernel": _kernel(),
        "nonce": nonce,
        "renewed": time.time_ns(),
    }
    return json.dumps(owner) + "\n"


def _held(store: str, owner: dict[str, object]) -> ConfigError:
    who = f"process {owner.get('pid', '?')} on host {owner.get('host', '?')}"
    return ConfigError(
        f"store: {store} has a writer already: {who}; a store takes one weights service at a time",
        field="store",
        value=store,
        limit=who,
    )


def _parse(text: str) -> dict[str, object]:
    try:
        owner = json.loads(text)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_over(lock: Stamped) -> bool:
    """Whether a writer has stopped or died: its process is gone, where that can be seen; else it has not renewed."""
    owner = _parse(lock.content.decode(errors="replace"))
    pid = owner.get("pid")
    if not isinstance(pid, int) or lock.age_s > _EXPIRE_S:
        return True
    if not owner.get("kernel") or owner.get("kernel") != _kernel():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _kernel() -> str:
    """Where process ids mean the same: this boot of this machine and this container. Empty where it cannot be told.

    The host's name would not do: two machines may share one, and a container has another each time.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
