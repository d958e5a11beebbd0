"""anthropics/hh-rlhf: `chosen` and `rejected`, two transcripts of one dialogue that differ in the last answer.

    {"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": "\\n\\nHuman: Hi\\n\\nAssistant: No."}

Spaces around a turn are no part of it. Rows whose dialogues differ before the last answer, or have no answer, of which
the published files have some, are bad rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trimtab.errors import DataError
from trimtab.types import ChatMessage
from trimtab_trainer.data.formats.canonical import canonical_row, decided_pairs
from trimtab_trainer.data.records import Ranking, Row, turns_of

__all__ = ["read", "write"]

_SPEAKERS = {"user": "Human", "assistant": "Assistant"}


def read(kind: str, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The ranking of a row; raises DataError."""
    for field in ("chosen", "rejected"):
        if not isinstance(row.get(field), str):
            raise DataError(f"{field} must be a transcript, found {type(row.get(field)).__name__}", field=field)
    transcripts = {"chosen": row["chosen"], "rejected": row["rejected"]}
    yield canonical_row(Ranking.from_row(transcripts))


def write(record: Row) -> Iterator[dict[str, Any]]:
    """A row for each decided pair of a ranking.

    Raises:
        DataError: the dialogue has a system turn, or a turn has a speaker's mark or spaces at an end, so that the
            transcript would be read as another dialogue.
    """
    assert isinstance(record, Ranking)
    turns = turns_of(record.prompt)
    for turn in turns:
        if turn.role not in _SPEAKERS:
            raise DataError(f"messages: a transcript has no {turn.role} turns", field="messages", value=turn.role)
    before = "".join(f"\n\n{_SPEAKERS[turn.role]}: {turn.content}" for turn in turns)
    for better, worse, _ in decided_pairs(record):
        made = {name: f"{before}\n\nAssistant: {answer}" for name, answer in (("chosen", better), ("rejected", worse))}
        if not _says(made, turns, (better, worse)):
            raise DataError(
                "messages: a turn with Human: or Assistant: after an empty line, or with spaces at its ends, cannot be"
                " written as a transcript",
                field="messages",
            )
        yield made


def _says(made: Mapping[str, str], turns: Sequence[ChatMessage], answers: tuple[str, str]) -> bool:
    """Whether a row is read as that dialogue with these answers."""
    try:
        again = Ranking.from_row(made)
    except DataError:
        return False
    return (turns_of(again.prompt), again.answers) == (tuple(turns), answers)
