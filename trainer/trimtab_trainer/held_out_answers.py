"""Answers of a run's models to prompts that were held out, sampled and scored by the services like any rollout.

Shared by the stages that measure: `sft_baseline` and `evaluate`. Every model draws with seeds of its own, so that equal
models do not win or lose by equal draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.errors import ConfigError
from trimtab.types import SamplingParams, VersionRequirement
from trimtab_models.tokenizer import load_tokenizer
from trimtab_trainer.context import StageContext
from trimtab_trainer.optimization import shuffled
from trimtab_trainer.ppo_data import PPOData
from trimtab_trainer.prompts import PromptExample
from trimtab_trainer.rollouts import Rollout, RolloutPrompt, token_counts
from trimtab_trainer.services import Services, connect

__all__ = ["AnswerSampler", "answer_sampler"]


@dataclass(frozen=True)
class AnswerSampler:
    """Samples answers with PPO's own temperature and length, on its held-out prompts.

    Attributes:
        services: with the reward model and the KL reference of PPO served.
        data: of PPO.
        tokenizer: of the run.
        context: of the stage.
        seed: of the stage's draws.
    """

    services: Services
    data: PPOData
    tokenizer: PreTrainedTokenizerBase
    context: StageContext
    seed: int

    def prompts(self, count: int | None, *, from_the_end: bool = False) -> list[PromptExample]:
        """The first held-out prompts of a seeded order, or its last ones; None for all.

        Two stages that take from the two ends share no prompt as long as there are enough of them.

        Raises:
            ConfigError: no prompt is held out.
        """
        held_out = self.data.held_out
        if not held_out:
            share = self.context.spec.ppo.held_out_fraction
            raise ConfigError(
                f"{self.context.stage}: no prompt is held out; set ppo.prompts_held_out or ppo.held_out_fraction",
                field="ppo.held_out_fraction",
                value=share,
            )
        order = shuffled(len(held_out), seed=self.context.seed(), epoch=0, name="held_out/prompts")
        chosen = order[::-1] if from_the_end else order
        return [held_out[index] for index in chosen[:count]]

    def sample(
        self,
        model: PreTrainedModel,
        prompts: Sequence[PromptExample],
        *,
        name: str,
        samples_per_prompt: int,
        shown: Sequence[tuple[int, ...]] = (),
    ) -> tuple[list[Rollout], dict[str, float]]:
        """Scored answers of a model, ordered by prompt and sample, and their `token_counts`.

        `prompt_id` is the position of the prompt.

        Args:
            model: published as the policy first.
            prompts: to answer.
            name: its seeds follow from it.
            samples_per_prompt: answers to each prompt.
            shown: what only the sampler sees in place of each prompt; empty: the prompts.
        """
        version = self.services.publish(model, self.tokenizer, step=0, name=name)
        own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
        seeds = np.random.SeedSequence([self.seed, own]).generate_state(len(prompts), np.uint64)
        batch = [
            RolloutPrompt(
                str(number),
                prompt.token_ids,
                seed=int(seeds[number]),
                num_samples=samples_per_prompt,
                shown=shown[number] if shown else (),
            )
            for number, prompt in enumerate(prompts)
        ]
        ppo = self.context.spec.ppo.sampling
        sampling = SamplingParams(temperature=ppo.temperature, max_new_tokens=ppo.max_new_tokens)
        rollouts = self.services.rollouts.collect(batch, sampling, VersionRequirement(exactly=version), score=True)
        return rollouts, token_counts(batch, rollouts)


@contextmanager
def answer_sampler(context: StageContext, *, seed: int | None) -> Iterator[AnswerSampler]:
    """Connects to the services, has PPO's reward model and reference served, and reads PPO's data.

    At the end generation's channel goes back to PPO's last version, or to what it had before.

    Args:
        context: of the stage.
        seed: of its draws; None for the run's.

    Raises:
        ConfigError: the spec names no services.
        Mismatch: a service has another tokenizer.
    """
    ppo = context.spec.ppo
    start = context.resolve_model(ppo.policy, key="ppo.policy")
    reward_folder = context.resolve_model(ppo.reward_model, key="ppo.reward_model")
    tokenizer = load_tokenizer(start)
    data = PPOData.read(context, ppo, tokenizer)
    with connect(context, rollout_timeout_s=ppo.rollout_timeout_s) as services:
        before = context.results["ppo"].version if "ppo" in context.results else services.policy_version()
        services.check_tokenizers(tokenizer, ["generation"])
        services.serve("reference", start)
        services.serve("reward", reward_folder)
        services.check_tokenizers(tokenizer, ["reference", "reward"])
        yield AnswerSampler(services, data, tokenizer, context, context.seed(seed))
        if before:  # what was measured is not what is served afterwards
            services.point_policy_to(before)
