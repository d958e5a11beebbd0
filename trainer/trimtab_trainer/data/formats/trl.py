"""TRL: preference (`prompt`, `chosen`, `rejected`), prompt-completion and prompt-only rows.

Standard rows hold texts, conversational ones lists of turns; a conversational preference row may hold the prompt inside
`chosen` and `rejected` only. Written are standard rows for prompts that are texts and conversational ones for
conversations, with `labeler`, `group`, `prompt_id`, `category` and `source` beside them, which TRL leaves alone. Spaces
around an answer are no part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trimtab.errors import DataError
from trimtab_trainer.data.formats.canonical import canonical_row, decided_pairs, turn_rows, without_empty
from trimtab_trainer.data.records import KINDS, Demonstration, Passage, PromptText, Ranking, Row

__all__ = ["read", "write"]


def read(kind: str, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The one row of our form; raises DataError."""
    if kind == "rankings" and (row.get("chosen") is None or row.get("rejected") is None):
        field = "rejected" if row.get("rejected") is None else "chosen"
        raise DataError(f"{field} is missing", field=field)
    if kind == "demonstrations":
        row = {**row, "completion": _completion(row.get("completion"))}
    yield canonical_row(KINDS[kind].from_row(row))


def write(record: Row) -> Iterator[dict[str, Any]]:
    """Of a ranking a row for each decided pair, of a demonstration, prompt or passage the one row."""
    if isinstance(record, Passage):
        yield canonical_row(record)
        return
    asked = {"prompt": record.prompt if isinstance(record.prompt, str) else turn_rows(record.prompt)}
    about = {"category": record.category, "source": record.source}
    if isinstance(record, Ranking):
        for better, worse, labeling in decided_pairs(record):
            by = {"labeler": labeling.labeler, "group": labeling.group, "prompt_id": record.prompt_id}
            pair = {"chosen": _answer(record.prompt, better), "rejected": _answer(record.prompt, worse)}
            yield without_empty({**asked, **pair, **by, **about})
    elif isinstance(record, Demonstration):
        yield without_empty({**asked, "completion": _answer(record.prompt, record.completion), **about})
    else:
        yield without_empty({**asked, **about})


def _answer(prompt: PromptText, text: str) -> str | list[dict[str, str]]:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _completion(completion: Any) -> Any:
    """The text of a conversational completion of one turn."""
    if not isinstance(completion, list):
        return completion
    turn = completion[0] if len(completion) == 1 else None
    if not isinstance(turn, Mapping) or turn.get("role") != "assistant":
        raise DataError("completion must be a text or one turn of the assistant", field="completion")
    return turn.get("content")
