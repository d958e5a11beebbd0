"""What a run's folder has for people: answers of its models to held-out prompts, and the output of its process.

A Job with a volume of its own keeps the answers there, where this service does not see them; its output is copied here.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trimtab.errors import CorruptData, FailedPrecondition

__all__ = ["MOST_OUTPUT_BYTES", "models_of", "read_output", "read_samples"]

MOST_OUTPUT_BYTES = 64 * 1024
"""Bytes that are shown of the end of a process's output."""

_MOST_FILE_BYTES = 64 * 1024 * 1024
_FIGURES = ("reward", "judge", "gold", "kl", "tokens")


def models_of(directory: Path) -> list[str]:
    """The models whose answers a run has, in the order in which they were evaluated."""
    return [path.stem for path in _paths(directory)]


def read_samples(directory: Path, *, query: str, after: int, limit: int) -> dict[str, Any]:
    """Prompts with the first answer of each model.

    All models answer the same prompts, by number, and stand in the order in which they were evaluated.

    Args:
        directory: the run's.
        query: only prompts where it is in the prompt or in an answer, in whatever case; empty: all.
        after: number of the prompt that the page before ended with; -1: from the start.
        limit: most prompts.

    Returns:
        `{models, samples: [{number, prompt, answers: {model: {completion, ended, figures}}}], found, next_after}`;
        `found` counts all prompts of the query.

    Raises:
        FailedPrecondition: a file is too large for a page.
        CorruptData: a line is not an answer.
    """
    paths = _paths(directory)
    prompts: dict[int, str] = {}
    answers: dict[int, dict[str, dict[str, Any]]] = {}
    for path in paths:
        for row in _rows(path):
            prompts.setdefault(row["number"], row["prompt"])
            answers.setdefault(row["number"], {}).setdefault(path.stem, _answer(row))
    found = [number for number in sorted(prompts) if _has(query.casefold(), prompts[number], answers[number])]
    page = [number for number in found if number > after][:limit]
    return {
        "models": [path.stem for path in paths],
        "samples": [{"number": one, "prompt": prompts[one], "answers": answers[one]} for one in page],
        "found": len(found),
        "next_after": page[-1] if page and page[-1] != found[-1] else None,
    }


def read_output(directory: Path, after: int) -> dict[str, Any] | None:
    """A piece of run.log from byte `after` on, or, where there is more than MOST_OUTPUT_BYTES of it, of its end.

    Returns:
        `{text, begin, end, size}`: the bytes `begin` to `end` of `size`, where `end` leaves out half a character; None
        where there is no log.
    """
    try:
        with (directory / "run.log").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = after if 0 <= size - after <= MOST_OUTPUT_BYTES else max(0, size - MOST_OUTPUT_BYTES)
            file.seek(begin)
            piece = file.read(size - begin)
    except FileNotFoundError:
        return None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(piece)
    half = len(decoder.getstate()[0])
    return {"text": text, "begin": begin, "end": begin + len(piece) - half, "size": size}


def _paths(directory: Path) -> list[Path]:
    return sorted((directory / "samples").glob("*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    size = path.stat().st_size
    if size > _MOST_FILE_BYTES:
        raise FailedPrecondition(
            f"samples: {path} has {size} bytes; the page reads files of up to {_MOST_FILE_BYTES}",
            field="samples",
            value=size,
            limit=_MOST_FILE_BYTES,
        )
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                yield row | {"number": int(row["number"]), "prompt": str(row["prompt"])}
            except (ValueError, KeyError, TypeError) as error:
                raise CorruptData(f"{path}:{number}: not an answer: {error}", field="samples") from error


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    figures = {name: row[name] for name in _FIGURES if isinstance(row.get(name), int | float)}
    return {"completion": str(row.get("completion", "")), "ended": bool(row.get("ended", True)), "figures": figures}


def _has(query: str, prompt: str, answers: Mapping[str, Mapping[str, Any]]) -> bool:
    texts = (prompt, *(answer["completion"] for answer in answers.values()))
    return not query or any(query in text.casefold() for text in texts)
