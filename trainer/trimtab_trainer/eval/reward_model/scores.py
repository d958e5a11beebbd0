"""Scores of ranked answers, by a model folder on this machine or by a reward service; the same numbers from both.

Either is a `Scorer`; what comes after knows no difference.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from trimtab.aio import AsyncClient
from trimtab.cli.score_requests import RequestOptions, score_in_order
from trimtab.cli.score_rows import InputRow
from trimtab.errors import ConfigError, DataError, Reason
from trimtab.types import Priority, TruncationSide
from trimtab_models.loading import load_reward_model, max_sequence_tokens
from trimtab_models.tokenizer import load_tokenizer
from trimtab_trainer.config import RewardModelConfig
from trimtab_trainer.dpo_reference import folder_digest
from trimtab_trainer.eval.reward_model.data import Item
from trimtab_trainer.examples import NO_TEMPLATE, Reading, ranking_examples
from trimtab_trainer.reward_model_accuracy import held_out_scores

__all__ = ["FolderScorer", "Scored", "Scorer", "ServiceScorer"]

_REQUEST_ITEMS = 64
_REQUESTS_IN_FLIGHT = 4


@dataclass(frozen=True)
class Scored:
    """The scores of some items.

    Attributes:
        scores: of each item the scores of its answers; None where one is too long for the model.
        model: what scored: its place, and a digest or a version.
    """

    scores: list[list[float] | None]
    model: dict[str, str]


class Scorer(Protocol):
    """Scores the answers of rankings."""

    def score(self, items: Sequence[Item]) -> Scored:
        """Scores of every item, in order.

        Raises:
            DataError: names file and line of what cannot be scored for another reason than its length.
        """
        ...


@dataclass(frozen=True)
class FolderScorer:
    """A reward model's folder, as the trainer measures one: each prompt is read once for all its answers.

    Attributes:
        folder: Hugging Face folder of a sequence classifier with one label.
        device: cpu, cuda or cuda:N.
        micro_batch_tokens: most tokens of one forward.
    """

    folder: Path
    device: str = "cpu"
    micro_batch_tokens: int = 8192

    def score(self, items: Sequence[Item]) -> Scored:
        """See `Scorer`.

        Raises:
            ModelFolderError: the folder holds no reward model.
        """
        tokenizer = load_tokenizer(self.folder)
        if not tokenizer.chat_template:
            _refuse_turns(items)
        model = load_reward_model(self.folder, device=torch.device(self.device))
        most = max_sequence_tokens(model)
        reading = Reading(tokenizer, None, leave_out=False, skip_bad_rows=0, warn=lambda text: None)
        examples = ranking_examples(items[0].path, [item.ranking for item in items], reading)
        fitting = [index for index, one in enumerate(examples) if len(one.prompt) + max(map(len, one.answers)) <= most]
        config = RewardModelConfig(micro_batch_tokens=self.micro_batch_tokens)
        found = held_out_scores(config, model, [examples[index] for index in fitting])
        scores: list[list[float] | None] = [None] * len(items)
        for index, of_item in zip(fitting, found, strict=True):
            scores[index] = of_item
        return Scored(scores, {"folder": str(self.folder), "weights_digest": folder_digest(self.folder)})


@dataclass(frozen=True)
class ServiceScorer:
    """A reward service.

    Attributes:
        connect: makes a client of it; a call's deadline is the client's.
        model: by name; empty for the service's default.
        patience_s: longest wait for a service that is away or full.
    """

    connect: Callable[[], AsyncClient]
    model: str = ""
    patience_s: float = 300.0

    def score(self, items: Sequence[Item]) -> Scored:
        """See `Scorer`.

        Raises:
            ConfigError: the service went over to another version on the way.
            TrimtabError: what the service answers to a whole request.
        """
        return asyncio.run(self._score(items))

    async def _score(self, items: Sequence[Item]) -> Scored:
        options = RequestOptions(
            model=self.model,
            priority=Priority.BULK,
            truncation=TruncationSide.NONE,
            batch=_REQUEST_ITEMS,
            in_flight=_REQUESTS_IN_FLIGHT,
            patience_s=self.patience_s,
        )
        rows = (
            InputRow(item.line, 0, {"prompt": _prompt(item), "answers": list(item.ranking.answers)}, "answers")
            for item in items
        )
        scores: list[list[float] | None] = []
        versions: set[tuple[str, int]] = set()
        async with self.connect() as client, aclosing(score_in_order(client, rows, options)) as answers:
            asked = [one.served for one in (await client.info()).models if self.model in ("", one.served.name)]
            # Functions, remote servers and what combines others have no tokenizer, and read turns all the same.
            if asked and all(served.tokenizer_digest and not served.chat_template_digest for served in asked):
                _refuse_turns(items)
            async for batch in answers:
                for scored in batch:
                    item = items[len(scores)]
                    if scored.error is None:
                        scores.append([float(reward) for reward in scored.written["rewards"]])
                        versions.add((scored.written["reward_model"], scored.written["reward_version"]))
                    elif scored.error.reason is Reason.SEQUENCE_TOO_LONG:
                        scores.append(None)
                    else:
                        raise DataError(
                            f"{item}: {scored.error.message}", field=scored.error.field, value=scored.error.value
                        )
            known = {(one.served.name, one.served.version): one.served for one in (await client.info()).models}
        served = ", ".join(f"{name} version {version}" for name, version in sorted(versions))
        if len(versions) > 1:
            raise ConfigError(
                f"target: {client.target} changed its model on the way: {served}", field="target", value=served
            )
        digests = [known[one].weights_digest for one in versions if one in known]
        digest = {"weights_digest": digests[0]} if digests and digests[0] else {}
        return Scored(scores, {"target": client.target, "served": served, **digest})


def _refuse_turns(items: Sequence[Item]) -> None:
    """Refuses the first conversation, for a model that has no template to write its turns with."""
    for item in items:
        if not isinstance(item.ranking.prompt, str):
            raise DataError(f"{item}: {NO_TEMPLATE}", field="messages")


def _prompt(item: Item) -> object:
    prompt = item.ranking.prompt
    return prompt if isinstance(prompt, str) else [{"role": turn.role, "content": turn.content} for turn in prompt]
