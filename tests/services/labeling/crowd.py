"""Many labelers at once, each in a task of one event loop, who send again whatever is not answered."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from typing import Any
from uuid import uuid4

import httpx

from .people import PASSWORD

PATIENCE_S = 60.0


class Crowd:
    """Labelers who work until there is nothing left to do.

    Attributes:
        acknowledged: what the service said that it took: (labeler, prompt) -> ranking by text of the answers.
        seconds: of each answered request, by what was asked.
        repeated: requests that were sent again, since no answer came or the service was away.
    """

    def __init__(self, url: str, project: str, names: list[str], *, pause_s: float = 0.0) -> None:
        self._url = f"{url}/labeling/api/"
        self._project = project
        self._names = names
        self._pause_s = pause_s
        self.acknowledged: dict[tuple[str, str], list[list[str]]] = {}
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.repeated = 0

    async def work(self) -> None:
        """Logs all of them in, then lets them label."""
        await asyncio.gather(*(self._label(name) for name in self._names))

    async def _label(self, name: str) -> None:
        rng = random.Random(name)
        async with httpx.AsyncClient(base_url=self._url, timeout=10, trust_env=False) as page:
            session = await self._send(page, "login", "POST", "login", {"name": name, "password": PASSWORD})
            page.headers["x-csrf-token"] = session["csrf_token"]
            while given := (await self._send(page, "next", "POST", f"projects/{self._project}/next", {}))["assignment"]:
                path = f"assignments/{given['id']}"
                places = rng.sample(range(len(given["answers"])), len(given["answers"]))
                ranking = [[place] for place in places]
                draft = {"draft_id": uuid4().hex, "base_draft_id": _draft_id(given), "content": {"ranking": ranking}}
                await self._send(page, "draft", "PUT", f"{path}/draft", draft)
                await asyncio.sleep(self._pause_s * rng.random())
                label = {"submission_id": uuid4().hex, "label": {"ranking": ranking}}
                await self._send(page, "submit", "POST", f"{path}/submit", label)
                texts = [[given["answers"][place] for place in group] for group in ranking]
                assert (name, given["prompt"]) not in self.acknowledged
                self.acknowledged[name, given["prompt"]] = texts

    async def _send(self, page: httpx.AsyncClient, what: str, method: str, path: str, body: Any) -> Any:
        give_up = time.monotonic() + PATIENCE_S
        while True:
            began = time.monotonic()
            try:
                answer = await page.request(method, path, json=body)
                if answer.status_code == 200:
                    self.seconds[what].append(time.monotonic() - began)
                    return answer.json()
                assert answer.status_code == 503, (path, answer.status_code, answer.text)
            except httpx.TransportError:
                pass
            assert time.monotonic() < give_up, f"{path}: no answer for {PATIENCE_S:.0f} s"
            self.repeated += 1
            await asyncio.sleep(0.1)


def _draft_id(given: dict[str, Any]) -> str:
    return given["draft"]["draft_id"] if given["draft"] else ""
