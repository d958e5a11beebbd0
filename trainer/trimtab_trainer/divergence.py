"""What PPO does with a batch that is unfit to train on: it saves it, goes back to the last good policy, and fails."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import Mismatch, TrainingDiverged, TrimtabError
from trimtab_trainer.config import PPOConfig
from trimtab_trainer.context import StageContext
from trimtab_trainer.experience import Experience
from trimtab_trainer.ppo_metrics import mean_kl
from trimtab_trainer.services import Services

__all__ = ["check_kl", "going_back", "saving_experience"]

_TENSORS = ("old_logprobs", "generation_logprobs", "ref_logprobs", "values", "advantages", "returns", "scores")


def check_kl(config: PPOConfig, experience: Experience) -> None:
    """Refuses a batch whose policy has run away from the reference.

    Raises:
        TrainingDiverged: the mean KL of the batch is beyond `kl_limit`.
    """
    kl = mean_kl(experience)
    if config.kl_limit is not None and kl > config.kl_limit:
        raise TrainingDiverged(
            f"mean KL of the batch is {kl:.3g} nats; allowed by ppo.kl_limit: {config.kl_limit:g}. A lower learning "
            "rate or a larger kl_coef keeps it there",
            field="ppo.kl_limit",
            value=kl,
            limit=config.kl_limit,
        )


@contextmanager
def going_back(
    context: StageContext, services: Services, publishing: Future[Any], *, good_version: int, iteration: int
) -> Iterator[None]:
    """Where the batch of an iteration is refused, goes back to the last policy whose batch was fit to train on.

    Generation serves that version again, and a checkpoint of the policy that made the batch is removed: a resume starts
    from the one before it.

    Args:
        context: of the stage.
        services: whose policy channel moves.
        publishing: what moves it forward meanwhile, and is awaited before it goes back.
        good_version: of that policy.
        iteration: iterations done, which is the number of the suspect checkpoint.
    """
    try:
        yield
    except (TrainingDiverged, Mismatch):
        context.checkpoints.discard(iteration)
        wait([publishing])
        try:
            services.point_policy_to(good_version)
        except TrimtabError as error:  # the batch is what ended the run
            context.warn(f"generation could not go back to version {good_version}: {error.message}", step=iteration)
        else:
            context.warn(
                f"generation is back on version {good_version}, the last one whose batch was fit to train on",
                step=iteration,
            )
        raise


@contextmanager
def saving_experience(context: StageContext, experience: Experience, iteration: int) -> Iterator[None]:
    """Saves the batch where it, or the update on it, is not finite or out of bounds.

    Args:
        context: of the stage.
        experience: the batch.
        iteration: iterations done before it.

    Raises:
        TrainingDiverged: a tensor of the batch is not finite.
    """

    def batch() -> dict[str, Tensor]:
        lengths = torch.tensor([[len(r.prompt_token_ids), len(r.token_ids)] for r in experience.rollouts])
        ids = torch.tensor([i for r in experience.rollouts for i in (*r.prompt_token_ids, *r.token_ids)])
        tensors = {name: getattr(experience, name) for name in ("mask", *_TENSORS)}
        return {**tensors, "lengths": lengths, "token_ids": ids}

    with context.saving_batch(iteration + 1, batch):
        for name in _TENSORS:
            if not bool(torch.isfinite(getattr(experience, name)).all()):
                raise TrainingDiverged(
                    f"{name} of the batch are not finite", field=name, value=math.nan, limit="finite"
                )
        yield
