"""Replicas of one service, as a run sees them: who is there, who is well, who has least to do.

A `Fleet` asks its resolver again and again, so replicas may come and go during a run. A call goes to the well replica
with the least outstanding work; one that fails is left alone for a while and the call goes elsewhere, which is safe,
since generation, scoring and log-probs are pure. Replicas are greeted beside the work, so a silent one holds nobody up.
Nothing waits for ever: when no replica has been well for `patience_s`, the call fails with every address and its last
error.
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

__all__ = ["Fleet", "Replica", "counts_as_try", "worth_another_replica"]

T = TypeVar("T")

_BACKOFF_S = (0.25, 0.5, 1.0, 2.0, 5.0)
_REFRESH_S = 0.5
_GREETING_S = 5.0


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
    """Its answer to GetInfo when it was last greeted and found well."""
    leaving: bool = False
    """The resolver names it no more: it answers what it has and gets nothing new."""
    greeting: asyncio.Task[None] | None = field(default=None, repr=False)
    """GetInfo under way."""


def worth_another_replica(error: TrimtabError) -> bool:
    """True when the same work can succeed elsewhere; False when the work itself is at fault."""
    return isinstance(error, Unavailable | DeadlineExceeded | Overloaded | InternalError | VersionUnavailable)


def counts_as_try(error: TrimtabError) -> bool:
    """False for a replica that is only busy, draining, starting or gone: such answers say nothing about the work."""
    return not isinstance(error, Overloaded | Unavailable)


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
            for address, replica in list(self._replicas.items()):
                replica.leaving = address not in addresses
                if replica.leaving and replica.outstanding == 0:
                    await self._forget(replica)
        return [replica for replica in self._replicas.values() if not replica.leaving]

    async def well(self) -> list[Replica]:
        """Replicas that take work now, least outstanding work first. Does not wait for those not known to be well."""
        now = time.monotonic()
        candidates = [r for r in await self.replicas() if r.retry_at <= now]
        for replica in candidates:
            if replica.info is None and replica.greeting is None:
                replica.greeting = asyncio.create_task(self._greet(replica))
        return sorted((r for r in candidates if r.info is not None), key=lambda r: (r.outstanding, r.address))

    async def _greet(self, replica: Replica) -> None:
        try:
            info = await replica.client.info(timeout_s=_GREETING_S)
            if info.state is ServiceState.SERVING:
                replica.info, replica.failures = info, 0
            else:
                self.failed(replica, Unavailable(f"{info.state}: {info.state_reason}"))
        except TrimtabError as error:
            self.failed(replica, error)
        finally:
            replica.greeting = None

    async def _forget(self, replica: Replica) -> None:
        if replica.greeting is not None:
            replica.greeting.cancel()
        del self._replicas[replica.address]
        await replica.client.close()

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
            greetings = [r.greeting for r in self._replicas.values() if r.greeting is not None]
            if greetings:
                await asyncio.wait(greetings, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(0.1)

    def describe(self) -> str:
        """Each address with its last error, for messages."""
        if not self._replicas:
            problem = getattr(self._resolver, "problem", "")
            return f"the resolver names no address{f': {problem}' if problem else ''}"
        return "; ".join(
            f"{r.address}: {r.last_error.removeprefix(f'{r.address}: ') or 'no error'}" for r in self._replicas.values()
        )

    @asynccontextmanager
    async def working(self, replica: Replica, cost: int) -> AsyncIterator[Replica]:
        """Counts `cost` as outstanding on the replica while the body runs."""
        replica.outstanding += cost
        try:
            yield replica
        finally:
            replica.outstanding -= cost

    async def call(
        self, function: Callable[[AsyncClient], Awaitable[T]], *, cost: int, timeout_s: float, tries: int = 5
    ) -> T:
        """Makes one pure call on the least busy replica, elsewhere again when that one fails.

        Args:
            function: makes the call, with a deadline of its own.
            cost: outstanding work that it counts as.
            timeout_s: for all tries, waits included.
            tries: answers that count, after which the last one is raised; busy and missing replicas do not.

        Raises:
            TrimtabError: what the last replica answered, or at once when the work is at fault.
        """
        give_up = time.monotonic() + timeout_s
        while True:
            replica = (await self.wait_well())[0]
            try:
                async with self.working(replica, cost):
                    return await function(replica.client)
            except TrimtabError as error:
                if not worth_another_replica(error):
                    raise
                self.failed(replica, error)
                tries -= counts_as_try(error)
                if tries <= 0 or time.monotonic() >= give_up:
                    raise

    async def infos(self) -> dict[str, ServiceInfo]:
        """GetInfo of every replica that answers, by address."""

        async def ask(replica: Replica) -> ServiceInfo | None:
            try:
                return await replica.client.info(timeout_s=_GREETING_S)
            except TrimtabError as error:
                replica.last_error = error.message
                return None

        replicas = await self.replicas()
        answers = await asyncio.gather(*map(ask, replicas))
        return {r.address: info for r, info in zip(replicas, answers, strict=True) if info is not None}

    async def close(self) -> None:
        """Closes every connection."""
        for replica in list(self._replicas.values()):
            await self._forget(replica)
