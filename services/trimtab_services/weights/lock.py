"""One writer process for each store: a second one refuses to start and names the first.

A local store is guarded by the kernel's lock on a file, which a process that dies lets go of. An object store has no
such lock: there the file says who writes and until when, and the writer renews it.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import uuid
from typing import IO

from trimtab.errors import ConfigError, NotFound
from trimtab_services.weights.files import Files

__all__ = ["RENEW_S", "WriterLock"]

_PATH = "writer.lock"

RENEW_S = 20.0
"""Seconds between two renewals."""

_EXPIRE_S = 90.0


class WriterLock:
    """Held from construction to `release`.

    Args:
        files: the store's files.
        store: its name in messages.

    Raises:
        ConfigError: another process writes to the store; names its host and process id.
    """

    def __init__(self, files: Files, store: str) -> None:
        self._files = files
        self._store = store
        self._nonce = uuid.uuid4().hex
        self._file: IO[str] | None = None
        path = files.local_path(_PATH)
        if path is None:
            self._take_remote()
            return
        self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            text = self._file.read()
            self._file.close()
            raise self._held(_parse(text)) from None
        self._file.truncate(0)
        self._file.write(self._line())
        self._file.flush()

    def renew(self) -> None:
        """Says that this process still writes; must be called every `RENEW_S`. Nothing to do for a local store.

        Raises:
            ConfigError: another process has taken the store over.
        """
        if self._file is not None:
            return
        owner = self._read_remote()
        if owner is not None and owner.get("nonce") != self._nonce:
            raise self._held(owner)
        self._files.write(_PATH, self._line().encode())

    def release(self) -> None:
        """Lets the next process write."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
        else:
            owner = self._read_remote()
            if owner is not None and owner.get("nonce") == self._nonce:
                self._files.remove(_PATH)

    def _take_remote(self) -> None:
        owner = self._read_remote()
        if owner is not None and not _is_over(owner):
            raise self._held(owner)
        self._files.write(_PATH, self._line().encode())
        owner = self._read_remote()  # of two that wrote at once, the last one stays
        if owner is not None and owner.get("nonce") != self._nonce:
            raise self._held(owner)

    def _read_remote(self) -> dict[str, object] | None:
        try:
            return _parse(self._files.read(_PATH).decode())
        except NotFound:
            return None

    def _line(self) -> str:
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "nonce": self._nonce, "renewed": time.time()}
        return json.dumps(owner) + "\n"

    def _held(self, owner: dict[str, object]) -> ConfigError:
        who = f"process {owner.get('pid', '?')} on host {owner.get('host', '?')}"
        return ConfigError(
            f"store: {self._store} has a writer already: {who}; a store takes one weights service at a time",
            field="store",
            value=self._store,
            limit=who,
        )


def _parse(text: str) -> dict[str, object]:
    try:
        owner = json.loads(text)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_over(owner: dict[str, object]) -> bool:
    """Whether a writer has died: on this host its process is gone; elsewhere it has not renewed."""
    renewed, pid = owner.get("renewed"), owner.get("pid")
    if not isinstance(renewed, int | float) or time.time() - renewed > _EXPIRE_S:
        return True
    if owner.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
