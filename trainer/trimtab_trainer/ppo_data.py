"""Which prompts and pretraining passages each step of PPO takes; it follows from the run's seed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from trimtab.errors import ConfigError
from trimtab.types import SamplingParams, VersionRequirement
from trimtab.weights import Publication
from trimtab_trainer.config import PPOConfig
from trimtab_trainer.context import StageContext
from trimtab_trainer.language_modeling import Example
from trimtab_trainer.optimization import shuffled
from trimtab_trainer.prompts import PromptExample, passage_examples, prompt_examples
from trimtab_trainer.rollouts import Rollout, RolloutPrompt
from trimtab_trainer.services import Services

__all__ = ["PPOData", "RolloutSampler"]

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class PPOData:
    """Every dataset of the stage.

    Attributes:
        prompts: to train on.
        held_out: to evaluate on.
        passages: of the pretraining mix; empty without one.
        pretraining_held_out: to measure the pretraining loss on.
        ptx_ratio: passages for each episode.
        seed: of the order.
    """

    prompts: list[PromptExample]
    held_out: list[PromptExample]
    passages: list[Example]
    pretraining_held_out: list[Example]
    ptx_ratio: float
    seed: int

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that is ever sent."""
        return max(len(prompt.token_ids) for prompt in (*self.prompts, *self.held_out))

    @classmethod
    def read(cls, context: StageContext, config: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> PPOData:
        """Reads every dataset of the stage.

        Raises:
            ConfigError: fewer prompts than one iteration takes.
        """
        prompts, held_out = prompt_examples(context, config, tokenizer)
        if len(prompts) < config.prompts_per_iteration:
            raise ConfigError(
                f"ppo.prompts_per_iteration: {config.prompts_per_iteration} is more than the {len(prompts)} prompts of "
                f"{config.prompts}",
                field="ppo.prompts_per_iteration",
                value=config.prompts_per_iteration,
                limit=len(prompts),
            )
        passages = passage_examples(context, config, tokenizer)
        return cls(prompts, held_out, *passages, config.ptx_ratio, context.seed(config.seed))

    def next_passages(self, used: int, episodes: int) -> list[Example]:
        """The pretraining passages of one step, `ptx_ratio` for each of its episodes, in a seeded order without end.

        Args:
            used: passages that earlier steps took.
            episodes: of the step.
        """
        if not self.passages:
            return []
        chosen = []
        for number in range(used, used + max(1, round(self.ptx_ratio * episodes))):
            epoch, position = divmod(number, len(self.passages))
            order = shuffled(len(self.passages), seed=self.seed, epoch=epoch, name="ppo/ptx")
            chosen.append(self.passages[order[position]])
        return chosen


class RolloutSampler:
    """Gives out the prompts of an iteration; which ones and with which seeds follows from the run's seed alone."""

    def __init__(
        self, context: StageContext, config: PPOConfig, services: Services, prompts: Sequence[PromptExample]
    ) -> None:
        self._config = config
        self._services = services
        self._prompts = prompts
        self._seed = context.seed(config.seed)
        self._sampling = SamplingParams(
            temperature=config.sampling.temperature, max_new_tokens=config.sampling.max_new_tokens
        )

    def submit_after(self, iteration: int, publishing: Future[Publication]) -> Future[list[Rollout]]:
        """Starts the rollouts of an iteration on the version of a publication, the moment that it is committed."""
        return _followed_by(publishing, lambda publication: self.submit(iteration, publication.version))

    def submit(self, iteration: int, version: int) -> Future[list[Rollout]]:
        """Starts the rollouts of an iteration on a version that is there; past the last iteration there are none."""
        if iteration >= self._config.iterations:
            none: Future[list[Rollout]] = Future()
            none.set_result([])
            return none
        return self._services.rollouts.submit(
            self._batch(iteration), self._sampling, VersionRequirement(exactly=version), score=True
        )

    def _batch(self, iteration: int) -> list[RolloutPrompt]:
        size, total = self._config.prompts_per_iteration, len(self._prompts)
        chosen = []
        for number in range(iteration * size, (iteration + 1) * size):
            epoch, position = divmod(number, total)
            index = shuffled(total, seed=self._seed, epoch=epoch, name="ppo/prompts")[position]
            seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1, np.uint64)[0])
            chosen.append(
                RolloutPrompt(str(number), self._prompts[index].token_ids, seed, self._config.samples_per_prompt)
            )
        return chosen


def _followed_by(first: Future[A], then: Callable[[A], Future[B]]) -> Future[B]:
    """A future of what `then` starts once the first one has its result; the first one's error is its own, too."""
    both: Future[B] = Future()

    def pass_on(second: Future[B]) -> None:
        if not both.set_running_or_notify_cancel():
            return
        error = CancelledError() if second.cancelled() else second.exception()
        if error is not None:
            both.set_exception(error)
        else:
            both.set_result(second.result())

    def start(done: Future[A]) -> None:
        try:
            then(done.result()).add_done_callback(pass_on)
        except BaseException as error:
            if both.set_running_or_notify_cancel():
                both.set_exception(error)

    first.add_done_callback(start)
    return both
