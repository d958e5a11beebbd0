"""Writes the miniature's dataset files, in the formats that every dataset of Trimtab has (JSON lines).

Row `i` of a file depends on the seed, the file's name and `i` alone: a larger file starts with the smaller one, and
files can be made in any order. Prompts of a set are all different; held-out ones share no story with training
(`world.is_held_out`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimtab_trainer.miniature.demonstrations import FLAWED_SHARE, demonstrate
from trimtab_trainer.miniature.prose import make_document
from trimtab_trainer.miniature.world import Prompt, make_prompt


@dataclass(frozen=True)
class Sizes:
    """Rows of each file; the defaults are what `quickstart --model tiny` uses.

    Attributes:
        pretrain: documents of `pretrain.jsonl`, about 30 tokens each (EOS not counted).
            One document is one training row (or a block of its own in a packed row): rows that cut through documents
            ask about stories that are not there; `words` stood at .67 in place of .94 after as many tokens.
        pretrain_held_out: documents of `pretrain_held_out.jsonl`.
        demonstrations: rows of `demonstrations.jsonl`.
        prompts: rows of `prompts.jsonl`, for rankings and PPO; other prompts than the demonstrations'.
        prompts_held_out: rows of `prompts_held_out.jsonl`, for every evaluation.
    """

    pretrain: int = 50_000
    pretrain_held_out: int = 500
    demonstrations: int = 400
    prompts: int = 10_000
    prompts_held_out: int = 500


def documents(count: int, *, seed: int, held_out: bool) -> Iterator[dict[str, Any]]:
    """Pretraining rows `{"text"}`."""
    name = "pretrain_held_out" if held_out else "pretrain"
    for index in range(count):
        yield {"text": make_document(random.Random(f"{seed}/{name}/{index}"), held_out=held_out)}


def demonstration_rows(count: int, *, seed: int, flawed_share: float = FLAWED_SHARE) -> Iterator[dict[str, Any]]:
    """Demonstration rows `{"prompt", "completion", "category", "labeler"}` on training stories."""
    for index, prompt in enumerate(_different_prompts(count, f"{seed}/demonstrations", held_out=False)):
        rng = random.Random(f"{seed}/demonstrations/answer/{index}")
        completion, _ = demonstrate(rng, prompt, flawed_share=flawed_share)
        yield {
            "prompt": prompt.render(),
            "completion": completion,
            "category": prompt.kind.value,
            "labeler": "simulated-demonstrator",
        }


def prompt_rows(
    count: int, *, seed: int, held_out: bool, without: frozenset[str] = frozenset()
) -> Iterator[dict[str, Any]]:
    """Prompt rows `{"prompt", "category"}`.

    Args:
        count: how many.
        seed: seed of the world's draw.
        held_out: which of the two disjoint sets.
        without: texts to leave out, such as the prompts of the demonstrations.
    """
    name = "prompts_held_out" if held_out else "prompts"
    for prompt in _different_prompts(count, f"{seed}/{name}", held_out=held_out, without=without):
        yield {"prompt": prompt.render(), "category": prompt.kind.value}


def write_datasets(folder: str | Path, *, seed: int, sizes: Sizes | None = None) -> dict[str, Path]:
    """Writes the five files into `folder` (made if absent) and `miniature.json`, which states seed and sizes.

    Returns:
        The path of each file by its name without the suffix.
    """
    sizes = sizes or Sizes()
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    demonstrations = list(demonstration_rows(sizes.demonstrations, seed=seed))
    shown = frozenset(row["prompt"] for row in demonstrations)
    rows: dict[str, Iterable[dict[str, Any]]] = {
        "pretrain": documents(sizes.pretrain, seed=seed, held_out=False),
        "pretrain_held_out": documents(sizes.pretrain_held_out, seed=seed, held_out=True),
        "demonstrations": demonstrations,
        "prompts": prompt_rows(sizes.prompts, seed=seed, held_out=False, without=shown),
        "prompts_held_out": prompt_rows(sizes.prompts_held_out, seed=seed, held_out=True),
    }
    paths = {name: target / f"{name}.jsonl" for name in rows}
    for name, path in paths.items():
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows[name])
    stated = {"seed": seed, "flawed_share": FLAWED_SHARE, "sizes": asdict(sizes), "simulated": True}
    (target / "miniature.json").write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
    return paths


def _different_prompts(
    count: int, name: str, *, held_out: bool, without: frozenset[str] = frozenset()
) -> Iterator[Prompt]:
    """`count` different prompts, drawn one by one from the seed `name`."""
    seen = set(without)
    drawn = 0
    while count:
        prompt = make_prompt(random.Random(f"{name}/{drawn}"), held_out=held_out)
        drawn += 1
        text = prompt.render()
        if text not in seen:
            seen.add(text)
            count -= 1
            yield prompt
