"""From dataset rows to token ids: what the supervised stages train on, with every row that is too long told or refused.

Rows are read, split and filtered by `data`; the tokenizer's template renders prompts; nothing is ever cut short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from trimtab.errors import ConfigError, DataError
from trimtab.types import ChatMessage
from trimtab_models.tokenizer import encode_completion, encode_document, encode_prompt
from trimtab_trainer.context import StageContext
from trimtab_trainer.data import Demonstration, Passage, PromptRow, Ranking
from trimtab_trainer.data.readers import stream_rows
from trimtab_trainer.data.records import PromptText, turns_of
from trimtab_trainer.data.splits import Groups, in_groups
from trimtab_trainer.language_modeling import Example
from trimtab_trainer.optimization import shuffled
from trimtab_trainer.stage_configs import TrainingStage

__all__ = [
    "NO_TEMPLATE",
    "RankingExample",
    "Reading",
    "demonstration_examples",
    "document_examples",
    "few_shot_prompt",
    "first_of",
    "ranking_examples",
    "refuse_turns",
    "said_by",
    "warn_of_unknown",
]

T = TypeVar("T")

_MOST_UNKNOWN = 0.01

NO_TEMPLATE = (
    "messages: the tokenizer of the model has no chat template to write turns with; give rows with `prompt`, or a "
    "model whose tokenizer has one"
)


@dataclass(frozen=True)
class Reading:
    """How rows of a stage are read.

    Attributes:
        tokenizer: of the stage's model.
        max_tokens: most tokens of a sequence; None: any number.
        leave_out: a longer one is left out and told; False makes it an error.
        skip_bad_rows: bad rows tolerated in each file.
        warn: takes one sentence for each file with rows left out.
        keys: of the spec, by the file that each names, for errors.
    """

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int | None
    leave_out: bool
    skip_bad_rows: int
    warn: Callable[[str], None]
    keys: Mapping[Path, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        context: StageContext,
        config: TrainingStage,
        tokenizer: PreTrainedTokenizerBase,
        most: int,
        *,
        section: str = "",
    ) -> Reading:
        """As a section says, the stage's own unless another is named, for a model with a context of `most` tokens.

        Raises:
            ConfigError: `max_tokens` is more than the model's context.
        """
        if config.max_tokens is not None and config.max_tokens > most:
            key = f"{section or context.stage}.max_tokens"
            raise ConfigError(
                f"{key}: {config.max_tokens} is more than the model's context; allowed: at most {most}",
                field=key,
                value=config.max_tokens,
                limit=most,
            )
        named = [(context.spec.path(written), key) for key, written in context.spec.data_paths()]
        own = [(path, key) for path, key in named if key.startswith(f"{section or context.stage}.")]
        return cls(
            tokenizer=tokenizer,
            max_tokens=config.max_tokens or most,
            leave_out=config.too_long == "leave_out",
            skip_bad_rows=config.skip_bad_rows,
            warn=context.warn,
            keys=dict([*named, *own]),
        )

    def fitting(self, path: Path, what: Sequence[tuple[T, int]]) -> list[T]:
        """Those of (value, tokens) whose tokens fit.

        Raises:
            DataError: one is too long and none may be left out, or none of several is left.
        """
        most = self.max_tokens or max((tokens for _, tokens in what), default=0)
        fitting = [value for value, tokens in what if tokens <= most]
        left = len(what) - len(fitting)
        if left and not self.leave_out:
            longest = max(tokens for _, tokens in what)
            raise DataError(
                f"{path}: {left} of {len(what)} rows are longer than {most} tokens, the longest has {longest}. Set "
                "too_long: leave_out to train without them",
                field="max_tokens",
                value=longest,
                limit=most,
            )
        if left:
            self.warn(f"{path}: {left} of {len(what)} rows are longer than {most} tokens and left out")
        if what and not fitting:
            raise DataError(f"{path}: no row is left to train on", field="rows", value=0, limit="at least 1")
        return fitting


def refuse_turns(
    path: Path,
    rows: Sequence[Demonstration] | Sequence[Ranking] | Sequence[PromptRow],
    tokenizer: PreTrainedTokenizerBase,
    *,
    key: str | None,
    skip_bad_rows: int,
) -> None:
    """Refuses rows of a file that are conversations, for a tokenizer that has no template to write their turns with.

    Args:
        path: the file.
        rows: read from it.
        tokenizer: of the model.
        key: of the spec that names the file, if one does.
        skip_bad_rows: bad rows tolerated in it.

    Raises:
        DataError: names the key, the file, the line of the first of them and what to do.
    """
    if tokenizer.chat_template:
        return
    turns = next((row for row in rows if not isinstance(row.prompt, str)), None)
    if turns is None:
        return
    parse = type(turns).from_row
    read = stream_rows(path, parse, skip_bad_rows=skip_bad_rows, warn=lambda text: None)  # rows do not know their lines
    line = next(line for line, row in read if row.prompt == turns.prompt)
    raise DataError(f"{f'{key}: ' if key else ''}{path}:{line}: {NO_TEMPLATE}", field=key or "messages")


def warn_of_unknown(
    path: Path, sequences: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase, warn: Callable[[str], None]
) -> None:
    """Tells where more than 1 % of a file's tokens stand for text that the tokenizer does not know.

    Args:
        path: the file.
        sequences: its token ids.
        tokenizer: of the model. One whose unknown token also begins, ends or pads a text has none of its own.
        warn: takes the sentence.
    """
    unknown = tokenizer.unk_token_id
    others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    if not isinstance(unknown, int) or unknown in others:
        return
    found = [(ids.count(unknown), len(ids)) for ids in sequences]
    share = sum(count for count, _ in found) / max(1, sum(tokens for _, tokens in found))
    if share > _MOST_UNKNOWN:
        warn(f"{path}: {share:.0%} of the tokens are text that the tokenizer does not know, all the same to the model")


def demonstration_examples(path: Path, rows: Sequence[Demonstration], reading: Reading) -> list[Example]:
    """Demonstrations of a file that fit, in their order; the completion's tokens count."""
    key = reading.keys.get(path)
    refuse_turns(path, rows, reading.tokenizer, key=key, skip_bad_rows=reading.skip_bad_rows)
    found = []
    for row in rows:
        prompt = encode_prompt(reading.tokenizer, row.prompt)
        completion = encode_completion(reading.tokenizer, row.completion)
        example = Example((*prompt, *completion), first=len(prompt))
        found.append((example, len(example.token_ids)))
    warn_of_unknown(path, (example.token_ids for example, _ in found), reading.tokenizer, reading.warn)
    return reading.fitting(path, found)


def document_examples(path: Path, rows: Sequence[Passage], reading: Reading) -> list[Example]:
    """Documents of a file that fit, each ending in EOS; all tokens but the first count."""
    found = []
    for row in rows:
        ids = tuple(encode_document(reading.tokenizer, row.text))
        found.append((Example(ids, first=1), len(ids)))
    warn_of_unknown(path, (example.token_ids for example, _ in found), reading.tokenizer, reading.warn)
    return reading.fitting(path, found)


def few_shot_prompt(
    tokenizer: PreTrainedTokenizerBase, demonstrations: Sequence[Demonstration], prompt: PromptText
) -> tuple[int, ...]:
    """Token ids of a prompt behind demonstrations, as earlier turns of one conversation.

    A tokenizer without a template has no turns; there the demonstrations come one after the other, each with its EOS.
    """
    if tokenizer.chat_template:
        turns: list[ChatMessage] = []
        for row in demonstrations:
            turns += [*turns_of(row.prompt), ChatMessage(role="assistant", content=row.completion)]
        return tuple(encode_prompt(tokenizer, (*turns, *turns_of(prompt))))
    ids: list[int] = []
    for row in demonstrations:
        ids += [*encode_prompt(tokenizer, row.prompt), *encode_completion(tokenizer, row.completion)]
    return (*ids, *encode_prompt(tokenizer, prompt))


def first_of(values: Sequence[T], limit: int | None, *, seed: int, name: str) -> list[T]:
    """The first `limit` values of a seeded order, or all of them in their own."""
    if limit is None or limit >= len(values):
        return list(values)
    return [values[index] for index in shuffled(len(values), seed=seed, epoch=0, name=name)[:limit]]


@dataclass(frozen=True)
class RankingExample:
    """One prompt with its answers and what labelers said of them.

    Attributes:
        prompt_id: the cluster of the bootstrap.
        source: where the row is from; "" when not known.
        prompt: token ids of the rendered prompt.
        answers: token ids of each answer, ending in EOS.
        rankings: of each labeler: group ("" when none is known) and rank of each answer, 0 best, ties share one.
    """

    prompt_id: str
    source: str
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    rankings: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def tokens(self) -> int:
        """Tokens of the packed row: the prompt once, then every answer."""
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def decided(self) -> bool:
        """Whether any pair is decided; a wholly tied prompt teaches nothing."""
        return any(len(set(ranks)) > 1 for _, ranks in self.rankings)


def said_by(example: RankingExample, groups: Groups | None) -> RankingExample:
    """The example with the rankings of some labeler groups only; None keeps all."""
    kept = tuple((group, ranks) for group, ranks in example.rankings if in_groups(example.source, group, groups))
    return replace(example, rankings=kept)


def ranking_examples(path: Path, rows: Sequence[Ranking], reading: Reading) -> list[RankingExample]:
    """Rankings of a file that fit, in their order; a sequence is the prompt with one answer."""
    key = reading.keys.get(path)
    refuse_turns(path, rows, reading.tokenizer, key=key, skip_bad_rows=reading.skip_bad_rows)
    found = []
    for row in rows:
        prompt = tuple(encode_prompt(reading.tokenizer, row.prompt))
        answers = tuple(tuple(encode_completion(reading.tokenizer, answer)) for answer in row.answers)
        said = tuple((labeling.group, labeling.ranks) for labeling in row.labelings)
        example = RankingExample(row.prompt_id, row.source, prompt, answers, said)
        found.append((example, len(prompt) + max(map(len, answers))))
    read = (ids for example, _ in found for ids in (example.prompt, *example.answers))
    warn_of_unknown(path, read, reading.tokenizer, reading.warn)
    return reading.fitting(path, found)
