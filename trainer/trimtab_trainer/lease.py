"""The lease that a run holds on the channels it writes, renewed from a thread as long as the run works."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from trimtab import Client
from trimtab.errors import DeadlineExceeded, LeaseHeld, TrimtabError, Unavailable
from trimtab.v1 import weights_pb2

__all__ = ["LeaseKeeper"]

_TTL_S = 60.0
_RENEW_S = _TTL_S / 4
_RETRY_S = 1.0
"""Until a renewal that failed is tried again."""


class LeaseKeeper:
    """Holds the lease on a channel prefix and renews it from a thread.

    One that runs out while the weights service is away is taken again, unless somebody else was first.

    Args:
        weights: client of the weights service.
        prefix: of the channels.
        run: name of the run. A killed process of it may have left a lease behind, whose end is waited for unless its
            id is in `kept_in`.
        kept_in: file that the id is kept in while the lease is held, so that the run's next life goes on at once; one
            process of the run at a time may use it. None: nowhere.
        tell: takes one sentence when it waits.
        pause: sleeps for some seconds, or raises to end the wait.

    Attributes:
        lease_id: what a publication shows; may change, so ask `check` before each use.

    Raises:
        LeaseHeld: another run has it, at once; or this one's old lease did not end in time.
        TrimtabError: the weights service was away for longer than a lease lasts.
    """

    def __init__(
        self,
        weights: Client,
        prefix: str,
        run: str,
        *,
        kept_in: Path | None = None,
        tell: Callable[[str], None],
        pause: Callable[[float], None],
    ) -> None:
        self._kept_in = kept_in
        self._weights = weights
        self._prefix = prefix
        self._run = run
        self._holder = f"{run} on {socket.gethostname()}, process {os.getpid()}"
        self._lost: LeaseHeld | None = None
        self._expires = 0.0
        self._asking = threading.Lock()
        self._stop = threading.Event()
        self.lease_id = self._kept()
        self._acquire(tell, pause)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Makes sure that the lease holds now.

        Raises:
            LeaseHeld: it ran out and somebody else has it.
            TrimtabError: it ran out and the weights service does not give it again; it may when asked later.
        """
        if self._lost is None and time.monotonic() > self._expires:
            self._keep()
        if self._lost is not None:
            raise self._lost

    def close(self) -> None:
        """Stops renewing and gives the lease back."""
        self._stop.set()
        self._thread.join()
        try:
            self._weights.release_lease(weights_pb2.ReleaseLeaseRequest(lease_id=self.lease_id), timeout_s=5.0)
        except TrimtabError:
            return  # it ends by itself
        if self._kept_in is not None:
            self._kept_in.unlink(missing_ok=True)

    def _acquire(self, tell: Callable[[str], None], pause: Callable[[float], None]) -> None:
        give_up = time.monotonic() + _TTL_S + 10
        told = False
        while True:
            try:
                return self._renewed_or_new()
            except (LeaseHeld, Unavailable, DeadlineExceeded) as error:
                holder = error.metadata.get("holder", "")
                if time.monotonic() > give_up or (holder and not holder.startswith(f"{self._run} on ")):
                    raise
                if holder and not told:
                    tell(f"waits, at most {_TTL_S:.0f} s, for the lease on {self._prefix}* that {holder} left behind")
                    told = True
                pause(_RETRY_S)

    def _renew(self) -> None:
        wait_s = _RENEW_S
        while not self._stop.wait(wait_s):
            try:
                self._keep()
                wait_s = _RENEW_S
            except LeaseHeld:
                return  # `check` tells it
            except (TrimtabError, OSError):  # the id may not be kept on a full disk, the lease is held nevertheless
                wait_s = _RETRY_S

    def _keep(self) -> None:
        """Renews the lease, or takes it again where it has run out."""
        with self._asking:
            try:
                self._renewed_or_new()
            except LeaseHeld as error:
                self._lost = error
                raise

    def _renewed_or_new(self) -> None:
        try:
            self._request(self.lease_id)
        except LeaseHeld:
            if not self.lease_id:
                raise
            self._request("")

    def _request(self, lease_id: str) -> None:
        request = weights_pb2.AcquireLeaseRequest(
            channel_prefix=self._prefix, holder=self._holder, ttl_ms=int(_TTL_S * 1000), lease_id=lease_id
        )
        asked_at = time.monotonic()
        taken = self._weights.acquire_lease(request, timeout_s=10.0).lease.lease_id
        self._expires = asked_at + _TTL_S
        if taken != self.lease_id:
            self.lease_id = taken
            self._keep_id()

    def _kept(self) -> str:
        """The id that an earlier life of this run has left behind; empty where there is none."""
        try:
            return self._kept_in.read_text(encoding="utf-8").strip() if self._kept_in is not None else ""
        except FileNotFoundError:
            return ""

    def _keep_id(self) -> None:
        """Writes the id for the next life; whoever can read it can publish as this run."""
        if self._kept_in is None:
            return
        self._kept_in.unlink(missing_ok=True)
        descriptor = os.open(self._kept_in, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(self.lease_id)
