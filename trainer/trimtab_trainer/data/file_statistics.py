"""`trimtab data stats`: categories beside the paper's, length tables, agreement between labelers, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab_trainer.data.agreement import Agreement, Labelings
from trimtab_trainer.data.categories import PAPER_SHARES, Categories, CategoryShare
from trimtab_trainer.data.lengths import Lengths, LengthTable
from trimtab_trainer.data.readers import stream_rows
from trimtab_trainer.data.records import KINDS, Demonstration, Passage, Ranking, Row, turns_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["FileStatistics", "LengthRow", "describe_file"]

_TOKENIZED_ROWS = 256


@dataclass(frozen=True)
class LengthRow:
    """One row of a length table.

    Attributes:
        field: "prompt", "completion", "answer" (each of them) or "text"; of a conversation the sum over its turns.
        category: whose rows are counted; "" for all.
        unit: "characters" or "tokens".
        table: the figures.
    """

    field: str
    category: str
    unit: str
    table: LengthTable


@dataclass(frozen=True)
class FileStatistics:
    """Figures of one file.

    Attributes:
        kind: of the file.
        rows: good ones.
        categories: empty where no row has one.
        lengths: of each field over all rows, then of prompts by category.
        agreement: of rankings that several labelers labelled.
    """

    kind: str
    rows: int
    categories: list[CategoryShare]
    lengths: list[LengthRow]
    agreement: list[Agreement]


def describe_file(
    kind: str,
    path: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    samples: int = 1000,
    seed: int = 0,
    skip_bad_rows: int = 0,
    warn: Callable[[str], None],
) -> FileStatistics:
    """Reads a file once.

    Args:
        kind: of the file.
        path: any file that the readers know.
        tokenizer: counts tokens too: of the texts alone, without template, BOS and EOS.
        samples, seed: of the bootstrap; see `agreement.Labelings`.
        skip_bad_rows: bad rows tolerated.
        warn: takes one sentence for each of them.

    Raises:
        ConfigError, DataError: as `readers.stream_rows`.
    """
    categories, labelings = Categories(), Labelings()
    lengths = _LengthTables(tokenizer)
    rows = 0
    for _, row in stream_rows(path, KINDS[kind].from_row, skip_bad_rows=skip_bad_rows, warn=warn):
        rows += 1
        category = categories.add("" if isinstance(row, Passage) else row.category)
        lengths.add(row, category)
        if isinstance(row, Ranking):
            labelings.add(row)
    agreement = labelings.agreements(samples=samples, seed=seed)
    return FileStatistics(kind, rows, categories.table(), lengths.rows(), agreement)


class _LengthTables:
    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._tokenizer = tokenizer
        self._lengths: dict[tuple[str, str, str], Lengths] = {}
        self._waiting: list[tuple[str, str, list[str]]] = []

    def add(self, row: Row, category: str) -> None:
        for field, texts in _texts(row):
            self._add(field, category, "characters", sum(map(len, texts)))
            if self._tokenizer is not None:
                self._waiting.append((field, category, texts))
        if len(self._waiting) >= _TOKENIZED_ROWS:
            self._tokenize()

    def rows(self) -> list[LengthRow]:
        self._tokenize()
        place = {category: number for number, category in enumerate(("", *PAPER_SHARES))}
        order = sorted(self._lengths, key=lambda name: (place.get(name[1], len(place)), name[1]))  # fields as they came
        return [LengthRow(*name, table) for name in order if (table := self._lengths[name].table())]

    def _add(self, field: str, category: str, unit: str, length: int) -> None:
        for name in {"", category if field == "prompt" else ""}:
            self._lengths.setdefault((field, name, unit), Lengths()).add(length)

    def _tokenize(self) -> None:
        if self._tokenizer is None or not self._waiting:
            return
        texts = [text for _, _, of_field in self._waiting for text in of_field]
        encoded = iter(self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        for field, category, of_field in self._waiting:
            self._add(field, category, "tokens", sum(len(next(encoded)) for _ in of_field))
        self._waiting.clear()


def _texts(row: Row) -> Iterator[tuple[str, list[str]]]:
    """The texts of each field; of `answer` as often as there are answers."""
    yield "text" if isinstance(row, Passage) else "prompt", [turn.content for turn in turns_of(row.prompt)]
    if isinstance(row, Demonstration):
        yield "completion", [row.completion]
    if isinstance(row, Ranking):
        for answer in row.answers:
            yield "answer", [answer]
