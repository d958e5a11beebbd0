"""Words of the command line for the enums of labeling.proto: `rank` for TASK_KIND_RANK; and for counts."""

from __future__ import annotations

from typing import Any

from trimtab.v1 import labeling_pb2 as pb

__all__ = ["KINDS", "ROLES", "STATES", "counted", "word_of"]


def _words(enum: Any, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix).lower(): value for name, value in enum.items() if value}


KINDS: dict[str, pb.TaskKind.ValueType] = _words(pb.TaskKind, "TASK_KIND_")
STATES: dict[str, pb.ProjectState.ValueType] = _words(pb.ProjectState, "PROJECT_STATE_")
ROLES: dict[str, pb.AccountRole.ValueType] = _words(pb.AccountRole, "ACCOUNT_ROLE_")


def word_of(words: dict[str, Any], value: int) -> str:
    """The word of a value; of one that a newer service has, its number."""
    return next((word for word, known in words.items() if known == value), str(value))


def counted(count: int, noun: str) -> str:
    """A count and its noun, whose plural ends in s: `1 task`, `2 tasks`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
