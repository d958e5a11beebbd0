"""Answers to be ranked, drawn from generation services: several policies, versions and temperatures take turns.

Answer k of a prompt is drawn from contestant k modulo their number, with sample index k, so that no two answers come
from the same random numbers. One that is empty, that has the character U+0000, which the labeling service cannot keep,
or that another place has already is drawn again, K sample indices on.
What is drawn depends on the places alone, never on who answers first: a drawing that was interrupted and goes on ends
as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from google.protobuf import json_format

from trimtab.cli.labeling_draw_journal import Drawn, Journal, Place
from trimtab.cli.labeling_few_shot import FewShot
from trimtab.client import Client
from trimtab.errors import ConfigError
from trimtab.types import (
    ChatMessage,
    GenerateRequest,
    GenerationPrompt,
    Priority,
    PromptLike,
    SamplingParams,
    ServiceInfo,
    VersionRequirement,
)
from trimtab.v1 import labeling_pb2 as pb

__all__ = ["Contestant", "Drawing", "contestants_of", "draw"]

_MOST_ITEMS = 64
"""Most answers asked for in one request."""
_LEAST_DEADLINE_S = 3600.0
"""What such a request gets at least: bulk work waits behind everybody else's."""
_MOST_NAME = 200
"""Characters of a source's model, as the labeling service takes them."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """Where answers come from.

    Attributes:
        client: of the generation service.
        info: what it said of itself.
        version: that it must serve; None: any.
        temperature: of the sampling.
        few_shot: stands around each prompt; None: nothing does.
    """

    client: Client
    info: ServiceInfo
    version: int | None
    temperature: float
    few_shot: FewShot | None = None

    @property
    def model(self) -> str:
        """Name of the model, and of the prefix where there is one."""
        return self.named(self.info.models[0].served.name if self.info.models else "")

    def named(self, model: str) -> str:
        """The name that a source gives this contestant's answers of a model."""
        return model if self.few_shot is None else f"{model}+{self.few_shot.name}"


@dataclass(slots=True)
class Drawing:
    """The answers to one prompt.

    Attributes:
        task: the prompt; gets `answers` and `sources`.
        slots: the answer of each place; None while it is to be drawn.
    """

    task: pb.LabelTask
    slots: list[Drawn | None]

    @property
    def texts(self) -> list[str]:
        """Answers so far."""
        return [slot.text for slot in self.slots if slot is not None]

    @property
    def is_complete(self) -> bool:
        """Whether every place has an answer."""
        return None not in self.slots


def contestants_of(
    policies: Sequence[tuple[str, FewShot | None]], temperatures: Sequence[float], connect: Callable[[str], Client]
) -> list[Contestant]:
    """All policies at all temperatures, in an order in which neighbours differ in their policy.

    Args:
        policies: HOST:PORT or HOST:PORT@VERSION, each with the prefix of a few-shot baseline or None.
        temperatures: at least one.
        connect: makes a client of HOST:PORT.

    Raises:
        ConfigError: a version is no number, or a contestant's name is too long to be a source's.
        TrimtabError: of the services, which are asked what they are.
    """
    parts = [(policy, *_target_of(policy), few_shot) for policy, few_shot in policies]
    clients = {target: connect(target) for target in dict.fromkeys(target for _, target, _, _ in parts)}
    infos = {target: client.info() for target, client in clients.items()}
    made = []
    for temperature in temperatures:
        for policy, target, version, few_shot in parts:
            contestant = Contestant(clients[target], infos[target], version, temperature, few_shot)
            if len(contestant.model) > _MOST_NAME:
                raise ConfigError(
                    f"--policy {policy}: its name {contestant.model} has {len(contestant.model)} characters; allowed: "
                    f"{_MOST_NAME}",
                    field="policy",
                    value=len(contestant.model),
                    limit=_MOST_NAME,
                )
            made.append(contestant)
    return made


def _target_of(policy: str) -> tuple[str, int | None]:
    target, at, version = policy.partition("@")
    if at and not version.isdecimal():
        raise ConfigError(
            f"--policy {policy}: HOST:PORT or HOST:PORT@VERSION is expected, VERSION a number",
            field="policy",
            value=policy,
        )
    return target, int(version) if at else None


def draw(
    tasks: Sequence[pb.LabelTask],
    contestants: Sequence[Contestant],
    journal: Journal,
    *,
    answers: int,
    sampling: SamplingParams,
    seed: int,
    tries: int,
    progress: Callable[[int], None],
) -> list[Drawing]:
    """Draws the answers to prompts that are not in the journal yet.

    Args:
        tasks: with a prompt each.
        contestants: who answers.
        journal: gets every answer as it comes.
        answers: K.
        sampling: how, but for the temperature.
        seed: key of the random numbers.
        tries: most draws for one place.
        progress: called with the number of places that have just been drawn for the first time.

    Returns:
        A drawing for each task, not complete where a place got no usable answer. Where all tries gave a text that was
        there already, that text stands twice.

    Raises:
        TrimtabError: of the services. What was drawn before it is in the journal.
    """
    drawings = [Drawing(task, [None] * answers) for task in tasks]
    for attempt in range(tries):
        wanted = [
            (number, place, attempt)
            for number, drawing in enumerate(drawings)
            for place, slot in enumerate(drawing.slots)
            if slot is None
        ]
        if attempt == 0:
            progress(sum(one in journal.drawn for one in wanted))
        for index, contestant in enumerate(contestants):
            mine = [one for one in wanted if one[1] % len(contestants) == index and one not in journal.drawn]
            for sampled, completion in _sampled(tasks, mine, contestant, answers, sampling, seed):
                journal.add(sampled, completion)
                progress(1 if attempt == 0 else 0)
        for number, place, _ in wanted:
            drawn = journal.drawn.get((number, place, attempt))
            if drawn and _is_usable(drawn.text) and (attempt == tries - 1 or drawn.text not in drawings[number].texts):
                drawings[number].slots[place] = drawn
    for drawing in drawings:
        if drawing.is_complete:
            for slot in filter(None, drawing.slots):
                drawing.task.answers.append(slot.text)
                json_format.ParseDict(dict(slot.source), drawing.task.sources.add())
    return drawings


def _is_usable(text: str) -> bool:
    return bool(text.strip()) and "\0" not in text


def _sampled(
    tasks: Sequence[pb.LabelTask],
    wanted: Sequence[Place],
    contestant: Contestant,
    answers: int,
    sampling: SamplingParams,
    seed: int,
) -> Iterator[tuple[Place, Drawn]]:
    """A completion of one contestant for each place, in whichever order they come."""
    info, few_shot = contestant.info, contestant.few_shot
    most = min(_MOST_ITEMS, info.limits.max_items_per_request or _MOST_ITEMS)
    as_turns = any(model.served.chat_template_digest for model in info.models)
    changes = {"temperature": contestant.temperature, "stop_strings": few_shot.stops if few_shot else ()}
    for start in range(0, len(wanted), most):
        some = wanted[start : start + most]
        request = GenerateRequest(
            prompts=tuple(
                GenerationPrompt(
                    prompt_id=str(index),
                    prompt=_prompt(tasks[number], few_shot, as_turns=as_turns),
                    seed=seed,
                    first_sample_index=place + attempt * answers,
                )
                for index, (number, place, attempt) in enumerate(some)
            ),
            sampling=sampling.model_copy(update=changes),
            version=VersionRequirement(exactly=contestant.version),
            priority=Priority.BULK,
            return_text=True,
        )
        deadline_s = max(_LEAST_DEADLINE_S, contestant.client.timeout_s)
        for result in contestant.client.generate(request, timeout_s=deadline_s):
            wanted_place = some[int(result.prompt_id)]
            text = result.completion.text if result.completion else ""
            source = pb.AnswerSource(
                model=contestant.named(result.served.name),
                version=result.served.version,
                temperature=contestant.temperature,
                seed=seed,
                sample_index=wanted_place[1] + wanted_place[2] * answers,
            )
            as_json = json_format.MessageToDict(source, preserving_proto_field_name=True)
            yield wanted_place, Drawn(few_shot.cut(text) if few_shot else text, as_json)


def _prompt(task: pb.LabelTask, few_shot: FewShot | None, *, as_turns: bool) -> PromptLike:
    """The prompt as training renders it: the context before the question, and all of it as what the user says.

    With a few-shot prefix it is a text that the model goes on with, without a template.
    """
    context = f"{task.context}\n\n" if task.context else ""
    if few_shot is not None:
        return few_shot.around(context + (task.messages[0].content if task.messages else task.prompt))
    if not task.messages and not as_turns:
        return context + task.prompt
    turns = [{"role": turn.role, "content": turn.content} for turn in task.messages]
    *before, last = turns or [{"role": "user", "content": task.prompt}]
    asked = {"role": last["role"], "content": context + last["content"]}
    return tuple(ChatMessage.model_validate(turn) for turn in (*before, asked))
