"""Reward servers elsewhere, over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

from trimtab.errors import DeadlineExceeded, InternalError, InvalidRequest, Unavailable
from trimtab_services.reward.config import RemoteConfig
from trimtab_services.reward.external import TextPair

__all__ = ["RemoteReward"]


class RemoteReward:
    """Asks a reward server for a batch; blocks. Never tries again: who asked knows how long it can wait.

    Args:
        name: of the model, for messages.
        config: where the server is, and what it speaks.
    """

    def __init__(self, name: str, config: RemoteConfig) -> None:
        self._name = name
        self._config = config
        self._client = httpx.Client(timeout=config.timeout_s)

    def __call__(self, pairs: Sequence[TextPair]) -> Sequence[float]:
        """Rewards of a batch.

        Raises:
            DeadlineExceeded: no answer within the time limit.
            Unavailable: the server cannot be reached, or answers that it cannot serve now.
            InvalidRequest: it refuses the batch.
            InternalError: its answer is no list of rewards.
        """
        body = self._openrlhf(pairs) if self._config.protocol == "openrlhf" else self._trimtab(pairs)
        answer = self._post(body)
        try:
            if self._config.protocol == "openrlhf":
                return [_first(reward) for reward in answer["rewards"]]
            return [score["reward"] for score in answer["scores"]]
        except (KeyError, TypeError, IndexError):
            raise InternalError(
                f"{self._name}: {self._config.url} answered without a list of rewards",
                field="url",
                value=self._config.url,
            ) from None

    def close(self) -> None:
        """Closes its connections."""
        self._client.close()

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

    def _post(self, body: dict[str, Any]) -> Any:
        url, headers = self._config.url, {}
        if self._config.token_file is not None:
            headers["authorization"] = f"Bearer {self._config.token_file.read_text(encoding='utf-8').strip()}"
        try:
            answer = self._client.post(url, json=body, headers=headers)
        except httpx.TimeoutException:
            raise DeadlineExceeded(
                f"{self._name}: {url} did not answer within {self._config.timeout_s:g} s",
                field="timeout_s",
                limit=self._config.timeout_s,
            ) from None
        except httpx.HTTPError as error:
            raise Unavailable(f"{self._name}: {url} cannot be reached: {error}", field="url", value=url) from None
        status = answer.status_code
        if status in (429, 503) or status >= 500:
            raise Unavailable(f"{self._name}: {url} answered {status}", field="url", value=status)
        if status >= 400:
            raise InvalidRequest(f"{self._name}: {url} refused the items: {status}", field="url", value=status)
        try:
            return answer.json()
        except ValueError:
            raise InternalError(f"{self._name}: {url} answered no JSON", field="url", value=url) from None


def _first(reward: Any) -> Any:
    """OpenRLHF's server answers a number for each query, or a list of one."""
    return reward[0] if isinstance(reward, list) else reward
