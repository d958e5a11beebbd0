"""Prompts and pretraining passages of PPO; which passages a step takes follows from the run's seed alone."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from trimtab.errors import ConfigError
from trimtab_trainer.config import PPOConfig
from trimtab_trainer.context import StageContext
from trimtab_trainer.language_modeling import Example
from trimtab_trainer.optimization import shuffled
from trimtab_trainer.prompts import PromptExample, passage_examples, prompt_examples

__all__ = ["PPOData"]


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
