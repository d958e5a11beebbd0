"""Ragged sequences as rectangles: right padding, packing of documents, and K answers behind one shared prompt.

Packed rows carry position ids that restart with each document and a mask [rows, 1, seq, seq] that lets a token see
earlier tokens of its own document only, so that packing changes no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Packed",
    "SharedPromptRows",
    "first_fit_decreasing",
    "pack_documents",
    "pack_shared_prompts",
    "pad_right",
    "unpad",
]

_PADDING = -1


@dataclass(frozen=True)
class Packed:
    """Documents packed into rows.

    Attributes:
        input_ids: int64 [rows, seq]; 0 on padding.
        position_ids: int64 [rows, seq]; from 0 in each document.
        document_ids: int64 [rows, seq]: index of the document, -1 on padding.
        attention_mask: bool [rows, 1, seq, seq]: true where a query may see a key.
        starts: for each document its (row, column).
        lengths: for each document its tokens.
    """

    input_ids: Tensor
    position_ids: Tensor
    document_ids: Tensor
    attention_mask: Tensor
    starts: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class SharedPromptRows:
    """Rankings laid out so that the prompt is computed once: prompt, answer 0, answer 1, ... in one row.

    Attributes:
        input_ids: int64 [rankings, seq]; 0 on padding.
        position_ids: int64 [rankings, seq]; every answer goes on where the prompt ended.
        attention_mask: bool [rankings, 1, seq, seq]: an answer sees the prompt and itself.
        last_row: int64 [answers of all rankings], row of each answer.
        last_column: int64 [answers of all rankings], column of its last token.
        counts: answers of each ranking.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    last_row: Tensor
    last_column: Tensor
    counts: tuple[int, ...]


def pad_right(sequences: Sequence[Sequence[int]], *, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Right-pads token ids with 0; padding is known by length, never by id.

    Args:
        sequences: at least one, none empty.
        multiple: the padded length is a multiple of this.

    Returns:
        int64 [batch, seq] and int64 [batch] lengths.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    longest = int(lengths.max())
    input_ids = torch.zeros(len(sequences), longest + -longest % multiple, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = torch.as_tensor(sequence)
    return input_ids, lengths


def unpad(rows: Tensor, lengths: Sequence[int] | Tensor) -> list[Tensor]:
    """The first `lengths[i]` entries of each row."""
    return [row[: int(length)] for row, length in zip(rows, lengths, strict=True)]


def first_fit_decreasing(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Distributes documents over rows of at most `row_tokens` tokens, longest first, each into the first row it fits.

    A document longer than that gets a row of its own: what is too long is for the caller to refuse.

    Args:
        lengths: tokens of each document.
        row_tokens: most tokens of a row.

    Returns:
        Indices of the documents in each row; every index once. Deterministic.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, free in enumerate(room) if free >= lengths[index]), None)
        if row is None:
            rows.append([])
            room.append(row_tokens)
            row = len(rows) - 1
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def pack_documents(documents: Sequence[Sequence[int]], row_tokens: int) -> Packed:
    """Packs documents into rows, see `first_fit_decreasing`.

    Args:
        documents: token ids, none empty.
        row_tokens: most tokens of a row.
    """
    rows = first_fit_decreasing([len(document) for document in documents], row_tokens)
    width = max(sum(len(documents[index]) for index in row) for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    position_ids = torch.zeros(len(rows), width, dtype=torch.long)
    document_ids = torch.full((len(rows), width), _PADDING)
    starts: dict[int, tuple[int, int]] = {}
    for row, indices in enumerate(rows):
        column = 0
        for index in indices:
            end = column + len(documents[index])
            input_ids[row, column:end] = torch.as_tensor(documents[index])
            position_ids[row, column:end] = torch.arange(end - column)
            document_ids[row, column:end] = index
            starts[index] = (row, column)
            column = end
    return Packed(
        input_ids=input_ids,
        position_ids=position_ids,
        document_ids=document_ids,
        attention_mask=_causal(document_ids[:, :, None] == document_ids[:, None, :]),
        starts=tuple(starts[index] for index in range(len(documents))),
        lengths=tuple(len(document) for document in documents),
    )


def pack_shared_prompts(rankings: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> SharedPromptRows:
    """Lays out rankings as one row each, the prompt once and each answer behind it.

    Scores read at the answers' last tokens equal those of K separate sequences prompt + answer: an answer sees the
    prompt and itself only, at the positions that it would have alone.

    Args:
        rankings: for each, the prompt's token ids (not empty) and the answers' (none empty).
    """
    widths = [len(prompt) + sum(map(len, answers)) for prompt, answers in rankings]
    shape = len(rankings), max(widths)
    input_ids = torch.zeros(shape, dtype=torch.long)
    position_ids = torch.zeros(shape, dtype=torch.long)
    segments = torch.full(shape, _PADDING)  # 0: the prompt; k + 1: answer k
    last_row, last_column = [], []
    for row, (prompt, answers) in enumerate(rankings):
        column = len(prompt)
        input_ids[row, :column] = torch.as_tensor(prompt)
        position_ids[row, :column] = torch.arange(column)
        segments[row, :column] = 0
        for number, answer in enumerate(answers):
            end = column + len(answer)
            input_ids[row, column:end] = torch.as_tensor(answer)
            position_ids[row, column:end] = torch.arange(len(prompt), len(prompt) + len(answer))
            segments[row, column:end] = number + 1
            last_row.append(row)
            last_column.append(end - 1)
            column = end
    same = segments[:, :, None] == segments[:, None, :]
    sees_prompt = (segments[:, :, None] != _PADDING) & (segments[:, None, :] == 0)
    return SharedPromptRows(
        input_ids=input_ids,
        position_ids=position_ids,
        attention_mask=_causal(same | sees_prompt),
        last_row=torch.tensor(last_row),
        last_column=torch.tensor(last_column),
        counts=tuple(len(answers) for _, answers in rankings),
    )


def _causal(allowed: Tensor) -> Tensor:
    """[rows, seq, seq] -> [rows, 1, seq, seq], no query sees a later key. Padding sees itself: no row is all false."""
    return (allowed & torch.ones(allowed.shape[-2:], dtype=torch.bool).tril())[:, None]
