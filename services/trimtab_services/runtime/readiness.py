"""Which of a server's models have a version to serve: the server is SERVING once all of them have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trimtab_services.runtime.state import Runtime, State

__all__ = ["Readiness"]


class Readiness:
    """Moves the state of a server with several models.

    Args:
        runtime: of the server.
        names: of all models that have to be there.
    """

    def __init__(self, runtime: Runtime[Any], names: Iterable[str]) -> None:
        self._runtime = runtime
        self._missing: dict[str, tuple[str, str]] = dict.fromkeys(names, ("", ""))

    async def waits(self, name: str, *, channel: str, reason: str = "") -> None:
        """A model has no version yet.

        Args:
            name: of the model.
            channel: that will bring it.
            reason: one sentence on why it is not there; empty: the channel has none.
        """
        self._missing[name] = channel, reason
        await self._show()

    async def serves(self, name: str) -> None:
        """A model has a version, from now on."""
        self._missing.pop(name, None)
        await self._show()

    async def _show(self) -> None:
        if not self._missing:
            await self._runtime.set_state(State.SERVICE_STATE_SERVING)
            return
        channel, reason = next(iter(self._missing.values()))
        if channel:
            await self._runtime.set_state(State.SERVICE_STATE_WAITING_FOR_VERSION, reason, channel=channel)
