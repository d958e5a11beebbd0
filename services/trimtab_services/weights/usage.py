"""Blobs that no version needs yet and that are not to be removed: somebody is uploading or committing them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = ["BlobUsage"]


class BlobUsage:
    """Who needs which blobs, besides the versions. Safe from any thread.

    Args:
        grace_s: seconds for which a blob that a publisher asked for is safe.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._lock = threading.Lock()
        self._in_use: Counter[str] = Counter()
        self._asked_for: dict[str, float] = {}

    def ask(self, digests: Iterable[str]) -> None:
        """Notes that a publisher is told which of these it need not upload."""
        now = time.monotonic()
        with self._lock:
            self._asked_for = {d: at for d, at in self._asked_for.items() if now - at < self._grace_s}
            self._asked_for.update(dict.fromkeys(digests, now))

    def committed(self, digests: Iterable[str]) -> None:
        """Notes that a version needs these now, so that its end is theirs. One that another publisher was told of and
        that is pruned before its commit is uploaded again."""
        with self._lock:
            for digest in digests:
                self._asked_for.pop(digest, None)

    @contextmanager
    def using(self, digests: set[str], *, after: threading.Lock) -> Iterator[None]:
        """Keeps blobs while the body reads them.

        Args:
            digests: of the blobs.
            after: held by whoever removes blobs; a removal under way ends before these count as kept.
        """
        with after, self._lock:
            self._in_use.update(digests)
        try:
            yield
        finally:
            with self._lock:
                self._in_use.subtract(digests)
                self._in_use = +self._in_use

    def needed(self) -> set[str]:
        """Digests of all blobs that must stay."""
        now = time.monotonic()
        with self._lock:
            return set(self._in_use) | {d for d, at in self._asked_for.items() if now - at < self._grace_s}
