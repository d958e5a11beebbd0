"""TRL (tested with 1.16): rewards of a Trimtab service in `GRPOTrainer`, and `RewardTrainer`'s evaluation of one.

from trl import GRPOTrainer
from trimtab.integrations.trl import reward_function

trainer = GRPOTrainer(model=..., reward_funcs=reward_function("127.0.0.1:50051"), train_dataset=...)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.errors import DataError
from trimtab.integrations.rewards import Conversation, RemoteRewards

__all__ = ["PreferenceMetrics", "evaluate_preferences", "reward_function"]


def reward_function(service: str | RemoteRewards, *, name: str = "trimtab_reward") -> Callable[..., list[float]]:
    """A reward function for `GRPOTrainer(reward_funcs=...)`, and for the other trainers of TRL that take such.

    Args:
        service: host:port of the reward service, or `RemoteRewards` to say more than that.
        name: under which TRL logs its rewards: `rewards/NAME/mean`.

    Returns:
        `f(prompts, completions, **kwargs) -> list[float]`, as TRL calls it: lists of texts or of messages, one for each
        completion; other columns of the dataset come as keywords and are not used. It raises `TrimtabError`.
    """
    remote = RemoteRewards(service) if isinstance(service, str) else service

    def rewards(
        prompts: Sequence[str | Conversation], completions: Sequence[str | Conversation], **kwargs: object
    ) -> list[float]:
        return remote.of_pairs(prompts, completions, [f"completions[{index}]" for index in range(len(completions))])

    rewards.__name__ = name
    return rewards


@dataclass(frozen=True)
class PreferenceMetrics:
    """What `RewardTrainer` reports of an evaluation, without its prefix `eval_`, over `count` pairs.

    Attributes:
        count: of pairs.
        loss: mean of -log sigmoid(r_chosen - r_rejected - margin), in nats (Bradley and Terry 1952; the margin, 0 where
            a row has none, is that of Touvron et al. 2023, Llama 2, equation 2).
        accuracy: share of the pairs with r_chosen > r_rejected; a tie counts as wrong.
        margin: mean of r_chosen - r_rejected.
        mean_reward, min_reward, max_reward: over chosen and rejected answers.
    """

    count: int
    loss: float
    accuracy: float
    margin: float
    mean_reward: float
    min_reward: float
    max_reward: float


def evaluate_preferences(
    rows: Iterable[Any],  # mappings, which a Dataset's type does not say of its rows
    service: str | RemoteRewards,
) -> PreferenceMetrics:
    """Evaluates a served reward model on preferences as `RewardTrainer.evaluate` would evaluate its own.

    Args:
        rows: a `datasets.Dataset`, or any other rows of TRL's preference format: `prompt`, `chosen` and `rejected`, all
            texts or all messages; conversations may have their prompt inside `chosen` and `rejected` instead. A row
            may have a `margin`.
        service: host:port of the reward service, or `RemoteRewards` to say more than that.

    Raises:
        DataError: a row lacks a field, or there is no row.
        TrimtabError: what the service answered; names row and field, such as `rows[3].chosen`.
    """
    remote = RemoteRewards(service) if isinstance(service, str) else service
    rewards: list[float] = []
    margins: list[float] = []
    numbered = enumerate(rows)
    while chunk := list(islice(numbered, max(1, remote.batch // 2))):
        sides = [side for number, row in chunk for side in _sides(number, row)]
        prompts, completions, names = zip(*sides, strict=True)
        rewards += remote.of_pairs(prompts, completions, names)
        margins += [float(row.get("margin") or 0.0) for _, row in chunk]
    if not margins:
        raise DataError("rows: there are none", field="rows", value=0, limit="at least 1")
    return _metrics(np.array(rewards).reshape(-1, 2), np.array(margins))


def _sides(number: int, row: Mapping[str, Any]) -> Iterator[tuple[str | Conversation, str | Conversation, str]]:
    """Prompt, completion and name of the chosen and of the rejected answer."""
    for side in ("chosen", "rejected"):
        name = f"rows[{number}].{side}"
        completion = row.get(side)
        if not isinstance(completion, str | Sequence):
            raise DataError(f"{name}: must be a text or messages; found {type(completion).__name__}", field=name)
        prompt = row.get("prompt")
        if prompt is None and isinstance(completion, str):
            raise DataError(
                f"rows[{number}].prompt: must be there where answers are texts", field=f"rows[{number}].prompt"
            )
        yield prompt or (), completion, name


def _metrics(rewards: npt.NDArray[np.float64], margins: npt.NDArray[np.float64]) -> PreferenceMetrics:
    """Of rewards [pairs, 2], chosen first, and margins [pairs]."""
    differences = rewards[:, 0] - rewards[:, 1]
    return PreferenceMetrics(
        count=len(margins),
        loss=float(np.logaddexp(0.0, margins - differences).mean()),
        accuracy=float((differences > 0).mean()),
        margin=float(differences.mean()),
        mean_reward=float(rewards.mean()),
        min_reward=float(rewards.min()),
        max_reward=float(rewards.max()),
    )
