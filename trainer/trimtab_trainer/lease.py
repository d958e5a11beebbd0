"""The lease that a run holds on the channels it writes, renewed from a thread as long as the run works."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable

from trimtab import Client
from trimtab.errors import LeaseHeld, TrimtabError
from trimtab.v1 import weights_pb2

__all__ = ["LeaseKeeper"]

_TTL_S = 60.0


class LeaseKeeper:
    """Holds the lease on a channel prefix and renews it from a thread.

    Args:
        weights: client of the weights service.
        prefix: of the channels.
        run: name of the run; a killed process of the same run may have left a lease behind, whose end is waited for.
        tell: takes one sentence when it waits.
        pause: sleeps for some seconds, or raises to end the wait.

    Raises:
        LeaseHeld: another run has it, at once; or this one's old lease did not end in time.
    """

    def __init__(
        self,
        weights: Client,
        prefix: str,
        run: str,
        *,
        tell: Callable[[str], None],
        pause: Callable[[float], None],
    ) -> None:
        self._weights = weights
        self._prefix = prefix
        self._run = run
        self._holder = f"{run} on {socket.gethostname()}, process {os.getpid()}"
        self._lost: TrimtabError | None = None
        self._stop = threading.Event()
        self.lease_id = self._acquire(tell, pause)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises the error that a renewal met."""
        if self._lost is not None:
            raise self._lost

    def close(self) -> None:
        """Stops renewing and gives the lease back."""
        self._stop.set()
        self._thread.join()
        try:
            self._weights.release_lease(weights_pb2.ReleaseLeaseRequest(lease_id=self.lease_id), timeout_s=5.0)
        except TrimtabError:
            pass  # it ends by itself

    def _acquire(self, tell: Callable[[str], None], pause: Callable[[float], None]) -> str:
        give_up = time.monotonic() + _TTL_S + 10
        told = False
        while True:
            try:
                return self._request("")
            except LeaseHeld as error:
                holder = error.metadata.get("holder", "")
                if not holder.startswith(f"{self._run} on ") or time.monotonic() > give_up:
                    raise
                if not told:
                    tell(f"waits, at most {_TTL_S:.0f} s, for the lease on {self._prefix}* that {holder} left behind")
                    told = True
                pause(1.0)

    def _renew(self) -> None:
        expires = time.monotonic() + _TTL_S
        while not self._stop.wait(_TTL_S / 4):
            try:
                self._request(self.lease_id)
                expires = time.monotonic() + _TTL_S
            except LeaseHeld as error:
                self._lost = error
                return
            except TrimtabError as error:
                if time.monotonic() > expires:
                    self._lost = error
                    return

    def _request(self, lease_id: str) -> str:
        request = weights_pb2.AcquireLeaseRequest(
            channel_prefix=self._prefix, holder=self._holder, ttl_ms=int(_TTL_S * 1000), lease_id=lease_id
        )
        return self._weights.acquire_lease(request, timeout_s=10.0).lease.lease_id
