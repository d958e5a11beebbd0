"""A run as it goes on: server-sent events.

The stream begins after the sequence number that the page has seen, so a page that lost its connection goes on where it
was: nothing is missed, nothing comes twice. Its messages are

- `events`, a JSON list of events; the id of the message is the number of the last one;
- `run`, the run itself with its replicas, at first and whenever either has changed;
- `behind`: the page lacks so many events, or knows those of an earlier run of the name, that it had better ask for the
  curves again; the stream ends;
- `ended`: the run has ended and all is sent; the stream ends. A page that asks again later sees whether it was resumed;
- `alive`, now and then where nothing happens.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

from aiohttp import web

from trimtab.errors import REASONS, Overloaded, TrimtabError
from trimtab_services.runtime.http import CODE
from trimtab_services.runtime.queries import number_of
from trimtab_services.runtime.state import Runtime
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.trainer.records import RunRecords
from trimtab_services.trainer.run_rows import ENDED
from trimtab_services.trainer.web.access import Visitors
from trimtab_services.trainer.web.answers import event_json, replicas_json, run_json
from trimtab_services.trainer.web.digest import Digests

__all__ = ["LiveRuns"]

_ALIVE_S = 10.0
_LOOK_S = 0.5
_MOST_BEHIND = 2000
_MOST_STREAMS = 200


class LiveRuns:
    """Sends the events of runs to pages.

    Args:
        runtime: the server it lives in.
        records: of the runs.
        digests: of the runs.
        visitors: who may look, asked again while a stream goes on.
    """

    def __init__(
        self, runtime: Runtime[TrainerServiceConfig], records: RunRecords, digests: Digests, visitors: Visitors
    ) -> None:
        self._runtime = runtime
        self._records = records
        self._digests = digests
        self._visitors = visitors
        self._streams = 0

    async def follow(self, request: web.Request) -> web.StreamResponse:
        """Answers with the stream.

        Raises:
            NotFound: no run of that name.
            Overloaded: too many streams are open.
        """
        name = request.match_info["name"]
        after = max(number_of(request, "after") or 0, _last_event_id(request))
        await self._records.ask(self._records.store.run, name)
        if self._streams >= _MOST_STREAMS:
            raise Overloaded(
                f"events: {self._streams} pages follow runs already; allowed: {_MOST_STREAMS}",
                field="events",
                value=self._streams,
                limit=_MOST_STREAMS,
                retry_after_s=_ALIVE_S,
            )
        stream = _Stream(await _begin(request))
        self._streams += 1
        try:
            await self._send(request, name, after, stream)
        except ConnectionError:
            pass  # the page has gone
        except TrimtabError as error:  # too late for an answer of its own: the page connects again, and gets it then
            request[CODE] = REASONS[error.reason][0]
        finally:
            self._streams -= 1
        return stream.response

    async def _send(self, request: web.Request, name: str, after: int, stream: _Stream) -> None:
        told: dict[str, Any] | None = None
        while not self._drains():
            self._visitors.check(request)
            changed = self._records.news(name)
            run = await self._records.ask(self._records.store.run, name)
            digest = await self._digests.of(run)
            if not 0 <= digest.sequence - after <= _MOST_BEHIND:  # below: another run has taken the name
                return await stream.send("behind")
            events = await self._records.ask(self._records.store.events, name, after)
            if events:
                after = events[-1].sequence
                await stream.send("events", [event_json(event) for event in events], number=after)
            state = run_json(run, digest) | replicas_json(self._records.replicas.of(run))
            if told is None or _without_clock(state) != _without_clock(told):
                await stream.send("run", state)
                told = state
            if not events:
                if run.state in ENDED:
                    return await stream.send("ended")
                await stream.send_alive()
                with suppress(TimeoutError):  # the drain, and a token that is taken away, are no news of the run
                    async with asyncio.timeout(_LOOK_S):
                        await changed.wait()

    def _drains(self) -> bool:
        """Whether the server is about to end; where it first ends its runs, that is worth seeing."""
        return self._runtime.draining.is_set() and not self._runtime.config.stop_runs_on_drain


class _Stream:
    """An open answer of server-sent events."""

    def __init__(self, response: web.StreamResponse) -> None:
        self.response = response
        self._sent_at = time.monotonic()

    async def send(self, kind: str, body: object = None, *, number: int | None = None) -> None:
        """Sends one message; JSON has no line breaks, so one line of data holds it."""
        identity = "" if number is None else f"id: {number}\n"
        await self.response.write(f"event: {kind}\n{identity}data: {json.dumps(body)}\n\n".encode())
        self._sent_at = time.monotonic()

    async def send_alive(self) -> None:
        """Tells that the stream is there, where nothing else did of late."""
        if time.monotonic() - self._sent_at >= _ALIVE_S:
            await self.send("alive")


async def _begin(request: web.Request) -> web.StreamResponse:
    headers = {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "X-Accel-Buffering": "no",  # proxies of the nginx kind hand each message on at once
    }
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    return response


def _last_event_id(request: web.Request) -> int:
    """What a browser that connects again by itself says it has seen."""
    text = request.headers.get("last-event-id", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


def _without_clock(state: dict[str, Any]) -> dict[str, Any]:
    """A run without what changes as time goes by."""
    return {key: value for key, value in state.items() if key not in ("seconds_left", "replicas_seconds_ago")}
