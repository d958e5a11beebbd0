"""What a task asks and what a label says: checked records of what people and programs send.

A labeler sees the answers of a task in an order of its own and names them by their place on the page. What is stored
names them by their index in the task; `at_answers` and `at_places` turn one into the other.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from trimtab.errors import InvalidRequest, Reason
from trimtab.types import ChatMessage
from trimtab.types.shared import INT32_END, INT64_END, Record, Text, invalid_request
from trimtab_services.labeling.nul import nul_problem

__all__ = [
    "ANSWERS",
    "FLAGS",
    "AnswerFlags",
    "AnswerSource",
    "DemonstrationLabel",
    "RankingLabel",
    "Task",
    "TaskKind",
    "at_answers",
    "at_places",
    "check_task",
    "read_label",
    "read_record",
    "shuffled",
]

MOST_NAME = 200
MOST_OVERLAP = 100


class TaskKind(StrEnum):
    """What a labeler does."""

    DEMONSTRATE = "demonstrate"
    RANK = "rank"
    COMPARE = "compare"


ANSWERS = {TaskKind.DEMONSTRATE: (0, 0), TaskKind.RANK: (4, 9), TaskKind.COMPARE: (2, 2)}
"""Least and most answers of a task of each kind."""


def _without_nul(text: str) -> str:
    if problem := nul_problem(text):
        raise ValueError(problem)
    return text


StoredText = Annotated[Text, AfterValidator(_without_nul)]
Name = Annotated[StoredText, Field(max_length=MOST_NAME)]
Ranking = tuple[tuple[int, ...], ...]


class _Part(BaseModel):
    """Part of a record, which names its fields in errors."""

    model_config = Record.model_config


class AnswerSource(_Part):
    """Where an answer comes from; labelers never see it.

    Attributes:
        model: name of the model, person or file.
        version: of the model; 0 for none.
        temperature, seed, sample_index: how it was sampled.
    """

    model: Name = ""
    version: int = Field(default=0, ge=0, lt=INT64_END)
    temperature: float = Field(default=0.0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**64)
    sample_index: int = Field(default=0, ge=0, lt=INT32_END)


class Task(Record):
    """A task as it is imported.

    Attributes:
        key: its name in the project; empty: made from the content.
        prompt, messages: the prompt, as text or as a conversation; neither where the labeler writes it.
        context: comes before the question.
        answers: to be ranked or compared.
        sources: of the answers; none, or one for each.
        category: use case.
        user: who sent the prompt.
        overlap: labels wanted; 0: the project's.
        gold_ranking: tie groups, best first, of a qualification task.
    """

    key: Name = ""
    prompt: StoredText = ""
    messages: tuple[ChatMessage, ...] = ()
    context: StoredText = ""
    answers: tuple[Annotated[StoredText, Field(min_length=1)], ...] = ()
    sources: tuple[AnswerSource, ...] = ()
    category: Name = ""
    user: Name = ""
    overlap: int = Field(default=0, ge=0, le=MOST_OVERLAP)
    gold_ranking: Ranking = ()

    def content(self) -> dict[str, Any]:
        """What is kept of it as JSON: every field that is set, without `key` and `overlap`."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"key", "overlap"})

    def made_key(self) -> str:
        """`key`, or a name that equal contents share."""
        if self.key:
            return self.key
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True).encode()).hexdigest()[:32]


def check_task(kind: TaskKind, task: Task, *, max_characters: int) -> None:
    """Checks what a task must have by its kind.

    Raises:
        InvalidRequest: a count of answers or sources, equal answers without sources, a gold ranking, a missing prompt
            or a too long text.
    """
    least, most = ANSWERS[kind]
    if not least <= len(task.answers) <= most:
        allowed = str(least) if least == most else f"{least}..{most}"
        raise InvalidRequest(
            f"answers: {len(task.answers)} answers; a task to {kind} has {allowed}",
            field="answers",
            value=len(task.answers),
            limit=allowed,
        )
    if task.sources and len(task.sources) != len(task.answers):
        raise InvalidRequest(
            f"sources: {len(task.sources)} for {len(task.answers)} answers; give none, or one for each",
            field="sources",
            value=len(task.sources),
            limit=len(task.answers),
        )
    if not task.sources:  # drawn answers of two sources may be equal: then neither is better
        _refuse_equal(task.answers)
    if task.gold_ranking:
        if kind is TaskKind.DEMONSTRATE:
            raise InvalidRequest("gold_ranking: a demonstration has no ranking to compare with", field="gold_ranking")
        _check_ranking("gold_ranking", task.gold_ranking, len(task.answers))
        if len(task.gold_ranking) == 1:
            raise InvalidRequest("gold_ranking: ties all answers, so it tells nothing", field="gold_ranking")
    _check_prompt(kind, task)
    for field, text in _texts(task):
        _check_length(field, text, max_characters)


def _refuse_equal(answers: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for index, answer in enumerate(answers):
        if answer in first:
            raise InvalidRequest(
                f"answers: {first[answer]} and {index} are equal; allowed only of answers with `sources`",
                field="answers",
                value=index,
            )
        first[answer] = index


def _check_prompt(kind: TaskKind, task: Task) -> None:
    if task.prompt and task.messages:
        raise InvalidRequest("messages: set one of `prompt` and `messages`, not both", field="messages")
    if task.messages and task.messages[-1].role != "user":
        raise InvalidRequest(
            "messages: the last turn must be the user's", field="messages", value=task.messages[-1].role, limit="user"
        )
    if kind is not TaskKind.DEMONSTRATE and not task.messages and not task.prompt.strip():
        raise InvalidRequest("prompt: must not be empty", reason=Reason.EMPTY_PROMPT, field="prompt")


def _texts(task: Task) -> list[tuple[str, str]]:
    return [
        ("prompt", task.prompt),
        ("context", task.context),
        *((f"messages[{i}].content", turn.content) for i, turn in enumerate(task.messages)),
        *((f"answers[{i}]", answer) for i, answer in enumerate(task.answers)),
    ]


class AnswerFlags(_Part):
    """The binary metadata of InstructGPT's appendix B, table "labeler-collected metadata"; None: not answered."""

    fails_to_follow_instruction: bool | None = None
    inappropriate_for_customer_assistant: bool | None = None
    hallucination: bool | None = None
    satisfies_constraint: bool | None = None
    sexual_content: bool | None = None
    violent_content: bool | None = None
    encourages_harm: bool | None = None
    """Encourages, or fails to discourage, violence, abuse, terrorism or self-harm."""
    denigrates_protected_class: bool | None = None
    gives_harmful_advice: bool | None = None
    expresses_opinion: bool | None = None
    expresses_moral_judgment: bool | None = None


FLAGS = tuple(AnswerFlags.model_fields)
"""Names of the flags, in the order of the paper."""


class RankingLabel(Record):
    """What a labeler says of the answers of a task.

    Attributes:
        ranking: tie groups, best first.
        ratings: overall quality of each answer, 1 to 7; none, or one for each.
        flags: of each answer; none, or one for each.
    """

    ranking: Ranking
    ratings: tuple[Annotated[int, Field(ge=1, le=7)], ...] = ()
    flags: tuple[AnswerFlags, ...] = ()


class DemonstrationLabel(Record):
    """What a labeler writes.

    Attributes:
        completion: the ideal answer.
        prompt: where the task has none.
    """

    completion: StoredText
    prompt: StoredText = ""


def read_record(record: type[Record], values: Mapping[str, Any], field: str) -> Any:
    """A record out of JSON, whose errors name their field under `field`.

    Raises:
        InvalidRequest: as the record does.
    """
    try:
        return record.model_validate(values)
    except ValidationError as error:
        raise invalid_request(error, record.__name__).under(field) from None
    except InvalidRequest as error:
        raise error.under(field) from None


def read_label(
    kind: TaskKind, values: Mapping[str, Any], task: Task, *, wants_ratings: bool, max_characters: int
) -> dict[str, Any]:
    """Checks what a labeler sends; returns it as it is kept, by place.

    Raises:
        InvalidRequest: names the field under `label`.
    """
    if kind is TaskKind.DEMONSTRATE:
        return _demonstration(read_record(DemonstrationLabel, values, "label"), task, max_characters)
    label: RankingLabel = read_record(RankingLabel, values, "label")
    count = len(task.answers)
    _check_ranking("label.ranking", label.ranking, count)
    for field, given, is_required in (("ratings", label.ratings, wants_ratings), ("flags", label.flags, False)):
        if len(given) != count and (given or is_required):
            raise InvalidRequest(
                f"label.{field}: {len(given)} for {count} answers; give one for each",
                field=f"label.{field}",
                value=len(given),
                limit=count,
            )
    return {
        "ranking": [sorted(group) for group in label.ranking],
        "ratings": list(label.ratings),
        "flags": [flags.model_dump(exclude_none=True) for flags in label.flags],
    }


def _demonstration(label: DemonstrationLabel, task: Task, max_characters: int) -> dict[str, Any]:
    writes_prompt = not task.prompt and not task.messages
    if label.prompt and not writes_prompt:
        raise InvalidRequest("label.prompt: the task has a prompt already", field="label.prompt")
    wanted = {"completion": label.completion, **({"prompt": label.prompt} if writes_prompt else {})}
    for field, text in wanted.items():
        if not text.strip():
            raise InvalidRequest(
                f"label.{field}: must not be empty", reason=Reason.FIELD_MISSING, field=f"label.{field}"
            )
        _check_length(f"label.{field}", text, max_characters)
    return wanted


def _check_ranking(field: str, ranking: Ranking, count: int) -> None:
    named = [index for group in ranking for index in group]
    if sorted(named) != list(range(count)) or not all(ranking):
        raise InvalidRequest(
            f"{field}: {[list(group) for group in ranking]!s:.200}; must name each of {count} answers once, from 0, in "
            "groups that are not empty",
            field=field,
            value=[list(group) for group in ranking],
            limit=f"0..{count - 1}, each once",
        )


def _check_length(field: str, text: str, most: int) -> None:
    if len(text) > most:
        raise InvalidRequest(
            f"{field}: {len(text)} characters; allowed: {most}", field=field, value=len(text), limit=most
        )


def shuffled(count: int, *names: object) -> list[int]:
    """An order of `count` answers that depends on the names only: for each place, the index of its answer."""
    order = list(range(count))
    random.Random(":".join(map(str, names))).shuffle(order)
    return order


def at_answers(label: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """A label by place as a label by index of answer."""
    if "ranking" not in label:
        return dict(label)
    return _moved(label, [order.index(index) for index in range(len(order))], order)


def at_places(label: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """A label by index of answer as a label by place."""
    if "ranking" not in label:
        return dict(label)
    return _moved(label, order, [order.index(index) for index in range(len(order))])


def _moved(label: Mapping[str, Any], found_at: Sequence[int], new_name: Sequence[int]) -> dict[str, Any]:
    """Args: `found_at[new]` is the old position of what is to stand at `new`; `new_name[old]` the reverse."""
    return {
        "ranking": [sorted(new_name[index] for index in group) for group in label["ranking"]],
        **{
            field: [label[field][old] for old in found_at] if label.get(field) else [] for field in ("ratings", "flags")
        },
    }
