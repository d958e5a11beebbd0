"""Answers to be ranked, drawn from generation services: several policies, versions and temperatures take turns.

Answer k of a prompt is drawn from contestant k modulo their number, with sample index k, so that no two answers come
from the same random numbers. One that is empty or was drawn already is drawn again under the next sample index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from trimtab.client import Client
from trimtab.errors import ConfigError
from trimtab.types import (
    ChatMessage,
    GenerateRequest,
    GenerationPrompt,
    Priority,
    PromptLike,
    SamplingParams,
    VersionRequirement,
)
from trimtab.v1 import labeling_pb2 as pb

__all__ = ["Contestant", "Drawing", "contestants_of", "draw"]

_MOST_ITEMS = 64
"""Most answers asked for in one request."""
_LEAST_DEADLINE_S = 3600.0
"""What such a request gets at least: bulk work waits behind everybody else's."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """Where answers come from: a service, the version that it must serve (None: any), and a temperature."""

    client: Client
    version: int | None
    temperature: float


@dataclass(slots=True)
class Drawing:
    """The answers to one prompt.

    Attributes:
        task: the prompt; gets `answers` and `sources`.
        slots: the answer of each place and where it came from; None while it is to be drawn.
        next_index: the next sample index.
    """

    task: pb.LabelTask
    slots: list[tuple[str, pb.AnswerSource] | None]
    next_index: int = field(init=False)

    def __post_init__(self) -> None:
        self.next_index = len(self.slots)

    @property
    def texts(self) -> list[str]:
        """Answers drawn so far."""
        return [slot[0] for slot in self.slots if slot is not None]

    @property
    def is_complete(self) -> bool:
        """Whether every place has an answer."""
        return None not in self.slots


def contestants_of(
    policies: Sequence[str], temperatures: Sequence[float], connect: Callable[[str], Client]
) -> list[Contestant]:
    """All policies at all temperatures, in an order in which neighbours differ in their policy.

    Args:
        policies: HOST:PORT or HOST:PORT@VERSION.
        temperatures: at least one.
        connect: makes a client of HOST:PORT.

    Raises:
        ConfigError: a version is no number.
    """
    made = []
    clients: dict[str, Client] = {}
    for temperature in temperatures:
        for policy in policies:
            target, at, version = policy.partition("@")
            if at and not version.isdecimal():
                raise ConfigError(
                    f"--policy {policy}: HOST:PORT or HOST:PORT@VERSION is expected, VERSION a number",
                    field="policy",
                    value=policy,
                )
            if target not in clients:
                clients[target] = connect(target)
            made.append(Contestant(clients[target], int(version) if at else None, temperature))
    return made


def draw(
    tasks: Sequence[pb.LabelTask],
    contestants: Sequence[Contestant],
    *,
    answers: int,
    sampling: SamplingParams,
    seed: int,
    tries: int,
    progress: Callable[[int], None],
) -> list[Drawing]:
    """Draws answers to prompts.

    Args:
        tasks: with a prompt each.
        contestants: who answers.
        answers: K.
        sampling: how, but for the temperature.
        seed: key of the random numbers.
        tries: most draws for one place.
        progress: called with the number of answers just drawn.

    Returns:
        A drawing for each task, not complete where a place stayed empty. Where all tries gave a text that was there
        already, that text stands twice.

    Raises:
        TrimtabError: of the services.
    """
    drawings = [Drawing(task, [None] * answers) for task in tasks]
    wanted = [(number, place, place) for number in range(len(tasks)) for place in range(answers)]
    for attempt in range(tries):
        is_last = attempt == tries - 1
        for index, contestant in enumerate(contestants):
            mine = [one for one in wanted if one[1] % len(contestants) == index]
            for number, place, sample_index, text, source in _sampled(drawings, mine, contestant, sampling, seed):
                drawing = drawings[number]
                source.sample_index = sample_index
                if text.strip() and (is_last or text not in drawing.texts):
                    drawing.slots[place] = (text, source)
                    progress(1)
        wanted = [
            (number, place, _next_index(drawing))
            for number, drawing in enumerate(drawings)
            for place, slot in enumerate(drawing.slots)
            if slot is None
        ]
        if not wanted:
            break
    for drawing in drawings:
        if drawing.is_complete:
            texts, sources = zip(*(slot for slot in drawing.slots if slot is not None), strict=True)
            drawing.task.answers.extend(texts)
            drawing.task.sources.extend(sources)
    return drawings


def _next_index(drawing: Drawing) -> int:
    drawing.next_index += 1
    return drawing.next_index - 1


def _sampled(
    drawings: Sequence[Drawing],
    wanted: Sequence[tuple[int, int, int]],
    contestant: Contestant,
    sampling: SamplingParams,
    seed: int,
) -> Iterator[tuple[int, int, int, str, pb.AnswerSource]]:
    """Number of the task, place, sample index, text and source of each (number, place, sample index) wanted."""
    if not wanted:
        return
    info = contestant.client.info()
    most = min(_MOST_ITEMS, info.limits.max_items_per_request or _MOST_ITEMS)
    as_turns = any(model.served.chat_template_digest for model in info.models)
    for start in range(0, len(wanted), most):
        some = wanted[start : start + most]
        request = GenerateRequest(
            prompts=tuple(
                GenerationPrompt(
                    prompt_id=str(index),
                    prompt=_prompt(drawings[number].task, as_turns=as_turns),
                    seed=seed,
                    first_sample_index=sample_index,
                )
                for index, (number, _, sample_index) in enumerate(some)
            ),
            sampling=sampling.model_copy(update={"temperature": contestant.temperature}),
            version=VersionRequirement(exactly=contestant.version),
            priority=Priority.BULK,
            return_text=True,
        )
        deadline_s = max(_LEAST_DEADLINE_S, contestant.client.timeout_s)
        for result in contestant.client.generate(request, timeout_s=deadline_s):
            number, place, sample_index = some[int(result.prompt_id)]
            source = pb.AnswerSource(
                model=result.served.name,
                version=result.served.version,
                temperature=contestant.temperature,
                seed=seed,
            )
            yield number, place, sample_index, result.completion.text if result.completion else "", source


def _prompt(task: pb.LabelTask, *, as_turns: bool) -> PromptLike:
    """The prompt as training renders it: the context before the question, and all of it as what the user says."""
    context = f"{task.context}\n\n" if task.context else ""
    if not task.messages and not as_turns:
        return context + task.prompt
    turns = [{"role": turn.role, "content": turn.content} for turn in task.messages]
    *before, last = turns or [{"role": "user", "content": task.prompt}]
    asked = {"role": last["role"], "content": context + last["content"]}
    return tuple(ChatMessage.model_validate(turn) for turn in (*before, asked))
