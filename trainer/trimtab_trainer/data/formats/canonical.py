"""Rows in the form of docs/data.md, made from records; reading them back gives the same record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from trimtab.types import ChatMessage
from trimtab_trainer.data.records import Demonstration, Labeling, Passage, Ranking, Row

__all__ = ["canonical_row", "decided_pairs", "turn_rows", "without_empty"]


def canonical_row(record: Row) -> dict[str, Any]:
    """The row that `from_row` reads as this record."""
    if isinstance(record, Passage):
        return without_empty({"text": record.text, "source": record.source})
    about = {"category": record.category, "source": record.source}
    prompt = record.prompt
    row: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else {"messages": turn_rows(prompt)}
    if isinstance(record, Demonstration):
        row["completion"] = record.completion
    if isinstance(record, Ranking):
        row |= {
            "answers": list(record.answers),
            "labels": [_label(labeling) for labeling in record.labelings],
            "prompt_id": record.prompt_id,
        }
    return without_empty({**row, **about})


def turn_rows(prompt: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """A conversation as `role` and `content`."""
    return [{"role": turn.role, "content": turn.content} for turn in prompt]


def without_empty(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the fields that say nothing."""
    return {key: value for key, value in row.items() if value not in ("", None)}


def decided_pairs(ranking: Ranking) -> Iterator[tuple[str, str, Labeling]]:
    """Each pair of answers that a labeling decides, the better one first; ties are left out."""
    for labeling in ranking.labelings:
        for one, other in combinations(range(len(ranking.answers)), 2):
            if labeling.ranks[one] != labeling.ranks[other]:
                better, worse = sorted((one, other), key=lambda place: labeling.ranks[place])
                yield ranking.answers[better], ranking.answers[worse], labeling


def _label(labeling: Labeling) -> dict[str, Any]:
    groups: dict[int, list[int]] = {}
    for answer, rank in enumerate(labeling.ranks):
        groups.setdefault(rank, []).append(answer)
    ranking = [groups[rank] for rank in sorted(groups)]
    return without_empty({"labeler": labeling.labeler, "group": labeling.group, "ranking": ranking})
