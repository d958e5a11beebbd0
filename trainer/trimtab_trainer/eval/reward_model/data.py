"""Rankings that a reward model is judged by, each with the place that it was read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trimtab.errors import DataError
from trimtab_trainer.data import Ranking
from trimtab_trainer.data.readers import stream_rows
from trimtab_trainer.data.splits import split_by_prompt

__all__ = ["Item", "RankingFormat", "held_out_items", "llmbar_ranking", "read_items"]

RankingFormat = Literal["trimtab", "llmbar"]


@dataclass(frozen=True)
class Item:
    """A ranking and its line of its file, from 1."""

    path: Path
    line: int
    ranking: Ranking

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def llmbar_ranking(row: Mapping[str, Any]) -> Ranking:
    """A pair of LLMBar (Zeng et al. 2023, arXiv 2310.07641): `input`, `output_1`, `output_2`, and `label`, the better.

    Its source is "princeton-nlp/LLMBar", with the row's `subset` below it.

    Raises:
        DataError: names the field and what is wrong with it.
    """
    for key in ("input", "output_1", "output_2"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise DataError(f"{key} must be a text that is not empty", field=key, value=row.get(key))
    label = row.get("label")
    if isinstance(label, bool) or label not in (1, 2):
        raise DataError("label must be 1 or 2, the better output", field="label", value=label, limit="1 or 2")
    return Ranking.from_row(
        {
            "prompt": row["input"],
            "answers": [row["output_1"], row["output_2"]],
            "ranks": [1, 2] if label == 1 else [2, 1],
            "source": "princeton-nlp/LLMBar",
            "subset": row.get("subset"),
        }
    )


_FORMATS: Mapping[RankingFormat, Callable[[Mapping[str, Any]], Ranking]] = {
    "trimtab": Ranking.from_row,
    "llmbar": llmbar_ranking,
}
"""How a row of each format is read; `trimtab` is every form that the trainer reads, comparisons too."""


def read_items(
    paths: Sequence[Path], kind: RankingFormat, *, skip_bad_rows: int, warn: Callable[[str], None]
) -> list[Item]:
    """The rankings of some files, in their order.

    Args:
        paths: as the trainer reads them.
        kind: of their rows.
        skip_bad_rows: bad rows tolerated in each file.
        warn: takes one sentence for each of them.

    Raises:
        ConfigError: no such file.
        DataError: a bad row more than tolerated, with file, line and field.
    """
    return [
        Item(path, line, ranking)
        for path in paths
        for line, ranking in stream_rows(path, _FORMATS[kind], skip_bad_rows=skip_bad_rows, warn=warn)
    ]


def held_out_items(items: Sequence[Item], share: float, *, seed: int) -> list[Item]:
    """Those whose prompts a run held out: that of `reward_model.held_out_fraction` and the run's seed.

    Raises:
        DataError: there is none.
    """
    _, held_out = split_by_prompt([item.ranking for item in items], share, seed=seed)
    kept = set(map(id, held_out))
    found = [item for item in items if id(item.ranking) in kept]
    if not found:
        raise DataError(
            f"held-out-fraction: {share:g} holds out none of {len(items)} rankings",
            field="held-out-fraction",
            value=share,
        )
    return found
