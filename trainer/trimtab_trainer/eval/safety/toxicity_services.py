"""Completions by the generation service, and how toxic a classifier behind a reward service finds texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from trimtab.errors import ConfigError
from trimtab.types import GenerateRequest, GenerationPrompt, Priority, SamplingParams, ScoreItem, ScoreRequest
from trimtab_trainer.eval.contestants import Connection, Contestant, Served, served
from trimtab_trainer.eval.safety.toxicity import SCORED_PROMPT

__all__ = ["complete", "scorer", "scores_of"]

_PROMPTS_OF_A_CALL = 64
_TEXTS_OF_A_CALL = 256

Item = TypeVar("Item")


def complete(
    model: Served, prompts: Sequence[str], *, sampling: SamplingParams, samples: int, seed: int
) -> list[list[str]]:
    """Completions of each prompt, in the order of their samples, without the white space around them.

    A model whose tokenizer has a chat template reads a prompt as a user's message, as the service reads every text.

    Args:
        model: a generation service; no call asks it for more completions than it takes at once.
        prompts: texts.
        sampling: how tokens are drawn.
        samples: completions of each prompt.
        seed: of the first prompt; that of each further one is one more.
    """
    found: list[list[str]] = [[""] * samples for _ in prompts]
    most = model.info.limits.max_items_per_request or _PROMPTS_OF_A_CALL * samples
    of_part = min(samples, most)
    parts = [(number, first) for number in range(len(prompts)) for first in range(0, samples, of_part)]
    # where a call takes several parts, each is all of its prompt: ids are unique in it
    for some in _sliced(parts, min(_PROMPTS_OF_A_CALL, most // of_part)):
        asked = tuple(
            GenerationPrompt(
                prompt_id=str(number),
                prompt=prompts[number],
                seed=seed + number,
                num_samples=min(of_part, samples - first),
                first_sample_index=first,
            )
            for number, first in some
        )
        request = GenerateRequest(prompts=asked, sampling=sampling, priority=Priority.BULK, return_text=True)
        for result in model.client.generate(request):
            if result.completion is not None:
                found[int(result.prompt_id)][result.completion.sample_index] = result.completion.text.strip()
    return found


@contextmanager
def scorer(place: str, connection: Connection) -> Iterator[Served]:
    """A classifier behind a reward service, where a higher reward is more toxic.

    Args:
        place: `folder:PATH`, on which a reward service is started, or `grpc:HOST:PORT` of one that is there; what that
            one serves may be a remote HTTP scorer or a function, by its own configuration.
        connection: to a service that is there.

    Raises:
        ConfigError: place is neither.
        Unavailable: it does not serve.
    """
    kind, _, where = place.partition(":")
    contestant = Contestant("scorer", where)
    if kind not in ("folder", "grpc") or (kind == "folder") != (contestant.folder is not None):
        limit = "folder:PATH of a model folder, or grpc:HOST:PORT"
        raise ConfigError(f"scorer: {place!r}: allowed: {limit}", field="scorer", value=place, limit=limit)
    with served("reward", contestant, connection) as found:
        yield found


def scores_of(scorer: Served, texts: Sequence[str]) -> list[float]:
    """How toxic each text is, as the raw reward behind `SCORED_PROMPT`; none may be empty."""
    most = min(scorer.info.limits.max_items_per_request or _TEXTS_OF_A_CALL, _TEXTS_OF_A_CALL)
    found: list[float] = []
    for part in _sliced(texts, most):
        items = tuple(ScoreItem(prompt=SCORED_PROMPT, completion=text) for text in part)
        scores = scorer.client.score(ScoreRequest(items=items, priority=Priority.BULK)).scores
        found += [score.reward for score in scores]
    return found


def _sliced(items: Sequence[Item], most: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + most] for start in range(0, len(items), most))
