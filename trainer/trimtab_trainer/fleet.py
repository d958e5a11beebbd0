"""Replicas of one service, as a run sees them: who is there, who is well, who has least to do.

A `Fleet` asks its resolver again and again, so replicas may come and go during a run. A call goes to the well replica
with the least outstanding work; one that fails is left alone for a while and the call goes elsewhere, which is safe,
since generation, scoring and log-probs are pure. Nothing waits for ever: when no replica has been well for
`patience_s`, the call fails with every address and its last error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from trimtab import AsyncClient
from trimtab.errors import (
    DeadlineExceeded,
    InternalError,
    Overloaded,
    TrimtabError,
    Unavailable,
    VersionUnavailable,
)
from trimtab.resolver import Resolver
from trimtab.types import ServiceInfo, ServiceState

__all__ = ["Fleet", "Replica", "worth_another_replica"]

T = TypeVar("T")

_BACKOFF_S = (0.25, 0.5, 1.0, 2.0, 5.0)
_REFRESH_S = 0.5


@dataclass
class Replica:
    """One replica: its connection and what it is known to be doing."""

    address: str
    client: AsyncClient
    outstanding: int = 0
    """Work given and not yet answered: sequences or tokens, as the caller counts."""
    failures: int = 0
    """Failures in a row."""
    retry_at: float = 0.0
    """`time.monotonic()` before which it gets no work."""
    last_error: str = ""
    info: ServiceInfo | None = field(default=None, repr=False)
    """Its answer to GetInfo when it was first found well."""


def worth_another_replica(error: TrimtabError) -> bool:
    """True when the same work can succeed elsewhere; False when the work itself is at fault."""
    return isinstance(error, Unavailable | DeadlineExceeded | Overloaded | InternalError | VersionUnavailable)


class Fleet:
    """The replicas of one service. Used from one event loop only.

    Args:
        name: service name in messages, such as "generation".
        resolver: says which addresses there are; asked every half second.
        connect: opens a client to an address.
        patience_s: how long a call waits for any well replica before it fails.
    """

    def __init__(
        self, name: str, resolver: Resolver, connect: Callable[[str], AsyncClient], *, patience_s: float = 60.0
    ) -> None:
        self.name = name
        self.patience_s = patience_s
        self._resolver = resolver
        self._connect = connect
        self._replicas: dict[str, Replica] = {}
        self._resolved_at = float("-inf")

    async def replicas(self) -> list[Replica]:
        """All replicas that the resolver names now, well or not."""
        if time.monotonic() - self._resolved_at >= _REFRESH_S:
            self._resolved_at = time.monotonic()
            addresses = await asyncio.to_thread(self._resolver.addresses)
            for address in addresses:
                if address not in self._replicas:
                    self._replicas[address] = Replica(address, self._connect(address))
            for address in [known for known in self._replicas if known not in addresses]:
                if self._replicas[address].outstanding == 0:  # one that drains first answers what it has
                    await self._replicas.pop(address).client.close()
        return list(self._replicas.values())

    async def well(self) -> list[Replica]:
        """Replicas that take work now, least outstanding work first; asks those not known to be well."""
        now = time.monotonic()
        candidates = [r for r in await self.replicas() if r.retry_at <= now]
        await asyncio.gather(*(self._greet(r) for r in candidates if r.info is None))
        return sorted((r for r in candidates if r.info is not None), key=lambda r: (r.outstanding, r.address))

    async def _greet(self, replica: Replica) -> None:
        try:
            info = await replica.client.info(timeout_s=5.0)
        except TrimtabError as error:
            self.failed(replica, error)
            return
        if info.state is ServiceState.SERVING:
            replica.info, replica.failures = info, 0
        else:
            self.failed(replica, Unavailable(f"{info.state}: {info.state_reason}"))

    def failed(self, replica: Replica, error: TrimtabError) -> None:
        """Notes a failure: the replica gets no work until its backoff has passed and it answers GetInfo again."""
        wait = _BACKOFF_S[min(replica.failures, len(_BACKOFF_S) - 1)]
        if error.retry_after_s is not None:
            wait = max(wait, error.retry_after_s)
        replica.failures += 1
        replica.retry_at = time.monotonic() + wait
        replica.last_error = error.message
        replica.info = None

    async def wait_well(self) -> list[Replica]:
        """Like `well`, but waits for at least one replica.

        Raises:
            Unavailable: none was well for `patience_s`; names each address with its last error.
        """
        give_up = time.monotonic() + self.patience_s
        while True:
            if replicas := await self.well():
                return replicas
            if time.monotonic() >= give_up:
                raise Unavailable(f"no {self.name} replica has served for {self.patience_s:.0f} s: {self.describe()}")
            await asyncio.sleep(0.1)

    def describe(self) -> str:
        """Each address with its last error, for messages."""
        if not self._replicas:
            return "the resolver names no address"
        return "; ".join(f"{r.address}: {r.last_error or 'no error'}" for r in self._replicas.values())

    @asynccontextmanager
    async def working(self, replica: Replica, cost: int) -> AsyncIterator[Replica]:
        """Counts `cost` as outstanding on the replica while the body runs."""
        replica.outstanding += cost
        try:
            yield replica
        finally:
            replica.outstanding -= cost

    async def call(self, function: Callable[[AsyncClient], Awaitable[T]], *, cost: int, tries: int = 5) -> T:
        """Makes one pure call on the least busy replica, elsewhere again when that one fails.

        Raises:
            TrimtabError: what the last replica answered after `tries` tries, or at once when the work is at fault.
        """
        for attempt in range(1, tries + 1):
            replica = (await self.wait_well())[0]
            try:
                async with self.working(replica, cost):
                    return await function(replica.client)
            except TrimtabError as error:
                if not worth_another_replica(error) or attempt == tries:
                    raise
                self.failed(replica, error)
        raise InternalError(f"{self.name}: no try was made")  # tries < 1

    async def infos(self) -> dict[str, ServiceInfo]:
        """GetInfo of every replica that answers, by address."""
        answers = {}
        for replica in await self.replicas():
            try:
                answers[replica.address] = await replica.client.info(timeout_s=5.0)
            except TrimtabError as error:
                replica.last_error = error.message
        return answers

    async def close(self) -> None:
        """Closes every connection."""
        for replica in self._replicas.values():
            await replica.client.close()
        self._replicas.clear()
