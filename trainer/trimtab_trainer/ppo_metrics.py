"""The figures of one iteration of PPO: what the report shows and what tells health from sickness."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trimtab.errors import Mismatch
from trimtab_models.tokenizer import decode
from trimtab_trainer.actor_critic import ActorCritic, UpdateFigures
from trimtab_trainer.advantages import explained_variance, kl_k3, kl_penalties
from trimtab_trainer.experience import Experience
from trimtab_trainer.miniature.gold import gold
from trimtab_trainer.reporter import RolloutSample
from trimtab_trainer.rollouts import Rollout

__all__ = ["WORK", "Clock", "check_age", "iteration_metrics", "mean_gold", "mean_kl", "samples_of"]

_MOST_CHARACTERS = 4000
"""Of a text in an event, as `trainer.proto` says."""

WORK = ("seconds_", "tokens_per_second", "publication_share", "hedged_samples")
"""How the names of those figures begin that say what an iteration took: time, bytes sent, samples asked for twice. All
others are the same in two runs of one deterministic spec."""


@dataclass
class Clock:
    """Seconds of each phase of an iteration."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the body's time."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self.seconds[f"seconds_{name}"] = self.seconds.get(f"seconds_{name}", 0.0) + seconds


def iteration_metrics(
    experience: Experience,
    figures: UpdateFigures,
    agent: ActorCritic,
    clock: Clock,
) -> dict[str, float]:
    """Figures of a batch and of its update.

    Args:
        experience: the batch, as it was before the update.
        figures: of the update.
        agent: after it.
        clock: seconds of each phase.
    """
    mask, rollouts = experience.mask, experience.rollouts
    tokens = int(mask.sum())
    sampled = float(sum(len(rollout.prompt_token_ids) + len(rollout.token_ids) for rollout in rollouts))
    measured = {
        "score": float(experience.scores.mean()),
        "mean_kl": mean_kl(experience),
        "kl_k3": _sequence_means(kl_k3(experience.old_logprobs, experience.ref_logprobs, mask)),
        "kl_coef": agent.kl.coef,
        "reward": float(np.mean([rollout.known_reward for rollout in rollouts])),
        "ended_fraction": float(np.mean([rollout.ended for rollout in rollouts])),
        "repeated_fraction": float(np.mean([_repeated(rollout.token_ids) for rollout in rollouts])),
        "completion_tokens": tokens / len(rollouts),
        "explained_variance": explained_variance(experience.values, experience.returns, mask),
        "importance_weight": float(experience.importance_weights[mask].mean()),
        "tokens_per_second": tokens / sum(clock.seconds.values()),
        "tokens_sampled": sampled,
        "sequences_sampled": float(len(rollouts)),
        "tokens_recomputed": sampled if experience.trainer_logprobs is not None else 0.0,
    }
    if experience.trainer_logprobs is not None:
        mismatch = (experience.generation_logprobs - experience.trainer_logprobs)[mask].abs()
        measured |= {"mismatch_mean": float(mismatch.mean()), "mismatch_max": float(mismatch.max())}
    return {**measured, **figures.means(), **clock.seconds}


def check_age(
    rollouts: Sequence[Rollout], sampled_at: Mapping[int, int], iteration: int, *, max_lag: int
) -> dict[str, float]:
    """How old the policies are that a batch was sampled by, by what the replicas say of every token.

    Args:
        rollouts: the batch.
        sampled_at: by version number, the iteration at whose start it was the policy.
        iteration: that the batch is for.
        max_lag: most iterations that a policy may be old.

    Returns:
        `lag`, the oldest policy's age in iterations; `mean_lag`, over tokens; `stale_fraction`, the share of
        completions with a token of a policy older than the present one, whose log-ratios importance weights correct;
        and `mixed_fraction`, the share of those that more than one policy sampled.

    Raises:
        Mismatch: a token was sampled by a version that this run did not publish, or by one that is too old.
    """
    ages: list[int] = []
    tokens_by_age: Counter[int] = Counter()
    for rollout in rollouts:
        versions = [span.version for span in rollout.version_spans]
        unknown = [version for version in versions if version not in sampled_at]
        if unknown:
            raise Mismatch(
                f"rollout {rollout.prompt_id}/{rollout.sample_index} was sampled by version {unknown[0]}, which is no "
                "policy of this run",
                field="version",
                value=unknown[0],
                limit=f"one of {sorted(sampled_at)[-3:]}",
            )
        ages.append(iteration - min(sampled_at[version] for version in versions))
        for span in rollout.version_spans:
            tokens_by_age[iteration - sampled_at[span.version]] += span.end_token - span.start_token
    if not 0 <= min(ages) <= max(ages) <= max_lag:
        raise Mismatch(
            f"a batch for iteration {iteration} was sampled by policies {min(ages)} to {max(ages)} iterations old; "
            f"allowed by ppo.max_lag: 0 to {max_lag}",
            field="ppo.max_lag",
            value=max(ages),
            limit=max_lag,
        )
    return {
        "lag": float(max(ages)),
        "mean_lag": sum(age * tokens for age, tokens in tokens_by_age.items()) / tokens_by_age.total(),
        "stale_fraction": float(np.mean([age > 0 for age in ages])),
        "mixed_fraction": float(np.mean([len(rollout.version_spans) > 1 for rollout in rollouts])),
    }


def mean_gold(rollouts: Sequence[Rollout], tokenizer: PreTrainedTokenizerBase) -> float:
    """Mean gold score of the miniature's rollouts, read from their texts: measured, and never trained on."""
    scores = [
        gold(decode(tokenizer, one.prompt_token_ids), decode(tokenizer, one.token_ids), finished=one.ended).score
        for one in rollouts
    ]
    return float(np.mean(scores))


def samples_of(rollouts: Sequence[Rollout], tokenizer: PreTrainedTokenizerBase, most: int) -> list[RolloutSample]:
    """At most so many rollouts of a batch as people read them, evenly over the batch; long texts are cut."""
    count = min(most, len(rollouts))
    return [
        RolloutSample(
            prompt=decode(tokenizer, one.prompt_token_ids)[-_MOST_CHARACTERS:],
            completion=decode(tokenizer, one.token_ids)[:_MOST_CHARACTERS],
            reward=one.known_reward,
            ended=one.ended,
        )
        for one in (rollouts[len(rollouts) * number // count] for number in range(count))
    ]


def mean_kl(experience: Experience) -> float:
    """k1 estimate of the KL to the reference, nats of a sequence."""
    return _sequence_means(kl_penalties(experience.old_logprobs, experience.ref_logprobs, experience.mask))


def _sequence_means(per_token: Tensor) -> float:
    """Mean over sequences of the sum over tokens."""
    return float(per_token.sum(-1).mean())


def _repeated(token_ids: tuple[int, ...]) -> float:
    """Share of a completion's trigrams that it has said before; 0 for one without a trigram."""
    trigrams = [token_ids[i : i + 3] for i in range(len(token_ids) - 2)]
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0
