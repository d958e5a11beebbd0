"""Where a server is in its life, and what that means for health and for calls.

LOADING -> SERVING                       a model from a folder, or a service without one
LOADING -> WAITING_FOR_VERSION -> SERVING    a model from a channel
any -> DRAINING                          SIGTERM; the end
any -> FAILED                            cannot serve any more; the reason is in GetInfo, in the log and in refusals
"""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass
from os import getpid
from typing import Generic, TypeVar

from trimtab.errors import InternalError, Reason, Unavailable
from trimtab.v1 import info_pb2
from trimtab_services.runtime.auth import TokenTable
from trimtab_services.runtime.config import ServiceConfig, host_port
from trimtab_services.runtime.health import HealthBoard
from trimtab_services.runtime.metrics import Metrics
from trimtab_services.runtime.quota import Quotas
from trimtab_services.runtime.tracing import Tracing

__all__ = ["Activity", "Ports", "Runtime", "State"]

_log = logging.getLogger(__name__)

State = info_pb2.ServiceState
ConfigT = TypeVar("ConfigT", bound=ServiceConfig)

_PREFIX = "SERVICE_STATE_"


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports that a server listens on."""

    grpc: int
    health: int
    http: int
    metrics: int


class Activity:
    """Counts the calls that do work, so that a drain knows when the last one has ended."""

    def __init__(self) -> None:
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def count(self) -> int:
        """Calls in flight."""
        return self._count

    def __enter__(self) -> None:
        self._count += 1
        self._idle.clear()

    def __exit__(self, *exc: object) -> None:
        self._count -= 1
        if self._count == 0:
            self._idle.set()

    async def idle(self, timeout_s: float) -> bool:
        """Waits until no call is in flight; False when `timeout_s` passed first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


class Runtime(Generic[ConfigT]):
    """What a service gets from its server.

    Attributes:
        config: the service's configuration.
        name: short name, such as `reward`.
        full_name: full name of its gRPC service, such as `trimtab.v1.RewardService`.
        replica: name of this replica.
        metrics: where it counts.
        activity: calls in flight.
        tokens: who may call; None: no tokens are asked.
        quotas: what each caller may ask for.
        tracing: where spans go; None without tracing.
        draining: set once the server takes nothing new; long streams end themselves then.
        ports: what it listens on.

    Raises:
        ConfigError: the tokens file is wrong, or what the configuration asks for is not installed.
    """

    def __init__(self, config: ConfigT, name: str, full_name: str) -> None:
        self.config = config
        self.name = name
        self.full_name = full_name
        self.replica = config.replica or f"{name}-{socket.gethostname()}-{getpid()}"
        self.metrics = Metrics()
        self.activity = Activity()
        self.tokens = TokenTable(config.tokens_file) if config.tokens_file is not None else None
        self.quotas = Quotas(
            config.quota,
            own=self.tokens.quota_of if self.tokens is not None else lambda caller: None,
            refused=lambda resource: self.metrics.quota_refusals.labels(resource).inc(),
        )
        self.tracing = (
            Tracing(config.tracing, service=name, replica=self.replica) if config.tracing is not None else None
        )
        self.draining = asyncio.Event()
        self.health = HealthBoard(full_name)
        self.ports = Ports(0, 0, 0, 0)
        self._state: info_pb2.ServiceState.ValueType = State.SERVICE_STATE_LOADING
        self._reason = "starting"
        self._channel = ""
        self._failing: asyncio.Task[None] | None = None

    @property
    def state(self) -> info_pb2.ServiceState.ValueType:
        """Where the server is in its life."""
        return self._state

    @property
    def state_reason(self) -> str:
        """One sentence on the state; empty when SERVING."""
        return self._reason

    @property
    def http_url(self) -> str:
        """URL that others reach the HTTP side by."""
        scheme = "https" if self.config.tls is not None else "http"
        return f"{scheme}://{self.address(self.ports.http)}"

    def address(self, port: int) -> str:
        """host:port that others reach one of the ports by."""
        return host_port(self.config.reachable_host, port)

    async def set_state(self, state: info_pb2.ServiceState.ValueType, reason: str = "", *, channel: str = "") -> None:
        """Moves the service to a state: GetInfo, health, metrics and refusals follow.

        A drain is final. So is FAILED, but for a drain: what has failed does not come back in this process.

        Args:
            state: the new state.
            reason: one sentence for people; empty for SERVING.
            channel: the channel waited for, with WAITING_FOR_VERSION.
        """
        is_final = self.draining.is_set() or self._state == State.SERVICE_STATE_FAILED
        if is_final and state != State.SERVICE_STATE_DRAINING:
            return
        changed = state != self._state
        self._state, self._reason, self._channel = state, reason, channel
        if state == State.SERVICE_STATE_DRAINING:
            self.draining.set()
        for value in State.values():
            if value:
                self.metrics.state.labels(state_name(value)).set(value == state)
        await self.health.follow(state)
        if changed:
            _log.info("state %s", state_name(state), extra={"reason": reason} if reason else {})

    def fail(self, reason: str) -> None:
        """Takes the service to FAILED. For callbacks in the event loop; returns before health has followed.

        Args:
            reason: one sentence for people.
        """
        self._failing = asyncio.ensure_future(self.set_state(State.SERVICE_STATE_FAILED, reason))

    def charge_tokens(self, caller: str, tokens: int) -> None:
        """Takes tokens that are about to be computed off the caller's quota, all or none.

        Args:
            caller: `Call.caller`.
            tokens: of the request, both those that it brings and those that it asks to be sampled.

        Raises:
            Overloaded: the quota has too few left; `retry_after_s` says when it has enough.
        """
        self.quotas.charge_tokens(caller, tokens)

    def refuse_unless_serving(self) -> None:
        """Lets work through in state SERVING only.

        Raises:
            Unavailable: DRAINING, or WAITING_FOR_VERSION (also while loading).
            InternalError: FAILED; the message has the state's reason.
        """
        if self._state == State.SERVICE_STATE_SERVING:
            return
        if self._state == State.SERVICE_STATE_FAILED:
            raise InternalError(
                f"{self.replica} has failed and serves no more: {self._reason}",
                metadata={"state": state_name(self._state)},
            )
        if self._state == State.SERVICE_STATE_DRAINING:
            raise Unavailable(
                f"{self.replica} drains and takes nothing new; send to another replica", reason=Reason.DRAINING
            )
        waits = self._state == State.SERVICE_STATE_WAITING_FOR_VERSION
        message = (
            f"{self.replica}: channel {self._channel!r} has no version yet"
            if waits and not self._reason
            else f"{self.replica} is {state_name(self._state)}: {self._reason}"
        )
        raise Unavailable(
            message,
            reason=Reason.WAITING_FOR_VERSION,
            metadata={"channel": self._channel, "state": state_name(self._state)},
        )


def state_name(state: info_pb2.ServiceState.ValueType) -> str:
    """Name of a state without its prefix, such as `SERVING`."""
    return State.Name(state).removeprefix(_PREFIX)
