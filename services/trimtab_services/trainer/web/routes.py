"""What the page asks for: JSON, all of it under `/runs/api/`, and all of it read only.

An error is `{"error", "reason", "message", "field", "value", "limit", "metadata"}` with a status: 400 a value is wrong,
401 nobody is signed in, 403 the token lacks scope `runs`, 404 no such run, 503 the service is not ready.

| request | answer |
| --- | --- |
| `POST session` `{token}` | `{name}`, the token's, null where none is asked; sets the cookie |
| `GET session` | the same; 401 where nobody is signed in |
| `POST session/end` `{}` | ends the session |
| `GET runs?before=N&limit=N` | `{runs: [RUN], next_before}`, newest first |
| `GET runs/NAME` | `{run: RUN and REPLICAS, spec_yaml, directory, sequence, plots, curves: {stage: CURVES}, queue, \
warnings, versions, newest_version, rollouts}`: all up to event `sequence`; `warnings`, `versions` and `rollouts` are \
counts; CURVES as `StageCurves.to_json` |
| `GET runs/NAME/events?after=N` | the events after a number, as they come: `live` |
| `GET runs/NAME/log?before=N&limit=N&warnings=1` | `{entries, next_before}`, newest first |
| `GET runs/NAME/versions?before=N&limit=N` | `{versions: [{version, stage, step, time}], next_before}`, newest first |
| `GET runs/NAME/rollouts?after=N` | `{rollouts: [{sequence, stage, step, prompt, completion, reward, ended}]}`: of \
the last ones that the run told of, those after an event, oldest first |
| `GET runs/NAME/models` | `{models}`: whose samples there are |
| `GET runs/NAME/samples?query=TEXT&after=N&limit=N` | as `SampleFiles.read` |
| `GET runs/NAME/output?after=N` | `{output: {text, begin, end, size}}`: what the process, or the first pod of the \
Job, wrote from byte N on, or its end where that is far; null where it is not here |

RUN and REPLICAS are those of `run_json` and `replicas_json`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from trimtab_services.runtime.http import Route
from trimtab_services.runtime.queries import limit_of, number_of
from trimtab_services.runtime.state import Runtime
from trimtab_services.runtime.web import page_routes
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.trainer.records import RunRecords
from trimtab_services.trainer.run_log import read_output
from trimtab_services.trainer.run_rows import ENDED, RunRow
from trimtab_services.trainer.web.access import Visitors
from trimtab_services.trainer.web.answers import (
    log_json,
    plot_json,
    queue_json,
    replicas_json,
    rollout_json,
    run_json,
    version_json,
)
from trimtab_services.trainer.web.digest import Digests
from trimtab_services.trainer.web.live import LiveRuns
from trimtab_services.trainer.web.samples import SampleFiles

__all__ = ["PAGE", "web_routes"]

PAGE = "/runs/"
_MOST_PACES = 32
"""Runs of a list whose time left is told; it takes their events."""


def web_routes(runtime: Runtime[TrainerServiceConfig], records: RunRecords) -> Sequence[Route]:
    """The page and what it asks for.

    Args:
        runtime: the server it lives in.
        records: of the runs.
    """
    visitors, digests = Visitors(runtime), Digests(records)
    api, live = _Api(records, digests), LiveRuns(runtime, records, digests, visitors)
    return [
        *page_routes(PAGE, Path(__file__).parent / "static"),
        *visitors.routes(),
        visitors.route("runs", api.runs),
        visitors.route("runs/{name}", api.run),
        visitors.route("runs/{name}/events", live.follow, deadline_s=math.inf),
        visitors.route("runs/{name}/log", api.log),
        visitors.route("runs/{name}/versions", api.versions),
        visitors.route("runs/{name}/rollouts", api.rollouts),
        visitors.route("runs/{name}/models", api.models),
        visitors.route("runs/{name}/samples", api.samples),
        visitors.route("runs/{name}/output", api.output),
    ]


class _Api:
    """The answers."""

    def __init__(self, records: RunRecords, digests: Digests) -> None:
        self._records, self._store = records, records.store
        self._digests = digests
        self._samples = SampleFiles()

    async def runs(self, request: web.Request) -> dict[str, Any]:
        limit, before = limit_of(request), number_of(request, "before")
        rows = await self._records.ask(self._store.runs, before_number=before, limit=limit + 1)
        page = rows[:limit]
        active = [run for run in page if run.state not in ENDED][:_MOST_PACES]
        digests = {run.number: await self._digests.of(run) for run in active}
        return {
            "runs": [run_json(run, digests.get(run.number)) for run in page],
            "next_before": page[-1].number if len(rows) > limit else None,
        }

    async def run(self, request: web.Request) -> dict[str, Any]:
        run = await self._run(request)
        digest = await self._digests.of(run)
        run = await self._run(request)  # not older than the events
        return {
            "run": run_json(run, digest) | replicas_json(self._records.replicas.of(run)),
            "spec_yaml": run.spec_yaml,
            "directory": run.directory,
            "sequence": digest.sequence,
            "plots": [plot_json(plot) for plot in digest.plots()],
            "curves": {stage: curves.to_json() for stage, curves in digest.curves.items()},
            "queue": queue_json(digest.queue),
            "warnings": len(digest.warnings),
            "versions": len(digest.versions),
            "newest_version": digest.versions[-1].version if digest.versions else 0,
            "rollouts": len(digest.rollouts),
        }

    async def log(self, request: web.Request) -> dict[str, Any]:
        run = await self._run(request)
        digest = await self._digests.of(run)
        numbers = digest.warnings if "warnings" in request.query else digest.log
        before, limit = number_of(request, "before"), limit_of(request)
        wanted = [number for number in numbers if before is None or number < before]
        page = wanted[-limit:][::-1]
        events = await self._records.ask(self._store.events_at, run.name, page)
        return {
            "entries": [log_json(event) for event in reversed(events)],
            "next_before": page[-1] if len(wanted) > limit else None,
        }

    async def versions(self, request: web.Request) -> dict[str, Any]:
        digest = await self._digests.of(await self._run(request))
        before, limit = number_of(request, "before"), limit_of(request)
        wanted = [one for one in digest.versions if before is None or one.version < before]
        page = wanted[-limit:][::-1]
        return {
            "versions": [version_json(one) for one in page],
            "next_before": page[-1].version if len(wanted) > limit else None,
        }

    async def rollouts(self, request: web.Request) -> dict[str, Any]:
        digest = await self._digests.of(await self._run(request))
        after = number_of(request, "after") or 0
        return {"rollouts": [rollout_json(one) for one in digest.rollouts if one.sequence > after]}

    async def models(self, request: web.Request) -> dict[str, Any]:
        run = await self._run(request)
        return {"models": await asyncio.to_thread(self._samples.models, Path(run.directory))}

    async def samples(self, request: web.Request) -> dict[str, Any]:
        run = await self._run(request)
        after = number_of(request, "after")
        return await asyncio.to_thread(
            self._samples.read,
            Path(run.directory),
            query=request.query.get("query", ""),
            after=-1 if after is None else after,
            limit=limit_of(request),
        )

    async def output(self, request: web.Request) -> dict[str, Any]:
        run = await self._run(request)
        after = number_of(request, "after") or 0
        return {"output": await asyncio.to_thread(read_output, Path(run.directory), after)}

    async def _run(self, request: web.Request) -> RunRow:
        return await self._records.ask(self._store.run, request.match_info["name"])
