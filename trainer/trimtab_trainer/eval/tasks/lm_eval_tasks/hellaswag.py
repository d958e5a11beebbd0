"""Rows of HellaSwag as lm-eval asks them; read by lm-eval's process, beside `hellaswag.yaml`."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["process_docs"]


def process_docs(dataset: Any) -> Any:
    """Adds `query`, `choices` and `gold` to rows that have ctx_a and ctx_b, or `ctx`, the two joined already."""
    return dataset.map(_document)


def _document(row: dict[str, Any]) -> dict[str, Any]:
    context = row["ctx"] if row.get("ctx_a") is None else f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {
        "query": _plain(f"{row['activity_label']}: {context}"),
        "choices": [_plain(ending) for ending in row["endings"]],
        "gold": int(row["label"]),
    }


def _plain(text: str) -> str:
    """Without the marks of WikiHow, by the rules of lm-eval's own task."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
