"""From dataset rows to token ids: what the supervised stages train on, with every row that is too long told or refused.

Rows are read by `data`, prompts are rendered by the tokenizer's template; nothing is ever cut short. Which rows are
held out depends on seed and prompt alone, so equal prompts are on one side in every file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from trimtab.errors import ConfigError, DataError
from trimtab_models.tokenizer import encode_completion, encode_prompt
from trimtab_trainer.context import StageContext
from trimtab_trainer.data import read_demonstrations, read_pretraining, read_rankings
from trimtab_trainer.data.records import prompt_key
from trimtab_trainer.language_modeling import Example
from trimtab_trainer.optimization import shuffled
from trimtab_trainer.stage_configs import TrainingStage

__all__ = ["Reading", "demonstration_examples", "document_examples", "first_of", "split_held_out"]

T = TypeVar("T")


@dataclass(frozen=True)
class Reading:
    """How rows of a stage are read.

    Attributes:
        tokenizer: of the stage's model.
        max_tokens: most tokens of a sequence; None: any number.
        leave_out: a longer one is left out and told; False makes it an error.
        skip_bad_rows: bad rows tolerated in each file.
        warn: takes one sentence for each file with rows left out.
    """

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int | None
    leave_out: bool
    skip_bad_rows: int
    warn: Callable[[str], None]

    @classmethod
    def of(cls, context: StageContext, config: TrainingStage, tokenizer: PreTrainedTokenizerBase, most: int) -> Reading:
        """As a stage's section says, for a model with a context of `most` tokens.

        Raises:
            ConfigError: `max_tokens` is more than the model's context.
        """
        if config.max_tokens is not None and config.max_tokens > most:
            key = f"{context.stage}.max_tokens"
            raise ConfigError(
                f"{key}: {config.max_tokens} is more than the model's context; allowed: at most {most}",
                field=key,
                value=config.max_tokens,
                limit=most,
            )
        return cls(
            tokenizer=tokenizer,
            max_tokens=config.max_tokens or most,
            leave_out=config.too_long == "leave_out",
            skip_bad_rows=config.skip_bad_rows,
            warn=context.warn,
        )

    def fitting(self, path: Path, what: Sequence[tuple[T, int]]) -> list[T]:
        """Those of (value, tokens) whose tokens fit.

        Raises:
            DataError: one is too long and none may be left out, or none is left.
        """
        most = self.max_tokens or max((tokens for _, tokens in what), default=0)
        fitting = [value for value, tokens in what if tokens <= most]
        left = len(what) - len(fitting)
        if left and not self.leave_out:
            row, tokens = next((row, tokens) for row, (_, tokens) in enumerate(what, 1) if tokens > most)
            raise DataError(
                f"{path}: row {row} has {tokens} tokens; allowed: {most} ({left} rows are longer). Set "
                "too_long: leave_out to train without them",
                field="max_tokens",
                value=tokens,
                limit=most,
            )
        if left:
            self.warn(f"{path}: {left} of {len(what)} rows are longer than {most} tokens and left out")
        if not fitting:
            raise DataError(f"{path}: no row is left to train on", field="rows", value=0, limit="at least 1")
        return fitting


def demonstration_examples(path: Path, reading: Reading) -> list[tuple[str, Example]]:
    """Demonstrations that fit: (key of the prompt, example), in the file's order; the completion's tokens count."""
    found = []
    for row in read_demonstrations(path, skip_bad_rows=reading.skip_bad_rows, warn=reading.warn):
        prompt = encode_prompt(reading.tokenizer, row.prompt)
        completion = encode_completion(reading.tokenizer, row.completion)
        example = Example((*prompt, *completion), first=len(prompt))
        found.append(((prompt_key(row.prompt), example), len(example.token_ids)))
    return reading.fitting(path, found)


def document_examples(path: Path, reading: Reading) -> list[Example]:
    """Documents that fit, each ending in EOS; all tokens but the first count."""
    found = []
    for row in read_pretraining(path, skip_bad_rows=reading.skip_bad_rows, warn=reading.warn):
        ids = tuple(encode_completion(reading.tokenizer, row.text))
        found.append((Example(ids, first=1), len(ids)))
    return reading.fitting(path, found)


def split_held_out(pairs: Sequence[tuple[str, T]], share: float, *, seed: int) -> tuple[list[T], list[T]]:
    """Splits (key, value) pairs into training and held-out by a hash of seed and key: equal keys are on one side."""
    train: list[T] = []
    held_out: list[T] = []
    for key, value in pairs:
        digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
        (held_out if int.from_bytes(digest[:8]) < share * 2**64 else train).append(value)
    return train, held_out


def first_of(values: Sequence[T], limit: int | None, *, seed: int, name: str) -> list[T]:
    """The first `limit` values of a seeded order, or all of them in their own."""
    if limit is None or limit >= len(values):
        return list(values)
    return [values[index] for index in shuffled(len(values), seed=seed, epoch=0, name=name)[:limit]]


@dataclass(frozen=True)
class RankingExample:
    """One prompt with its answers and what labelers said of them.

    Attributes:
        prompt_id: the cluster of the bootstrap and the key of the split; equal prompts have equal ids.
        prompt: token ids of the rendered prompt.
        answers: token ids of each answer, ending in EOS.
        rankings: of each labeler: group ("" when none is known) and rank of each answer, 0 best, ties share one.
    """

    prompt_id: str
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    rankings: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def tokens(self) -> int:
        """Tokens of the packed row: the prompt once, then every answer."""
        return len(self.prompt) + sum(map(len, self.answers))

    def of_groups(self, groups: Sequence[str] | None) -> RankingExample:
        """The same with the rankings of some labeler groups only; None keeps all."""
        return replace(self, rankings=tuple(r for r in self.rankings if groups is None or r[0] in groups))

    @property
    def decided(self) -> bool:
        """Whether any pair is decided; a wholly tied prompt teaches nothing."""
        return any(len(set(ranks)) > 1 for _, ranks in self.rankings)


def ranking_examples(
    path: Path, reading: Reading, *, sources: Sequence[str] | None
) -> list[tuple[str, RankingExample]]:
    """Rankings that fit: (prompt_id, example), in the file's order; a sequence is the prompt with one answer.

    Args:
        path: the file.
        reading: how.
        sources: values of `source` to keep; None keeps all.

    Raises:
        DataError: a bad or too long row more than tolerated, or none is left.
    """
    rankings = read_rankings(path, skip_bad_rows=reading.skip_bad_rows, warn=reading.warn)
    kept = [ranking for ranking in rankings if sources is None or ranking.source in sources]
    if not kept:
        present = ", ".join(sorted({ranking.source or "(none)" for ranking in rankings}))
        raise DataError(
            f"{path}: no ranking has a source among {', '.join(sources or ())}; the file has {present}",
            field="sources",
            value=sources,
            limit=present,
        )
    found = []
    for ranking in kept:
        prompt = tuple(encode_prompt(reading.tokenizer, ranking.prompt))
        answers = tuple(tuple(encode_completion(reading.tokenizer, answer)) for answer in ranking.answers)
        said = tuple((labeling.group, labeling.ranks) for labeling in ranking.labelings)
        example = RankingExample(ranking.prompt_id, prompt, answers, said)
        found.append(((ranking.prompt_id, example), len(prompt) + max(map(len, answers))))
    return reading.fitting(path, found)
