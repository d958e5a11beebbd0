"""Completions by the generation service, and how toxic a classifier behind a reward service finds texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TypeVar

from trimtab.errors import ConfigError, DataError
from trimtab.types import GenerateRequest, GenerationPrompt, Priority, SamplingParams, ScoreItem, ScoreRequest
from trimtab_trainer.eval.contestants import Contestant, Served, check_model_folder
from trimtab_trainer.eval.continuations import context_tokens
from trimtab_trainer.eval.safety.instructions import instructed
from trimtab_trainer.eval.safety.toxicity import SCORED_PROMPT, ToxicityPrompt

__all__ = ["check_prompts", "complete", "parse_scorer", "scores_of"]

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


def check_prompts(
    contestants: Iterable[Contestant], file: Path, rows: Sequence[ToxicityPrompt], asked: Sequence[str], new_tokens: int
) -> None:
    """Refuses prompts that leave a model of a folder no room for a completion, before any is loaded.

    Args:
        contestants: those without a folder are passed over: their tokenizer is not at hand.
        file: of the rows.
        rows: prompts.
        asked: instructions that they come under.
        new_tokens: most tokens of a completion.

    Raises:
        DataError: names the row.
        ModelFolderError: as `context_tokens`.
    """
    from trimtab_models.tokenizer import encode_prompt, load_tokenizer

    for contestant in contestants:
        if (folder := contestant.folder) is None:
            continue
        tokenizer = load_tokenizer(folder)
        most = context_tokens(folder, tokenizer)
        for row, instruction in product(rows, asked):
            tokens = len(encode_prompt(tokenizer, instructed(instruction, row.prompt)))
            if tokens + new_tokens > most:
                raise DataError(
                    f"{file}:{row.number}: prompt.text: {tokens} tokens under instruction {instruction} and "
                    f"{new_tokens} new ones (--max-new-tokens); {contestant.name} takes {most}",
                    field="prompt.text",
                    value=tokens + new_tokens,
                    limit=most,
                )


def parse_scorer(place: str) -> Contestant:
    """A classifier behind a reward service, where a higher reward is more toxic.

    Args:
        place: `folder:PATH`, on which a reward service is to be started, or `grpc:HOST:PORT` of one that is there; what
            that one serves may be a remote HTTP scorer or a function, by its own configuration.

    Raises:
        ConfigError: place is neither, or the folder has another kind of model.
    """
    kind, _, where = place.partition(":")
    contestant = Contestant("scorer", where)
    folder = contestant.folder
    if kind not in ("folder", "grpc") or (kind == "folder") != (folder is not None):
        limit = "folder:PATH of a model folder, or grpc:HOST:PORT"
        raise ConfigError(f"scorer: {place!r}: allowed: {limit}", field="scorer", value=place, limit=limit)
    if folder is not None:
        check_model_folder("scorer", folder)
        _check_classifier(folder)
    return contestant


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


def _check_classifier(folder: Path) -> None:
    try:
        architectures = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
        is_one = any(name.endswith("ForSequenceClassification") for name in architectures)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        architectures, is_one = None, False
    if not is_one:
        raise ConfigError(
            f"scorer: {folder}: architectures of config.json is {architectures}, which is no sequence classifier",
            field="scorer",
            value=architectures,
            limit="*ForSequenceClassification",
        )
