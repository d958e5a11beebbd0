"""`RemoteRewards`: rewards of a reward service for code that calls a plain function."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trimtab.channel import TLSConfig, Token
from trimtab.client import Client
from trimtab.convert.shared import under
from trimtab.errors import DeadlineExceeded, InvalidRequest, Overloaded, TrimtabError, Unavailable
from trimtab.types import ItemScore, Priority, ScoreItem, ScoreRequest, TruncationSide, VersionRequirement

__all__ = ["Conversation", "RemoteRewards"]

Conversation = Sequence[Mapping[str, Any]]
"""Messages `{"role", "content"}`."""

_LONGEST_DELAY_S = 5.0
_PASSING = (Overloaded, Unavailable, DeadlineExceeded)
"""Errors of an item that the same item need not meet again."""


@dataclass(frozen=True)
class RemoteRewards:
    """Where rewards come from, and on which terms.

    It connects at its first call in a process and stays connected: it can be pickled, and used on both sides of a fork
    and by several threads. A call whose request fails in passing is repeated as `Client` does, within the deadline. So
    are the items that are answered so, because what the service asks for them is full, away or too slow.

    Attributes:
        address: host:port of the reward service.
        model: reward model by name; empty is the service's default.
        timeout_s: deadline of a request with all that is repeated of it, in seconds.
        batch: most items of a request; more are sent one request after the other.
        truncation: which end of what is too long may be cut; without it too long is an error.
        empty_reward: what an empty completion gets, in which a reward model finds nothing to read; without it such a
            completion is an error.
        version: which versions of the model may answer.
        token_file: file that holds the bearer token.
        tls: set for a service with TLS.
        insecure: allows a token in plaintext beyond this host.
    """

    address: str
    model: str = ""
    timeout_s: float = 60.0
    batch: int = 1024
    truncation: TruncationSide = TruncationSide.NONE
    empty_reward: float | None = None
    version: VersionRequirement = VersionRequirement()
    token_file: Path | None = None
    tls: TLSConfig | None = None
    insecure: bool = False

    def of_items(self, items: Sequence[ScoreItem], names: Sequence[str]) -> list[float]:
        """Rewards of items, in their order.

        Args:
            items: what to score.
            names: what an error calls each of them, such as `completions[3]`.

        Raises:
            TrimtabError: what the service answered; where one item is to blame, with its name.
        """
        rewards: list[float] = []
        client = _client(self, os.getpid())
        for start in range(0, len(items), self.batch):
            for score in self._scores(client, items[start : start + self.batch]):
                if score.error is not None:
                    raise _named(names[len(rewards)], score.error)
                rewards.append(score.reward)
        return rewards

    def _scores(self, client: Client, items: Sequence[ScoreItem]) -> list[ItemScore]:
        """Scores of one request's items; what failed in passing is asked for again while there is time."""
        give_up = time.monotonic() + self.timeout_s
        scores: dict[int, ItemScore] = {}
        left = list(range(len(items)))
        delay_s = 0.1
        while True:
            request = ScoreRequest(
                items=tuple(items[index] for index in left),
                model=self.model,
                truncation=self.truncation,
                per_item_errors=True,
                priority=Priority.ROLLOUT,
                version=self.version,
            )
            found = client.score(request, timeout_s=give_up - time.monotonic()).scores
            scores.update(zip(left, found, strict=True))
            left = [index for index in left if isinstance(scores[index].error, _PASSING)]
            wait_s = delay_s * random.uniform(1.0, 1.25)  # apart from other callers
            if not left or time.monotonic() + wait_s >= give_up:
                return [scores[index] for index in range(len(items))]
            time.sleep(wait_s)
            delay_s = min(_LONGEST_DELAY_S, 2 * delay_s)

    def of_pairs(
        self,
        prompts: Sequence[str | Conversation],
        completions: Sequence[str | Conversation],
        names: Sequence[str],
    ) -> list[float]:
        """Rewards of completions to their prompts, in their order.

        Args:
            prompts: texts, which a service whose model has a chat template takes as one user turn, or conversations.
            completions: one for each prompt: a text, or the turns that follow a conversation, an assistant's last.
            names: what an error calls each completion.

        Raises:
            TrimtabError: as `of_items`; an empty completion without `empty_reward` is an InvalidRequest.
        """
        items: dict[int, ScoreItem] = {}
        rewards: dict[int, float] = {}
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            if not _is_empty(completion):
                with under(names[index]):
                    items[index] = _item(prompt, completion)
            elif self.empty_reward is not None:
                rewards[index] = self.empty_reward
            else:
                raise InvalidRequest(
                    f"{names[index]}: it is empty, so no reward model can score it; `empty_reward` gives such a "
                    "completion a reward",
                    field=names[index],
                )
        found = self.of_items(list(items.values()), [names[index] for index in items])
        rewards.update(zip(items, found, strict=True))
        return [rewards[index] for index in range(len(prompts))]


@cache
def _client(service: RemoteRewards, process: int) -> Client:
    """One for each service and process; a fork must not share its parent's."""
    return Client(
        service.address,
        token=Token(file=Path(service.token_file)) if service.token_file else None,
        tls=service.tls,
        timeout_s=service.timeout_s,
        insecure=service.insecure,
    )


def _item(prompt: str | Conversation, completion: str | Conversation) -> ScoreItem:
    before: Any = prompt if isinstance(prompt, str) else tuple(_messages(prompt))
    if isinstance(completion, str):
        return ScoreItem(prompt=before, completion=completion)
    if isinstance(before, str):
        raise InvalidRequest(
            "prompt: it is a text, and the completion is messages; both must be messages", field="prompt"
        )
    spoken: Any = (*before, *_messages(completion))  # `ScoreItem` makes and checks its own records of them
    return ScoreItem(messages=spoken)


def _messages(conversation: Conversation) -> Iterator[Mapping[str, Any]]:
    """Messages without the keys that a table has for all rows and that say nothing in this one."""
    return ({key: value for key, value in message.items() if value is not None} for message in conversation)


def _is_empty(completion: str | Conversation) -> bool:
    if isinstance(completion, str):
        return not completion
    return len(completion) == 0 or not completion[-1].get("content")


def _named(name: str, error: TrimtabError) -> TrimtabError:
    """The error of `items[i]` as that of what the caller calls `name`."""
    return error.at(name + error.field.partition("]")[2])
