"""One row of each kind of dataset, in the one form that the trainer works with, and the forms that it is read from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.errors import DataError, InvalidRequest
from trimtab.types import ChatMessage

__all__ = ["Demonstration", "Labeling", "Passage", "PromptRow", "PromptText", "Ranking", "prompt_key"]

PromptText = str | tuple[ChatMessage, ...]
"""A prompt as people write it: text, or a conversation that ends in a user turn."""

LEAST_ANSWERS, MOST_ANSWERS = 2, 9
_HH_HUMAN, _HH_ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


@dataclass(frozen=True)
class Demonstration:
    """A prompt with the ideal answer that a labeler wrote."""

    prompt: PromptText
    completion: str
    category: str = ""
    source: str = ""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Demonstration:
        """Reads a row with `prompt` or `messages`, and `completion`.

        Raises:
            DataError: names the field and what is wrong with it.
        """
        return cls(_prompt(row), _text(row, "completion"), _optional(row, "category"), _optional(row, "source"))


@dataclass(frozen=True)
class PromptRow:
    """A prompt without an answer."""

    prompt: PromptText
    category: str = ""
    source: str = ""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> PromptRow:
        """Reads a row with `prompt` or `messages`; raises DataError."""
        return cls(_prompt(row), _optional(row, "category"), _optional(row, "source"))


@dataclass(frozen=True)
class Passage:
    """Pretraining text."""

    text: str
    source: str = ""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Passage:
        """Reads a row with `text`; raises DataError."""
        return cls(_text(row, "text"), _optional(row, "source"))


@dataclass(frozen=True)
class Labeling:
    """What one labeler said of the answers to a prompt.

    Attributes:
        ranks: of each answer, 0 is best, ties share one.
        labeler, group: empty when not known.
    """

    ranks: tuple[int, ...]
    labeler: str = ""
    group: str = ""


@dataclass(frozen=True)
class Ranking:
    """K answers to one prompt, ranked by one labeler or several.

    Attributes:
        prompt: the context, where there is one, comes before the question.
        answers: K texts, 2 to 9.
        labelings: at least one.
        prompt_id: rows with the same belong on the same side of a split.
    """

    prompt: PromptText
    answers: tuple[str, ...]
    labelings: tuple[Labeling, ...]
    prompt_id: str = ""
    category: str = ""
    source: str = ""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Ranking:
        """Reads any of the forms below.

        `answers` with `labels` [{labeler, group, ranking}] or `ranks`; `prompt`/`chosen`/`rejected` (TRL), or only
        `chosen`/`rejected` as whole dialogues (hh-rlhf); `context`/`completions[].rank` (NeMo-RL);
        `prompt`/`answers[].rank` (Nectar).

        Raises:
            DataError: names the field and what is wrong with it.
        """
        if "chosen" in row or "rejected" in row:
            prompt, answers, ranks = _pair(row)
            labelings: tuple[Labeling, ...] = (Labeling((0, 1)),)
        elif "completions" in row:
            prompt, answers, ranks = _nemo(row)
            labelings = (Labeling(_dense(ranks)),)
        elif isinstance(row.get("answers"), list) and row["answers"] and isinstance(row["answers"][0], Mapping):
            prompt, answers, ranks = _nectar(row)
            labelings = (Labeling(_dense(ranks)),)
        else:
            prompt, answers = _prompt(row), _answers(row)
            labelings = _labelings(row, len(answers))
        _check_count(len(answers))
        key = row.get("prompt_id")
        return cls(
            prompt=prompt,
            answers=answers,
            labelings=labelings,
            prompt_id=str(key) if key else prompt_key(prompt),
            category=_optional(row, "category"),
            source=_optional(row, "source"),
        )


def prompt_key(prompt: PromptText) -> str:
    """A name for a prompt: equal prompts have equal names."""
    content = prompt if isinstance(prompt, str) else json.dumps([[m.role, m.content] for m in prompt])
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _prompt(row: Mapping[str, Any]) -> PromptText:
    context = _optional(row, "context") if isinstance(row.get("context", ""), str) else ""
    messages = row.get("messages")
    if messages is not None:
        turns = _messages("messages", messages)
        if turns[-1].role != "user":
            raise _wrong("messages", turns[-1].role, "the last turn must be the user's")
        if context:  # it comes before the question
            question = ChatMessage(role="user", content=f"{context}\n\n{turns[-1].content}")
            turns = (*turns[:-1], question)
        return turns
    prompt = _text(row, "prompt")
    return f"{context}\n\n{prompt}" if context else prompt


def _answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    answers = row.get("answers")
    if answers is None:
        raise _wrong("answers", None, "is missing")
    if not isinstance(answers, list):
        raise _wrong("answers", answers, "must be a list of texts")
    return tuple(_text({f"answers[{i}]": answer}, f"answers[{i}]") for i, answer in enumerate(answers))


def _labelings(row: Mapping[str, Any], count: int) -> tuple[Labeling, ...]:
    labels, ranks = row.get("labels"), row.get("ranks")
    if (labels is None) == (ranks is None):
        raise _wrong("labels", None, "exactly one of `labels` and `ranks` must be there")
    if ranks is not None:
        values = _integers("ranks", ranks)
        if len(values) != count:
            raise _wrong("ranks", ranks, f"has {len(values)} ranks for {count} answers")
        return (Labeling(_dense(values), _optional(row, "labeler"), _optional(row, "group")),)
    if not isinstance(labels, list) or not labels:
        raise _wrong("labels", labels, "must be a list with at least one entry")
    return tuple(_labeling(f"labels[{i}]", label, count) for i, label in enumerate(labels))


def _labeling(field: str, label: Any, count: int) -> Labeling:
    if not isinstance(label, Mapping):
        raise _wrong(field, label, "must be an object with `ranking`")
    ranking = label.get("ranking")
    if not isinstance(ranking, list):
        raise _wrong(f"{field}.ranking", ranking, "must be a list of tie groups, best first")
    ranks: dict[int, int] = {}
    for place, group in enumerate(ranking):
        for index in _integers(f"{field}.ranking[{place}]", group):
            if not 0 <= index < count or index in ranks:
                raise _wrong(
                    f"{field}.ranking", ranking, f"must name each of the {count} answers once, by index from 0"
                )
            ranks[index] = place
    if len(ranks) != count:
        raise _wrong(f"{field}.ranking", ranking, f"names {len(ranks)} of {count} answers")
    return Labeling(
        tuple(ranks[index] for index in range(count)), _optional(label, "labeler"), _optional(label, "group")
    )


def _pair(row: Mapping[str, Any]) -> tuple[PromptText, tuple[str, ...], tuple[int, ...]]:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, list) and isinstance(rejected, list):
        before, better = _dialogue("chosen", chosen)
        before_worse, worse = _dialogue("rejected", rejected)
        prompt: PromptText = _prompt(row) if "prompt" in row or "messages" in row else before
        if "prompt" not in row and before != before_worse:
            raise _wrong("rejected", rejected, "must have the same turns before the answer as `chosen`")
        return prompt, (better, worse), (0, 1)
    better, worse = _text(row, "chosen"), _text(row, "rejected")
    if "prompt" in row or "messages" in row:
        return _prompt(row), (better.strip(), worse.strip()), (0, 1)
    dialogue, better = _hh(better, "chosen")
    dialogue_worse, worse = _hh(worse, "rejected")
    if dialogue != dialogue_worse:
        raise _wrong("rejected", worse, "must have the same dialogue before the answer as `chosen`")
    return dialogue, (better, worse), (0, 1)


def _hh(transcript: str, field: str) -> tuple[PromptText, str]:
    """An hh-rlhf transcript as turns and the last answer."""
    before, mark, answer = transcript.rpartition(_HH_ASSISTANT)
    if not mark or not before.lstrip().startswith(_HH_HUMAN.strip()):
        raise _wrong(field, transcript, "without `prompt` it must be a transcript of Human: and Assistant: turns")
    turns = []
    for part in before.split(_HH_HUMAN)[1:]:
        human, *replies = part.split(_HH_ASSISTANT)
        turns.append({"role": "user", "content": human.strip()})
        turns += [{"role": "assistant", "content": reply.strip()} for reply in replies]
    return _messages(field, turns), _text({field: answer.strip()}, field)


def _dialogue(field: str, turns: Any) -> tuple[tuple[ChatMessage, ...], str]:
    *before, last = _messages(field, turns)
    if last.role != "assistant" or not before:
        raise _wrong(field, turns, "must be turns that end in the assistant's answer")
    return tuple(before), last.content


def _nemo(row: Mapping[str, Any]) -> tuple[PromptText, tuple[str, ...], tuple[int, ...]]:
    prompt = _messages("context", row.get("context"))
    completions = row["completions"]
    if not isinstance(completions, list) or not all(isinstance(c, Mapping) for c in completions):
        raise _wrong("completions", completions, "must be a list of objects with `rank` and `completion`")
    answers = tuple(_messages(f"completions[{i}].completion", c.get("completion"))[-1].content
                    for i, c in enumerate(completions))  # fmt: skip
    return prompt, answers, _integers("completions[].rank", [c.get("rank") for c in completions])


def _nectar(row: Mapping[str, Any]) -> tuple[PromptText, tuple[str, ...], tuple[int, ...]]:
    entries = row["answers"]
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise _wrong("answers", entries, "must be all texts or all objects with `answer` and `rank`")
    text = _text(row, "prompt").rstrip()
    prompt: PromptText = text
    if text.lstrip().startswith(_HH_HUMAN.strip()):  # a dialogue up to the answer, which stands in `answers`
        open_end = text if text.endswith(_HH_ASSISTANT.strip()) else text + _HH_ASSISTANT
        prompt = _hh(f"{open_end} .", "prompt")[0]
    answers = tuple(_text(entry, "answer") for entry in entries)
    return prompt, answers, _integers("answers[].rank", [entry.get("rank") for entry in entries])


def _dense(ranks: Sequence[int]) -> tuple[int, ...]:
    """Ranks as places from 0; ties share one."""
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
    return tuple(places[rank] for rank in ranks)


def _check_count(count: int) -> None:
    if not LEAST_ANSWERS <= count <= MOST_ANSWERS:
        raise _wrong("answers", count, f"K is {count}; allowed: {LEAST_ANSWERS}..{MOST_ANSWERS} answers to a prompt")


def _messages(field: str, turns: Any) -> tuple[ChatMessage, ...]:
    if not isinstance(turns, Iterable) or isinstance(turns, str | bytes | Mapping) or not turns:
        raise _wrong(field, turns, "must be a list of turns with `role` and `content`")
    made = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise _wrong(f"{field}[{index}]", turn, "must be an object with `role` and `content`")
        try:
            made.append(ChatMessage(role=turn.get("role"), content=turn.get("content")))  # type: ignore[arg-type]
        except InvalidRequest as error:
            raise _wrong(f"{field}[{index}].{error.field}", error.value, error.message) from None
    return tuple(made)


def _integers(field: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise _wrong(field, values, "must be a list of whole numbers")
    return tuple(values)


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        raise _wrong(key, None, "is missing")
    if not isinstance(value, str):
        raise _wrong(key, value, f"must be a text, found {type(value).__name__}")
    if not value.strip():
        raise _wrong(key, value, "must not be empty")
    return value


def _optional(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(key, value, f"must be a text, found {type(value).__name__}")
    return value


def _wrong(field: str, value: object, reason: str) -> DataError:
    return DataError(f"{field} {reason}", field=field, value=value)
