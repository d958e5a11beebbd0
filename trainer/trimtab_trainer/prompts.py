"""Prompts and pretraining passages as PPO takes them: token ids, nothing cut short, too long told or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from trimtab.errors import DataError
from trimtab_models.tokenizer import encode_document, encode_prompt, leading_ids
from trimtab_trainer.config import PPOConfig
from trimtab_trainer.context import StageContext
from trimtab_trainer.data import Passage, PromptRow, read_pretraining, read_prompts
from trimtab_trainer.data.records import PromptText
from trimtab_trainer.data.splits import split_by_prompt
from trimtab_trainer.examples import first_of, refuse_turns, warn_of_unknown
from trimtab_trainer.language_modeling import Example, passages

__all__ = ["PromptExample", "passage_examples", "prompt_examples"]


@dataclass(frozen=True)
class PromptExample:
    """One prompt: as people wrote it, and as token ids up to where the completion begins."""

    prompt: PromptText
    token_ids: tuple[int, ...]

    @property
    def text(self) -> str:
        """The prompt as one text, for people."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n\n".join(f"{message.role}: {message.content}" for message in self.prompt)


def prompt_examples(
    context: StageContext, config: PPOConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[PromptExample], list[PromptExample]]:
    """Prompts to train on, and those held out for evaluation.

    Raises:
        DataError: a bad row, a prompt longer than `max_prompt_tokens` where none may be left out, or none left.
    """
    seed = context.seed(config.seed)
    found = _read(context, config, "prompts", tokenizer)
    if config.prompts_held_out is not None:
        train, held_out = found, _read(context, config, "prompts_held_out", tokenizer)
    else:
        train, held_out = split_by_prompt(found, config.held_out_fraction, seed=seed)
    return (
        first_of(train, config.limit, seed=seed, name="ppo/limit"),
        held_out,
    )


def passage_examples(
    context: StageContext, config: PPOConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Example], list[Example]]:
    """Passages of `ptx_passage_tokens` to train on, and those held out; documents end in EOS, none is on both sides."""

    def read(path: str) -> list[Passage]:
        return read_pretraining(context.spec.path(path), skip_bad_rows=config.skip_bad_rows, warn=context.warn)

    def cut(documents: Sequence[Passage]) -> list[Example]:
        ids = [encode_document(tokenizer, row.text) for row in documents]
        return passages(ids, config.ptx_passage_tokens, bos=leading_ids(tokenizer))

    seed = context.seed(config.seed)
    train = read(config.pretraining) if config.pretraining is not None else []
    if config.pretraining_held_out is not None:
        held_out = read(config.pretraining_held_out)
    else:
        train, held_out = split_by_prompt(train, config.held_out_fraction, seed=seed)
    return (
        cut(train) if config.ptx_coef > 0 else [],
        cut(held_out),
    )


def _read(
    context: StageContext,
    config: PPOConfig,
    key: Literal["prompts", "prompts_held_out"],
    tokenizer: PreTrainedTokenizerBase,
) -> list[PromptExample]:
    path = context.spec.path(getattr(config, key))
    rows: Sequence[PromptRow] = read_prompts(path, skip_bad_rows=config.skip_bad_rows, warn=context.warn)
    refuse_turns(path, rows, tokenizer, key=f"ppo.{key}", skip_bad_rows=config.skip_bad_rows)
    examples = [PromptExample(row.prompt, tuple(encode_prompt(tokenizer, row.prompt))) for row in rows]
    warn_of_unknown(path, (example.token_ids for example in examples), tokenizer, context.warn)
    fitting = [example for example in examples if len(example.token_ids) <= config.max_prompt_tokens]
    left = len(examples) - len(fitting)
    if left and config.too_long == "error":
        longest = max(examples, key=lambda example: len(example.token_ids))
        raise DataError(
            f"{path}: {left} prompts are longer than ppo.max_prompt_tokens {config.max_prompt_tokens} (the longest has "
            f"{len(longest.token_ids)} tokens); set ppo.too_long: leave_out to train without them",
            field="ppo.max_prompt_tokens",
            value=len(longest.token_ids),
            limit=config.max_prompt_tokens,
        )
    if left:
        context.warn(f"{path}: {left} of {len(examples)} prompts are longer than {config.max_prompt_tokens} tokens")
    if not fitting:
        raise DataError(f"{path}: no prompt is left", field="ppo.max_prompt_tokens", value=config.max_prompt_tokens)
    return fitting
