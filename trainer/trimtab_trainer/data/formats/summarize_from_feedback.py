"""openai/summarize-from-feedback, comparisons: two summaries of a post and which one a worker preferred.

    {"info": {"id": "t3_1", "post": "...", "title": "...", "subreddit": "AskDocs"}, "summaries": [{"text": " ...",
     "policy": "sup2", "note": ""}, {...}], "choice": 0, "worker": "ikNmucwunMnYJCQpnq6ZYb57OW7NiD", "batch": "batch6",
     "split": "train", "extra": {"confidence": 8}}

The prompt is what the authors' policies read (Stiennon et al. 2020, arXiv 2009.01325): subreddit, title and post of a
Reddit post, or the article of a news item, and "TL;DR:" at its end. Spaces around a summary are no part of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from trimtab.errors import DataError
from trimtab_trainer.data.formats.canonical import decided_pairs, without_empty
from trimtab_trainer.data.records import Ranking, Row

__all__ = ["read", "write"]

_REDDIT = re.compile(r"SUBREDDIT: r/([^\n]*)\n\nTITLE: ([^\n]*)\n\nPOST: (.*)\n\nTL;DR:", re.DOTALL)
_NEWS = re.compile(r"Article: (.*)\n\nTL;DR:", re.DOTALL)


def read(kind: str, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The ranking of a row; raises DataError."""
    info, summaries = row.get("info"), row.get("summaries")
    if not isinstance(info, Mapping):
        raise DataError("info must be an object with `id` and `post` or `article`", field="info")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(one, Mapping) for one in summaries):
        raise DataError("summaries must be two objects with `text`", field="summaries")
    choice = row.get("choice")
    if choice not in (0, 1) or isinstance(choice, bool):
        raise DataError(f"choice is {choice!r}; allowed: 0 or 1", field="choice", value=choice, limit="0 or 1")
    answers = [_text(f"summaries[{place}].text", one.get("text")).strip() for place, one in enumerate(summaries)]
    label = {"labeler": row.get("worker"), "ranking": [[choice], [1 - choice]]}
    yield without_empty(
        {
            "prompt": _prompt(info),
            "answers": answers,
            "labels": [without_empty(label)],
            "prompt_id": info.get("id"),
            "category": "summarization",
        }
    )


def write(record: Row) -> Iterator[dict[str, Any]]:
    """A row for each decided pair of a ranking; the better summary comes first.

    Raises:
        DataError: the prompt is a conversation.
    """
    assert isinstance(record, Ranking)
    if not isinstance(record.prompt, str):
        raise DataError("messages: the format has a post, no conversation", field="messages")
    info = {"id": record.prompt_id, **_info(record.prompt)}
    for better, worse, labeling in decided_pairs(record):
        summaries = [{"text": f" {answer}", "policy": "", "note": ""} for answer in (better, worse)]
        yield {"info": info, "summaries": summaries, "choice": 0, "worker": labeling.labeler}


def _prompt(info: Mapping[str, Any]) -> str:
    if info.get("article") is not None:
        return f"Article: {_text('info.article', info['article'])}\n\nTL;DR:"
    post = _text("info.post", info.get("post"))
    if info.get("title") is None and info.get("subreddit") is None:
        return post
    title, subreddit = (_text(f"info.{key}", info.get(key)) for key in ("title", "subreddit"))
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def _info(prompt: str) -> dict[str, str]:
    if reddit := _REDDIT.fullmatch(prompt):
        return {"post": reddit[3], "title": reddit[2], "subreddit": reddit[1]}
    if news := _NEWS.fullmatch(prompt):
        return {"article": news[1]}
    return {"post": prompt}


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        reason = "is missing" if value is None else f"must be a text, found {type(value).__name__}"
        raise DataError(f"{field} {reason}", field=field)
    return value
