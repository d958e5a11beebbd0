"""OpenAssistant message trees (`.trees.jsonl.gz`): a prompt, replies to it, replies to those, ranked among siblings.

    {"message_tree_id": "...", "tree_state": "ready_for_export", "prompt": {"message_id": "...", "text": "...",
     "role": "prompter", "lang": "en", "review_result": true, "deleted": false, "synthetic": false, "replies":
     [{"message_id": "...", "text": "...", "role": "assistant", "rank": 0, "replies": []}, ...]}}

Messages that were deleted, failed review or were written by a model are left out, with everything below them. Of each
prompter's message with ranked assistant replies comes
- a ranking, where at least two are ranked; of more than nine several of at most nine, dealt out by rank, with one
  `prompt_id`,
- a demonstration: the best of them,
- a prompt, ranked replies or not.

`user_id` and `lang` of the prompter's message stay with the row, as `user` and `lang`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trimtab.errors import DataError
from trimtab_trainer.data.formats.canonical import without_empty
from trimtab_trainer.data.records import MOST_ANSWERS, Demonstration, Passage, Ranking, Row, turns_of

__all__ = ["read", "write"]

_ROLES = {"prompter": "user", "assistant": "assistant"}
_NAMES = uuid.UUID("5f0e6a51-6d0e-5f6c-9a8b-0d0b3f3c2a11")

Node = Mapping[str, Any]


def read(kind: str, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All rows of that kind of one tree; raises DataError."""
    if not isinstance(row.get("prompt"), Mapping):
        raise DataError("prompt must be the message at the root of a tree", field="prompt")
    for field, thread, node in _threads(row["prompt"]):
        if node["role"] != "prompter":
            continue
        asked = {"messages": thread}
        about = {"user": node.get("user_id"), "lang": node.get("lang")}
        if kind == "prompts":
            yield without_empty({**asked, **about})
            continue
        ranked = _ranked_replies(field, node)
        if kind == "demonstrations" and ranked:
            yield without_empty({**asked, "completion": ranked[0][1], **about})
        if kind == "rankings" and len(ranked) > 1:
            groups = -(-len(ranked) // MOST_ANSWERS)
            for part in (ranked[place::groups] for place in range(groups)):
                answers = {"answers": [text for _, text in part], "ranks": [rank for rank, _ in part]}
                yield without_empty({**asked, **answers, "prompt_id": _id(field, node), **about})


def write(record: Row) -> Iterator[dict[str, Any]]:
    """A tree of one thread; of a ranking one for each labeling, of a demonstration its only reply has rank 0.

    Raises:
        DataError: a labeling with ties, which ranks of a tree cannot say; or the thread does not begin with the user,
            or its turns do not alternate.
    """
    assert not isinstance(record, Passage)
    turns = turns_of(record.prompt)
    if [turn.role for turn in turns] != [("user", "assistant")[place % 2] for place in range(len(turns))]:
        raise DataError("messages: turns of a tree alternate, the user's first", field="messages")
    prompt_id = record.prompt_id if isinstance(record, Ranking) else ""
    for replies in _ranked_texts(record):
        yield _tree([turn.content for turn in turns], replies, prompt_id)


def _threads(root: Node) -> Iterator[tuple[str, list[dict[str, str]], Node]]:
    """Each message that counts, with its field and the thread up to and with it, in the order of the tree."""
    waiting: list[tuple[str, list[dict[str, str]], Any]] = [("prompt", [], root)]
    while waiting:
        field, before, node = waiting.pop()
        if not isinstance(node, Mapping):
            raise DataError(f"{field} must be a message", field=field)
        if not _counts(node):
            continue
        if not isinstance(node.get("role"), str) or node["role"] not in _ROLES:
            raise DataError(
                f"{field}.role must be prompter or assistant", field=f"{field}.role", value=node.get("role")
            )
        thread = [*before, {"role": _ROLES[node["role"]], "content": _text(field, node)}]
        yield field, thread, node
        replies = list(enumerate(_replies(field, node)))
        waiting += [(f"{field}.replies[{place}]", thread, reply) for place, reply in reversed(replies)]


def _ranked_replies(field: str, node: Node) -> list[tuple[int, str]]:
    """(rank, text) of the assistant's replies that have a rank, best first."""
    found = []
    for place, reply in enumerate(_replies(field, node)):
        name = f"{field}.replies[{place}]"
        if not isinstance(reply, Mapping) or not _counts(reply) or reply.get("role") != "assistant":
            continue
        rank = reply.get("rank")
        if rank is None:
            continue
        if not isinstance(rank, int) or isinstance(rank, bool):
            raise DataError(f"{name}.rank must be a whole number", field=f"{name}.rank", value=rank)
        found.append((rank, _text(name, reply)))
    return sorted(found, key=lambda reply: reply[0])


def _counts(node: Node) -> bool:
    return not node.get("deleted") and not node.get("synthetic") and node.get("review_result") is not False


def _replies(field: str, node: Node) -> Sequence[Any]:
    replies = node.get("replies")
    if replies is None:
        return []
    if not isinstance(replies, list):
        raise DataError(f"{field}.replies must be a list of messages", field=f"{field}.replies")
    return replies


def _text(field: str, node: Node) -> str:
    text = node.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{field}.text must be a text that is not empty", field=f"{field}.text")
    return text


def _id(field: str, node: Node) -> str:
    if not isinstance(node.get("message_id"), str):
        raise DataError(f"{field}.message_id must be a text", field=f"{field}.message_id")
    return node["message_id"]


def _ranked_texts(record: Row) -> Iterator[list[str]]:
    """The replies of each tree, best first."""
    if isinstance(record, Demonstration):
        yield [record.completion]
    elif isinstance(record, Ranking):
        for place, labeling in enumerate(record.labelings):
            if len(set(labeling.ranks)) < len(labeling.ranks):
                raise DataError(f"labels[{place}] has ties, which a tree's ranks cannot say", field=f"labels[{place}]")
            order = sorted(range(len(labeling.ranks)), key=lambda answer: labeling.ranks[answer])
            yield [record.answers[answer] for answer in order]
    else:
        yield []


def _tree(thread: list[str], replies: list[str], prompt_id: str) -> dict[str, Any]:
    below = [_message([*thread, text], [], rank=rank) for rank, text in enumerate(replies)]
    for turns in range(len(thread), 0, -1):
        below = [_message(thread[:turns], below)]
        if turns == len(thread) and prompt_id:
            _name(below[0], prompt_id)
    (prompt,) = below
    return {"message_tree_id": _made_id([*thread, "", *replies]), "tree_state": "ready_for_export", "prompt": prompt}


def _message(thread: list[str], replies: list[dict[str, Any]], **more: int) -> dict[str, Any]:
    """The last message of a thread."""
    about = {"review_result": True, "deleted": False, "synthetic": False}
    role = "assistant" if len(thread) % 2 == 0 else "prompter"
    made: dict[str, Any] = {"message_id": "", "text": thread[-1], "role": role, **about, **more, "replies": replies}
    _name(made, _made_id(thread))
    return made


def _name(message: dict[str, Any], message_id: str) -> None:
    message["message_id"] = message_id
    for reply in message["replies"]:
        reply["parent_id"] = message_id


def _made_id(thread: list[str]) -> str:
    """Equal threads have equal ids."""
    return str(uuid.uuid5(_NAMES, "\0".join(thread)))
