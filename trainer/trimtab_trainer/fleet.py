"""Replicas of one service, as a run sees them: who is there, who is well, who is slow, who has least to do.

A `Fleet` asks its resolver again and again, so replicas may come and go during a run. A call goes to the well replica
that should answer first; one that fails is left alone for a while and the call goes elsewhere, which is safe, since
generation, scoring and log-probs are pure. Nothing waits for ever:

- Replicas are greeted beside the work, so one that is silent at first holds nobody up.
- One that falls silent (its process stopped, its network gone) has failed after `SILENT_S`.
- One that is slow, by what the others need for as much, is hedged: an idle one is asked too and the first answer wins.
- When no replica has been well for `patience_s`, the call fails with every address and its last error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

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
from trimtab_trainer.pace import SLOW, Pace, seconds_needed

__all__ = ["SILENT_S", "Call", "Fleet", "Replica", "counts_as_try", "worth_another_replica"]

T = TypeVar("T")

_PULSE_EVERY_S = 5.0
_PULSE_WITHIN_S = 10.0
SILENT_S = _PULSE_EVERY_S + _PULSE_WITHIN_S
"""Longest time that a replica may say nothing at all, not even that it is there."""

_WORTH_HEDGING_S = 1.0
"""Work held for less is not given to another replica too, unless its holder is known to be slow."""
_TICK_S = 0.1
_TELL_AFTER_S = 2.0
_TELL_REFUSALS = 4
"""A swap under way explains fewer answers in a row that a version is not served."""

_BACKOFF_S = (0.25, 0.5, 1.0, 2.0, 5.0)
_REFRESH_S = 0.5
_GREETING_S = 5.0


@dataclass(eq=False)
class Replica:
    """One replica: its connection and what it is known to be doing."""

    address: str
    client: AsyncClient
    calls: set[Call[Any]] = field(default_factory=set, repr=False)
    """Under way."""
    pace: Pace = field(default_factory=Pace, repr=False)
    """What it was seen to do beside the others."""
    failures: int = 0
    """Failures in a row."""
    refusals: int = 0
    """Answers in a row that it does not serve the version asked for."""
    retry_at: float = 0.0
    """`time.monotonic()` before which it gets no work."""
    last_error: str = ""
    info: ServiceInfo | None = field(default=None, repr=False)
    """Its answer to GetInfo when it was last greeted and found well."""
    seen: ServiceInfo | None = field(default=None, repr=False)
    """Its last answer to GetInfo, well or not; None where it has failed to answer since."""
    seen_at: float | None = None
    """`time.monotonic()` of the last answer to GetInfo."""
    leaving: bool = False
    """The resolver names it no more: it answers what it has and gets nothing new."""
    lost: bool = False
    """It was well and failed, which was told."""
    greeting: asyncio.Task[None] | None = field(default=None, repr=False)
    """GetInfo under way."""
    watch: asyncio.Task[None] | None = field(default=None, repr=False)
    """Notices when it falls silent."""

    @property
    def outstanding(self) -> int:
        """Work given and not yet answered: sequences or tokens, as the caller counts."""
        return sum(call.cost for call in self.calls)


@dataclass(eq=False)
class Call(Generic[T]):
    """Work given to a replica."""

    replica: Replica
    task: asyncio.Task[T]
    """Has the answer; fails with Unavailable when the replica falls silent."""
    silent: asyncio.Future[None]
    """Done when it has."""
    cost: int
    """What of it is outstanding; who takes an answer in parts counts it down."""
    began: float
    """`time.monotonic()`."""


def worth_another_replica(error: TrimtabError) -> bool:
    """True when the same work can succeed elsewhere; False when the work itself is at fault."""
    return isinstance(error, Unavailable | DeadlineExceeded | Overloaded | InternalError | VersionUnavailable)


def counts_as_try(error: TrimtabError) -> bool:
    """False for a replica that is busy, draining, starting, gone or on another version: it says nothing of the work."""
    return not isinstance(error, Overloaded | Unavailable | VersionUnavailable)


class Fleet:
    """The replicas of one service. Used from one event loop only.

    Args:
        name: service name in messages, such as "generation".
        resolver: says which addresses there are; asked every half second, and closed with the fleet.
        connect: opens a client to an address.
        patience_s: how long a call waits for any well replica before it fails.
        tell: takes one sentence whenever a replica that was well has failed, or is back, and when none is left.
    """

    def __init__(
        self,
        name: str,
        resolver: Resolver,
        connect: Callable[[str], AsyncClient],
        *,
        patience_s: float = 60.0,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.name = name
        self.patience_s = patience_s
        self._tell = tell
        self._waits_told = False
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
                    replica = self._replicas[address] = Replica(address, self._connect(address))
                    replica.watch = asyncio.create_task(self._watch(replica))
            for address, replica in list(self._replicas.items()):
                replica.leaving = address not in addresses
                if replica.leaving and not replica.calls:
                    await self._forget(replica)
        return [replica for replica in self._replicas.values() if not replica.leaving]

    def known(self) -> list[Replica]:
        """All replicas that it has a connection to, by address; those too that leave and still have work."""
        return sorted(self._replicas.values(), key=lambda replica: replica.address)

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
            info = await self._ask(replica, _GREETING_S)
            if info.state is ServiceState.SERVING:
                replica.info, replica.failures = info, 0
                if replica.lost:
                    self._tell(f"{self.name} at {replica.address} is back")
                replica.lost = False
            else:
                self.failed(replica, Unavailable(f"{info.state}: {info.state_reason}"))
                replica.seen = info  # it is there
        except TrimtabError as error:
            self.failed(replica, error)
        finally:
            replica.greeting = None

    async def _ask(self, replica: Replica, timeout_s: float) -> ServiceInfo:
        info = await replica.client.info(timeout_s=timeout_s)
        replica.seen, replica.seen_at = info, time.monotonic()
        return info

    async def _forget(self, replica: Replica) -> None:
        for task in (replica.greeting, replica.watch):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        del self._replicas[replica.address]
        await replica.client.close()

    def failed(self, replica: Replica, error: TrimtabError) -> None:
        """Notes a failure: the replica gets no work until its backoff has passed and it answers GetInfo again."""
        is_refusal = isinstance(error, VersionUnavailable)  # it is well, and behind, or ahead for a moment
        replica.refusals = replica.refusals + 1 if is_refusal else 0
        wait = _BACKOFF_S[min(max(replica.failures, replica.refusals - 1), len(_BACKOFF_S) - 1)]
        if error.retry_after_s is not None:
            wait = max(wait, error.retry_after_s)
        if replica.info is not None and (
            replica.refusals == _TELL_REFUSALS if is_refusal else not isinstance(error, Overloaded)
        ):
            replica.lost = True
            told = error.message.removeprefix(f"{replica.address}: ")
            self._tell(f"{self.name} at {replica.address}: {told}; what it has not answered is given out again")
        replica.failures += 1
        replica.retry_at = time.monotonic() + wait
        replica.last_error = error.message
        replica.info = None
        if not isinstance(error, VersionUnavailable | Overloaded):
            replica.seen = None

    async def wait_well(self) -> list[Replica]:
        """Like `well`, but waits for at least one replica.

        Raises:
            Unavailable: none was well for `patience_s`; names each address with its last error.
        """
        began = time.monotonic()
        while True:
            if replicas := await self.well():
                self._waits_told = False
                return replicas
            waited_s = time.monotonic() - began
            if waited_s >= self.patience_s:
                raise Unavailable(f"no {self.name} replica has served for {self.patience_s:.0f} s: {self.describe()}")
            if waited_s >= _TELL_AFTER_S and not self._waits_told:
                self._waits_told = True
                self._tell(f"no {self.name} replica serves; waits at most {self.patience_s:.0f} s: {self.describe()}")
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

    def start(self, replica: Replica, function: Callable[[AsyncClient], Awaitable[T]], *, cost: int) -> Call[T]:
        """Gives work to a replica; it counts as outstanding from now until the call has ended.

        Args:
            replica: one of the fleet's.
            function: makes the call, with a deadline of its own.
            cost: outstanding work that it counts as.
        """
        silent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._answer(replica, silent, function))
        call = Call(replica, task, silent, cost, time.monotonic())
        replica.calls.add(call)
        call.task.add_done_callback(lambda _: replica.calls.discard(call))
        return call

    async def _answer(
        self, replica: Replica, silent: asyncio.Future[None], function: Callable[[AsyncClient], Awaitable[T]]
    ) -> T:
        work = asyncio.ensure_future(function(replica.client))
        try:
            await asyncio.wait([work, silent], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise self._silence(replica)
        finally:
            work.cancel()

    async def _watch(self, replica: Replica) -> None:
        """Notes that a replica which is well, or has work, takes connections and answers nothing.

        One that cannot be reached at all is no silent one: it may drain, closed to newcomers, and end what it has. With
        nothing to end, and still named by the resolver, it has failed too.
        """
        while self._replicas.get(replica.address) is replica:
            await asyncio.sleep(_PULSE_EVERY_S)
            if replica.info is None and not replica.calls:
                continue  # it will be greeted
            try:
                await self._ask(replica, _PULSE_WITHIN_S)
            except DeadlineExceeded:
                self.failed(replica, self._silence(replica))
                for call in replica.calls:
                    if not call.silent.done():
                        call.silent.set_result(None)
            except TrimtabError as error:
                if not replica.calls and replica in await self.replicas():
                    self.failed(replica, error)

    def _silence(self, replica: Replica) -> Unavailable:
        return Unavailable(
            f"{replica.address}: silent during {self.name}: no answer, not even to GetInfo, for {_PULSE_WITHIN_S:g} to "
            f"{SILENT_S:g} s"
        )

    def late(self, call: Call[Any], work: int) -> bool:
        """Whether it is worth asking another replica too: it would likely be done before this one is.

        Args:
            call: under way.
            work: all that it may be, in the unit of `answered`.

        Returns:
            True when its replica is slow, or has had it for 3 times as long as the others need for that much.
        """
        if self.slowness(call.replica) > 1:
            return True
        held_s = time.monotonic() - call.began
        needed_s = seconds_needed(self._paces_but(call.replica), work)
        return needed_s is not None and held_s > max(_WORTH_HEDGING_S, SLOW * needed_s)

    def slowness(self, replica: Replica) -> float:
        """As `Pace.slowness`; one that is alone is not slow."""
        alone = all(other.info is None for other in self._replicas.values() if other is not replica)
        return 1.0 if alone else replica.pace.slowness()

    def answered(self, work: int, by: Call[Any], among: Iterable[Call[Any]]) -> None:
        """Notes how long a piece of work took.

        Args:
            work: its size, such as tokens; at least 1.
            by: the call that answered it.
            among: all calls that were asked for it.
        """
        now = time.monotonic()
        by.replica.refusals = 0
        for call in among:
            call.replica.pace.note(work, now - call.began, self._paces_but(call.replica), beaten=call is not by)

    def _paces_but(self, replica: Replica) -> list[Pace]:
        return [other.pace for other in self._replicas.values() if other is not replica]

    async def call(
        self, function: Callable[[AsyncClient], Awaitable[T]], *, cost: int, timeout_s: float, tries: int = 5
    ) -> T:
        """Makes one pure call on the replica that should answer first, elsewhere too when that one is late or fails.

        Args:
            function: makes the call, with a deadline of its own.
            cost: outstanding work that it counts as.
            timeout_s: for all tries, waits included.
            tries: answers that count, after which the last one is raised; busy and missing replicas do not.

        Raises:
            Unavailable: no replica was well for `patience_s`.
            TrimtabError: what the last replica answered, or at once when the work is at fault.
        """
        give_up, cost = time.monotonic() + timeout_s, max(1, cost)
        while True:
            replicas = await self.wait_well()
            soonest = min(replicas, key=lambda replica: (replica.outstanding + cost) * self.slowness(replica))
            try:
                return await self._first_answer(soonest, function, cost)
            except TrimtabError as error:
                tries -= counts_as_try(error)
                if not worth_another_replica(error) or tries <= 0 or time.monotonic() >= give_up:
                    raise

    async def _first_answer(self, replica: Replica, function: Callable[[AsyncClient], Awaitable[T]], cost: int) -> T:
        """Asks a replica, and an idle one beside it when that is late; raises when all who were asked have failed."""
        asked = [self.start(replica, function, cost=cost)]
        calls = list(asked)
        try:
            while True:
                await asyncio.wait([c.task for c in calls], timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
                for call in [call for call in calls if call.task.done()]:
                    try:
                        answer = call.task.result()
                    except TrimtabError as error:
                        calls.remove(call)
                        if worth_another_replica(error):
                            self.failed(call.replica, error)
                        if not calls or not worth_another_replica(error):
                            raise
                    else:
                        self.answered(cost, by=call, among=calls)
                        return answer
                if len(asked) == 1 and self.late(asked[0], cost):
                    idle = [r for r in await self.well() if not r.calls and self.slowness(r) == 1]
                    asked += [self.start(one, function, cost=cost) for one in idle[:1]]
                    calls += asked[1:]
        finally:
            for call in calls:
                call.task.cancel()

    async def infos(self) -> dict[str, ServiceInfo]:
        """GetInfo of every replica that answers, by address."""

        async def ask(replica: Replica) -> ServiceInfo | None:
            try:
                return await self._ask(replica, _GREETING_S)
            except TrimtabError as error:
                replica.last_error = error.message
                return None

        replicas = await self.replicas()
        answers = await asyncio.gather(*map(ask, replicas))
        return {r.address: info for r, info in zip(replicas, answers, strict=True) if info is not None}

    async def close(self) -> None:
        """Closes every connection and the resolver."""
        for replica in list(self._replicas.values()):
            await self._forget(replica)
        await asyncio.to_thread(self._resolver.close)
