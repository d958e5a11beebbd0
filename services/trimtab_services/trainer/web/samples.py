"""What a run's folder has for people of its models: their answers to held-out prompts.

A Job with a volume of its own keeps them there, where this service does not see them.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import CorruptData, FailedPrecondition

__all__ = ["SampleFiles"]

_FIGURES = ("reward", "judge", "gold", "kl", "tokens")

_FirstAnswers = dict[int, tuple[str, dict[str, Any]]]
"""Number of a prompt to the prompt and a model's first answer to it."""


@dataclass(frozen=True, slots=True)
class _Parsed:
    """What a file had when its modification time and size were these."""

    mtime_ns: int
    size: int
    first_answers: _FirstAnswers


class SampleFiles:
    """Answers of models, as runs have written them. A file is parsed once for as long as it stays what it is.

    Args:
        most_bytes: of the files of one run that are read, and of all files whose answers are kept for the next time.
    """

    def __init__(self, most_bytes: int = 128 * 1024 * 1024) -> None:
        self._most_bytes = most_bytes
        self._parsed: OrderedDict[Path, _Parsed] = OrderedDict()
        self._lock = threading.Lock()

    def models(self, directory: Path) -> list[str]:
        """The models whose answers a run has, in the order in which they were evaluated."""
        return [path.stem for path, _ in _files(directory)]

    def read(self, directory: Path, *, query: str, after: int, limit: int) -> dict[str, Any]:
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
            FailedPrecondition: the files are too large for a page.
            CorruptData: a line is not an answer.
        """
        prompts: dict[int, str] = {}
        answers: dict[int, dict[str, dict[str, Any]]] = {}
        files = self._all(directory)
        for model, first in files.items():
            for number, (prompt, answer) in first.items():
                prompts.setdefault(number, prompt)
                answers.setdefault(number, {})[model] = answer
        found = [number for number in sorted(prompts) if _has(query.casefold(), prompts[number], answers[number])]
        page = [number for number in found if number > after][:limit]
        return {
            "models": list(files),
            "samples": [{"number": one, "prompt": prompts[one], "answers": answers[one]} for one in page],
            "found": len(found),
            "next_after": page[-1] if page and page[-1] != found[-1] else None,
        }

    def _all(self, directory: Path) -> dict[str, _FirstAnswers]:
        """The first answers of each model."""
        files = _files(directory)
        size = sum(stat.st_size for _, stat in files)
        if size > self._most_bytes:
            raise FailedPrecondition(
                f"samples: {directory / 'samples'} has {size} bytes; the page reads up to {self._most_bytes}",
                field="samples",
                value=size,
                limit=self._most_bytes,
            )
        with self._lock:  # one at a time, however many people look
            return {path.stem: self._first_answers(path, stat) for path, stat in files}

    def _first_answers(self, path: Path, stat: os.stat_result) -> _FirstAnswers:
        kept = self._parsed.get(path)
        if kept is None or (kept.mtime_ns, kept.size) != (stat.st_mtime_ns, stat.st_size):
            kept = self._parsed[path] = _Parsed(stat.st_mtime_ns, stat.st_size, _parse(path))
        self._parsed.move_to_end(path)
        while sum(one.size for one in self._parsed.values()) > self._most_bytes:
            self._parsed.popitem(last=False)
        return kept.first_answers


def _files(directory: Path) -> list[tuple[Path, os.stat_result]]:
    files = [(path, path.stat()) for path in (directory / "samples").glob("*.jsonl")]
    return sorted(files, key=lambda file: (file[1].st_mtime_ns, file[0].name))


def _parse(path: Path) -> _FirstAnswers:
    first: _FirstAnswers = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                first.setdefault(int(row["number"]), (str(row["prompt"]), _answer(row)))
            except (ValueError, KeyError, TypeError) as error:
                raise CorruptData(f"{path}:{number}: not an answer: {error}", field="samples") from error
    return first


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    figures = {name: row[name] for name in _FIGURES if isinstance(row.get(name), int | float)}
    return {"completion": str(row.get("completion", "")), "ended": bool(row.get("ended", True)), "figures": figures}


def _has(query: str, prompt: str, answers: Mapping[str, Mapping[str, Any]]) -> bool:
    texts = (prompt, *(answer["completion"] for answer in answers.values()))
    return not query or any(query in text.casefold() for text in texts)
