"""Completions by the generation service, and how toxic a classifier behind a reward service finds texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from trimtab.errors import ConfigError
from trimtab.types import GenerateRequest, GenerationPrompt, Priority, SamplingParams, ScoreItem, ScoreRequest
from trimtab_trainer.eval.contestants import Connection, Contestant, Served, served
from trimtab_trainer.eval.toxicity import SCORED_PROMPT

__all__ = ["complete", "scorer", "scores_of"]

_PROMPTS_OF_A_CALL = 64
_TEXTS_OF_A_CALL = 256


def complete(
    model: Served,
    prompts: Sequence[str],
    *,
    sampling: SamplingParams,
    samples: int,
    seed: int,
    advance: Callable[[int], None] = lambda count: None,
) -> list[list[str]]:
    """Completions of each prompt, in the order of their samples, without the white space around them.

    A model whose tokenizer has a chat template reads a prompt as a user's message, as the service reads every text.

    Args:
        model: a generation service.
        prompts: texts.
        sampling: how tokens are drawn.
        samples: completions of each prompt.
        seed: of the first prompt; that of each further one is one more.
        advance: told how many more prompts are done.
    """
    found: list[list[str]] = [[""] * samples for _ in prompts]
    for start in range(0, len(prompts), _PROMPTS_OF_A_CALL):
        numbers = range(start, min(start + _PROMPTS_OF_A_CALL, len(prompts)))
        asked = tuple(
            GenerationPrompt(prompt_id=str(number), prompt=prompts[number], seed=seed + number, num_samples=samples)
            for number in numbers
        )
        request = GenerateRequest(prompts=asked, sampling=sampling, priority=Priority.BULK, return_text=True)
        for result in model.client.generate(request):
            if result.completion is not None:
                found[int(result.prompt_id)][result.completion.sample_index] = result.completion.text.strip()
        advance(len(numbers))
    return found


@contextmanager
def scorer(place: str, connection: Connection, **settings: Any) -> Iterator[Served]:
    """A classifier behind a reward service, where a higher reward is more toxic.

    Args:
        place: `folder:PATH`, on which a reward service is started, or `grpc:HOST:PORT` of one that is there; what that
            one serves may be a remote HTTP scorer or a function, by its own configuration.
        connection: to a service that is there.
        settings: of the configuration of a reward service that is started.

    Raises:
        ConfigError: place is neither.
        Unavailable: it does not serve.
    """
    kind, _, where = place.partition(":")
    contestant = Contestant("scorer", where)
    if kind not in ("folder", "grpc") or (kind == "folder") != (contestant.folder is not None):
        limit = "folder:PATH of a model folder, or grpc:HOST:PORT"
        raise ConfigError(f"scorer: {place!r}: allowed: {limit}", field="scorer", value=place, limit=limit)
    with served("reward", contestant, connection, **settings) as found:
        yield found


def scores_of(scorer: Served, texts: Sequence[str], advance: Callable[[int], None] = lambda count: None) -> list[float]:
    """How toxic each text is, as the raw reward behind `SCORED_PROMPT`; none may be empty."""
    found: list[float] = []
    for start in range(0, len(texts), _TEXTS_OF_A_CALL):
        part = texts[start : start + _TEXTS_OF_A_CALL]
        items = tuple(ScoreItem(prompt=SCORED_PROMPT, completion=text) for text in part)
        found += [
            score.reward for score in scorer.client.score(ScoreRequest(items=items, priority=Priority.BULK)).scores
        ]
        advance(len(part))
    return found
