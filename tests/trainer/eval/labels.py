"""Labels of people who are a formula, as records and as rows of an export."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimtab_trainer.eval.preference.labels import Label


def label(prompt: object, labeler: str, contestants: str, ranks: Iterable[int], **fields: Any) -> Label:
    """A label; each letter of `contestants` is one."""
    given = {"group": "", "category": "", "ratings": (), "flags": (), "order": ()} | fields
    return Label(str(prompt), labeler, contestants=tuple(contestants), ranks=tuple(ranks), **given)


def crowd(
    generator: np.random.Generator,
    *,
    prompts: int,
    labelers: int,
    prompt_spread: float = 0.0,
    labeler_spread: float = 0.0,
) -> list[Label]:
    """Everybody compares a and b on every prompt; prompts and labelers each lean to one of them."""
    of_prompt = generator.normal(0, prompt_spread, prompts)
    of_labeler = generator.normal(0, labeler_spread, labelers)
    leaning = np.add.outer(of_prompt, of_labeler) + generator.logistic(size=(prompts, labelers))
    return [
        label(prompt, f"labeler-{person}", "ab", (0, 1) if leaning[prompt, person] > 0 else (1, 0))
        for prompt in range(prompts)
        for person in range(labelers)
    ]


def row(number: int, models: Iterable[str], labels: Iterable[Mapping[str, Any]], **fields: Any) -> dict[str, Any]:
    """A row as the service exports it."""
    sources = [{"model": model, "version": 3, "temperature": 0.7} for model in models]
    answers = [f"answer {index} to {number}" for index in range(len(sources))]
    return {
        "prompt": f"Question {number}?",
        "answers": answers,
        "sources": sources,
        "task_key": f"task-{number}",
        "labels": list(labels),
    } | fields


def said(labeler: str, ranking: list[list[int]], **fields: Any) -> dict[str, Any]:
    return {"labeler": labeler, "group": "", "seconds": 3.0, "ranking": ranking} | fields


def jsonl(path: Path, *rows: Mapping[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path
