"""One row of each kind of dataset, in the one form that the trainer works with, and the forms that it is read from."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.errors import DataError
from trimtab.types import ChatMessage

__all__ = [
    "KINDS",
    "Demonstration",
    "Labeling",
    "Passage",
    "PromptRow",
    "PromptText",
    "Ranking",
    "Row",
    "prompt_key",
    "turns_of",
]

PromptText = str | tuple[ChatMessage, ...]
"""A prompt as people write it: text, or a conversation that ends in a user turn."""

LEAST_ANSWERS, MOST_ANSWERS = 2, 9
_HH_HUMAN, _HH_ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


@dataclass(frozen=True)
class Demonstration:
    """A prompt with the ideal answer that a labeler wrote, and that labeler's group; empty when not known."""

    prompt: PromptText
    completion: str
    category: str = ""
    source: str = ""
    group: str = ""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Demonstration:
        """Reads a row with `prompt` or `messages`, and `completion`.

        Raises:
            DataError: names the field and what is wrong with it.
        """
        return cls(
            prompt=_prompt(row),
            completion=_text(row, "completion"),
            category=_optional(row, "category"),
            source=_source(row),
            group=_optional(row, "group"),
        )


@dataclass(frozen=True)
class PromptRow:
    """A prompt without an answer."""

    prompt: PromptText
    category: str = ""
    source: str = ""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> PromptRow:
        """Reads a row with `prompt` or `messages`; raises DataError."""
        return cls(_prompt(row), _optional(row, "category"), _source(row))


@dataclass(frozen=True)
class Passage:
    """Pretraining text."""

    text: str
    source: str = ""

    @property
    def prompt(self) -> str:
        """The text, by which files are split and compared, as the others are by their prompts."""
        return self.text

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Passage:
        """Reads a row with `text`; raises DataError."""
        return cls(_text(row, "text"), _source(row))


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

        `answers` with `labels` [{labeler, group, ranking}] or `ranks`; `prompt`/`chosen`/`rejected` as texts or as
        turns (TRL); only `chosen`/`rejected` as whole dialogues, turns (TRL) or transcripts (hh-rlhf);
        `context`/`completions[].rank` (NeMo-RL); `prompt`/`answers[].rank` (Nectar).

        Raises:
            DataError: names the field and what is wrong with it.
        """
        # Asked by value: in a table that mixes forms every row has every column, null where its form has none.
        if row.get("chosen") is not None or row.get("rejected") is not None:
            prompt, answers, ranks = _pair(row)
            labelings: tuple[Labeling, ...] = (Labeling((0, 1), _optional(row, "labeler"), _optional(row, "group")),)
        elif row.get("completions") is not None:
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
        if key is not None and not isinstance(key, str | int):
            raise _wrong("prompt_id", key, f"must be a text or a number, found {type(key).__name__}")
        return cls(
            prompt=prompt,
            answers=answers,
            labelings=labelings,
            prompt_id=_unicode("prompt_id", str(key)) if key is not None and key != "" else prompt_key(prompt),
            category=_optional(row, "category"),
            source=_source(row),
        )


Row = Demonstration | Ranking | PromptRow | Passage

KINDS: dict[str, type[Demonstration] | type[Ranking] | type[PromptRow] | type[Passage]] = {
    "demonstrations": Demonstration,
    "rankings": Ranking,
    "prompts": PromptRow,
    "pretraining": Passage,
}
"""The record of each kind of dataset."""


def turns_of(prompt: PromptText) -> tuple[ChatMessage, ...]:
    """A prompt as a conversation; a text is what the user says."""
    return (ChatMessage(role="user", content=prompt),) if isinstance(prompt, str) else prompt


def prompt_key(prompt: PromptText) -> str:
    """A name for a prompt: equal prompts have equal names, and a text is equal to a conversation of it alone.

    The templates render both alike, so a split that told them apart would put one prompt on both sides.
    """
    if isinstance(prompt, str):
        content = prompt
    elif len(prompt) == 1 and prompt[0].role == "user":
        content = prompt[0].content
    else:
        content = json.dumps([[m.role, m.content] for m in prompt])
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _prompt(row: Mapping[str, Any]) -> PromptText:
    field = "prompt" if row.get("messages") is None and isinstance(row.get("prompt"), list) else "messages"
    if row.get(field) is not None:
        return _after_context(row, _asking(field, _messages(field, row[field])))
    context, prompt = _optional(row, "context"), _text(row, "prompt")
    return f"{context}\n\n{prompt}" if context else prompt


def _asking(field: str, turns: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    if turns[-1].role != "user":
        raise _wrong(field, turns[-1].role, "the last turn must be the user's")
    return turns


def _after_context(row: Mapping[str, Any], turns: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    context = _optional(row, "context")
    if not context:
        return turns
    return (*turns[:-1], ChatMessage(role="user", content=f"{context}\n\n{turns[-1].content}"))


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
        if not group:
            raise _wrong(f"{field}.ranking[{place}]", group, "must name at least one answer")
        for index in _integers(f"{field}.ranking[{place}]", group):
            if not 0 <= index < count or index in ranks:
                raise _wrong(
                    f"{field}.ranking", ranking, f"must name each of the {count} answers once, by index from 0"
                )
            ranks[index] = place
    if len(ranks) != count:
        raise _wrong(f"{field}.ranking", ranking, f"names {len(ranks)} of {count} answers")
    return Labeling(
        tuple(ranks[index] for index in range(count)),
        *(_optional({f"{field}.{key}": label.get(key)}, f"{field}.{key}") for key in ("labeler", "group")),
    )


def _pair(row: Mapping[str, Any]) -> tuple[PromptText, tuple[str, ...], tuple[int, ...]]:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, list) and isinstance(rejected, list):
        before, better = _dialogue("chosen", chosen)
        before_worse, worse = _dialogue("rejected", rejected)
        if before != before_worse:
            raise _wrong("rejected", rejected, "must have the same turns before the answer as `chosen`")
        if not before:  # the turns are the answers only
            return _prompt(row), (better, worse), (0, 1)
        asked = row.get("prompt")
        if isinstance(asked, str) and asked.strip() not in [turn.content.strip() for turn in before]:
            raise _wrong("prompt", asked, "must be a turn of the dialogue in `chosen`")
        if isinstance(asked, list) and _messages("prompt", asked) != before:
            raise _wrong("prompt", asked, "must be the turns before the answer in `chosen`")
        return _after_context(row, before), (better, worse), (0, 1)
    better, worse = _text(row, "chosen"), _text(row, "rejected")
    if row.get("prompt") is not None or row.get("messages") is not None:
        return _prompt(row), (better.strip(), worse.strip()), (0, 1)
    dialogue, better = _hh(better, "chosen")
    dialogue_worse, worse = _hh(worse, "rejected")
    if dialogue != dialogue_worse:
        raise _wrong("rejected", worse, "must have the same dialogue before the answer as `chosen`")
    return _after_context(row, dialogue), (better, worse), (0, 1)


def _hh(transcript: str, field: str) -> tuple[tuple[ChatMessage, ...], str]:
    """An hh-rlhf transcript as turns and the last answer."""
    before, mark, answer = transcript.rpartition(_HH_ASSISTANT)
    if not mark or not before.lstrip().startswith(_HH_HUMAN.strip()):
        raise _wrong(field, transcript, "without `prompt` it must be a transcript of Human: and Assistant: turns")
    turns = []
    for part in f"\n\n{before.lstrip()}".split(_HH_HUMAN)[1:]:
        human, *replies = part.split(_HH_ASSISTANT)
        turns.append({"role": "user", "content": human.strip()})
        turns += [{"role": "assistant", "content": reply.strip()} for reply in replies]
    return _asking(field, _messages(field, turns)), _text({field: answer.strip()}, field)


def _dialogue(field: str, turns: Any) -> tuple[tuple[ChatMessage, ...], str]:
    *before, last = _messages(field, turns)
    if last.role != "assistant" or (before and before[-1].role != "user"):
        raise _wrong(field, turns, "must be turns that end in the assistant's answer to the user")
    return tuple(before), last.content


def _nemo(row: Mapping[str, Any]) -> tuple[PromptText, tuple[str, ...], tuple[int, ...]]:
    prompt = _asking("context", _messages("context", row.get("context")))
    completions = row["completions"]
    if not isinstance(completions, list) or not all(isinstance(c, Mapping) for c in completions):
        raise _wrong("completions", completions, "must be a list of objects with `rank` and `completion`")
    answers = tuple(
        _only_answer(f"completions[{i}].completion", c.get("completion")) for i, c in enumerate(completions)
    )
    return prompt, answers, _integers("completions[].rank", [c.get("rank") for c in completions])


def _only_answer(field: str, turns: Any) -> str:
    first, *more = _messages(field, turns)
    if first.role != "assistant" or more:
        raise _wrong(field, turns, "must be one turn, the assistant's")
    return first.content


def _nectar(row: Mapping[str, Any]) -> tuple[PromptText, tuple[str, ...], tuple[int, ...]]:
    entries = row["answers"]
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise _wrong("answers", entries, "must be all texts or all objects with `answer` and `rank`")
    text = _text(row, "prompt").rstrip()
    prompt: PromptText = text
    if text.lstrip().startswith(_HH_HUMAN.strip()):  # a dialogue up to the answer, which stands in `answers`
        open_end = text if text.endswith(_HH_ASSISTANT.strip()) else text + _HH_ASSISTANT
        prompt = _after_context(row, _hh(f"{open_end} .", "prompt")[0])
    elif _optional(row, "context"):
        prompt = f"{row['context']}\n\n{text}"
    answers = tuple(_text({name: entry.get("answer")}, name) for name, entry in _named("answers", "answer", entries))
    return prompt, answers, _integers("answers[].rank", [entry.get("rank") for entry in entries])


def _named(items: str, key: str, entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each entry with the path of its field, for errors."""
    for index, entry in enumerate(entries):
        yield f"{items}[{index}].{key}", entry


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
        role, content = (
            turn.get("role"),
            _text({f"{field}[{index}].content": turn.get("content")}, f"{field}[{index}].content"),
        )
        if role not in ("system", "user", "assistant"):
            raise _wrong(f"{field}[{index}].role", role, "must be system, user or assistant")
        made.append(ChatMessage(role=role, content=content))
    return tuple(made)


def _integers(field: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(map(_is_whole, values)):
        raise _wrong(field, values, "must be a list of whole numbers")
    return tuple(map(int, values))


def _is_whole(value: object) -> bool:
    """Whole numbers, those too that a table of floats holds."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        raise _wrong(key, None, "is missing")
    if not isinstance(value, str):
        raise _wrong(key, value, f"must be a text, found {type(value).__name__}")
    if not value.strip():
        raise _wrong(key, value, "must not be empty")
    return _unicode(key, value)


def _source(row: Mapping[str, Any]) -> str:
    """`source`, and below it `subset` where a row has one that is a text: "anthropics/hh-rlhf/helpful-base"."""
    source, subset = _optional(row, "source"), row.get("subset")
    return f"{source}/{_unicode('subset', subset)}" if source and subset and isinstance(subset, str) else source


def _optional(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(key, value, f"must be a text, found {type(value).__name__}")
    return _unicode(key, value)


def _unicode(key: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _wrong(key, value, f"has half a surrogate pair at character {error.start}: no Unicode text") from None
    return value


def _wrong(field: str, value: object, reason: str) -> DataError:
    shown = value if value is None or isinstance(value, str) else reprlib.repr(value)  # of any depth and length
    return DataError(f"{field} {reason}", field=field, value=shown)
