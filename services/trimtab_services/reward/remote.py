"""Reward servers elsewhere, over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Any, cast

import httpx

from trimtab.errors import DeadlineExceeded, InternalError, InvalidRequest, TrimtabError, Unavailable
from trimtab_services.reward.config import RemoteConfig
from trimtab_services.reward.external import TextPair

__all__ = ["RemoteReward"]

_BYTES, _ITEM_BYTES = 64 * 1024, 4 * 1024
"""Of an answer, and for each of its items beside."""

_OF_THE_ITEMS = (400, 413, 422)
"""Statuses that say that the items are wrong; others of the 400s that we are."""


class RemoteReward:
    """Asks a reward server for a batch; blocks. Never tries again: who asked knows how long it can wait.

    Args:
        name: of the model, for messages.
        config: where the server is, and what it speaks.
    """

    final_errors: tuple[type[TrimtabError], ...] = (DeadlineExceeded, Unavailable, InternalError)

    def __init__(self, name: str, config: RemoteConfig) -> None:
        self._name = name
        self._config = config
        self._loop = asyncio.new_event_loop()  # of the one thread that calls: a limit of all of a request needs one
        self._client: httpx.AsyncClient | None = None
        self._asking: asyncio.Task[Any] | None = None

    def __call__(self, pairs: Sequence[TextPair]) -> Sequence[float]:
        """Rewards of a batch.

        Raises:
            DeadlineExceeded: no whole answer within the time limit.
            Unavailable: the server cannot be reached, or answers that it cannot serve now.
            InvalidRequest: it refuses the batch.
            InternalError: it refuses us, or its answer is no list of rewards, or far too long for one.
        """
        body = self._openrlhf(pairs) if self._config.protocol == "openrlhf" else self._trimtab(pairs)
        answer = self._loop.run_until_complete(self._ask(body, most_bytes=_BYTES + _ITEM_BYTES * len(pairs)))
        try:
            if self._config.protocol == "openrlhf":
                return [_first(reward) for reward in answer["rewards"]]
            return [score["reward"] for score in answer["scores"]]
        except (KeyError, TypeError, IndexError):
            raise self._broken("answered without a list of rewards") from None

    def close(self) -> None:
        """Gives the question under way up; its connection ends with the process. Safe from any thread."""
        asking = self._asking
        if asking is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(asking.cancel)

    def _openrlhf(self, pairs: Sequence[TextPair]) -> dict[str, Any]:
        prompts = [self._text(pair) for pair in pairs]
        queries = [prompt + pair.completion for prompt, pair in zip(prompts, pairs, strict=True)]
        return {"query": queries, "prompts": prompts, "labels": [None] * len(pairs)}

    def _trimtab(self, pairs: Sequence[TextPair]) -> dict[str, Any]:
        items = [
            {"prompt": pair.prompt, "completion": pair.completion}
            if isinstance(pair.prompt, str)
            else {"messages": [*pair.prompt, {"role": "assistant", "content": pair.completion}]}
            for pair in pairs
        ]
        return {"model": self._config.model, "items": items}

    def _text(self, pair: TextPair) -> str:
        if isinstance(pair.prompt, str):
            return pair.prompt
        raise InvalidRequest(
            f"input: {self._name!r} speaks `openrlhf`, which has texts, no messages: their template is not known here",
            field="input",
            value="messages",
            limit="text",
        )

    async def _ask(self, body: dict[str, Any], *, most_bytes: int) -> Any:
        url, limit_s = self._config.url, self._config.timeout_s
        self._asking = asyncio.current_task()
        try:
            async with asyncio.timeout(limit_s):
                status, content = await self._post(body, most_bytes)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self._name}: {url} did not answer within {limit_s:g} s", field="timeout_s", limit=limit_s
            ) from None
        except asyncio.CancelledError:
            raise Unavailable(f"{self._name}: the service ends") from None
        except httpx.HTTPError as error:
            raise Unavailable(f"{self._name}: {url} cannot be reached: {error}", field="url", value=url) from None
        finally:
            self._asking = None
        if status == 429 or status >= 500:
            raise Unavailable(f"{self._name}: {url} answered {status}", field="url", value=status)
        if status in _OF_THE_ITEMS:
            raise InvalidRequest(f"{self._name}: {url} refused the items: {status}", field="url", value=status)
        if status >= 300:
            raise self._broken(f"answered {status}")
        try:
            return json.loads(content)
        except ValueError:
            raise self._broken("answered no JSON") from None

    async def _post(self, body: dict[str, Any], most_bytes: int) -> tuple[int, bytes]:
        """Status and content of the answer."""
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=None)  # all of a request has one limit
        async with self._client.stream("POST", self._config.url, json=body, headers=self._headers()) as answer:
            content = bytearray()
            pieces = answer.aiter_bytes()
            async with aclosing(cast("AsyncGenerator[bytes]", pieces)):
                async for piece in pieces:
                    content += piece
                    if len(content) > most_bytes:
                        raise self._broken(f"answered more than {most_bytes} bytes")
            return answer.status_code, bytes(content)

    def _headers(self) -> dict[str, str]:
        file = self._config.token_file
        if file is None:
            return {}
        try:
            return {"authorization": f"Bearer {file.read_text(encoding='utf-8').strip()}"}
        except OSError as error:
            raise Unavailable(
                f"{self._name}: token_file: {file}: {error.strerror}", field="token_file", value=file
            ) from None

    def _broken(self, what: str) -> InternalError:
        return InternalError(f"{self._name}: {self._config.url} {what}", field="url", value=self._config.url)


def _first(reward: Any) -> Any:
    """OpenRLHF's server answers a number for each query, or a list of one."""
    return reward[0] if isinstance(reward, list) else reward
