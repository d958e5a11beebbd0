"""Files that are read again when they change, such as mounted Secrets: tokens and certificates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["WatchedFiles"]

_ABSENT = (0, 0, 0)


class WatchedFiles:
    """The time stamps of a few files. Make it before the first read, so that no change falls between.

    Args:
        paths: the files; links are followed, as a mounted Secret changes by a new target of a link.
        recheck_s: the files are looked at no more often than this.
    """

    def __init__(self, paths: Sequence[Path], *, recheck_s: float = 1.0) -> None:
        self._paths = tuple(paths)
        self._recheck_s = recheck_s
        self._looked_at = time.monotonic()
        self._stamps = self._look()

    def changed(self) -> bool:
        """Whether a file is another one than when this was last asked and looked; True once for each change."""
        now = time.monotonic()
        if now - self._looked_at < self._recheck_s:
            return False
        self._looked_at = now
        before, self._stamps = self._stamps, self._look()
        return self._stamps != before

    def _look(self) -> list[tuple[int, int, int]]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return _ABSENT
    return (status.st_mtime_ns, status.st_size, status.st_ino)
