"""What is in a dataset file: counts, lengths, doubles; for `trimtab data check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trimtab_trainer.data.readers import read_demonstrations, read_pretraining, read_prompts, read_rankings
from trimtab_trainer.data.records import Demonstration, Passage, PromptRow, Ranking, prompt_key

__all__ = ["describe_dataset"]

Row = Demonstration | Ranking | PromptRow | Passage

_READERS: dict[str, Callable[..., Sequence[Row]]] = {
    "demonstrations": read_demonstrations,
    "rankings": read_rankings,
    "prompts": read_prompts,
    "pretraining": read_pretraining,
}


def describe_dataset(
    kind: str, path: Path, *, skip_bad_rows: int = 0, warn: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Reads a whole file and counts.

    Args:
        kind: demonstrations, rankings, prompts or pretraining.
        path: the file.
        skip_bad_rows: bad rows tolerated.
        warn: takes one sentence for each of them.

    Returns:
        `rows`, `bad_rows`, `different_prompts`, `longest_characters`, `median_characters`; for rankings also
        `answers_per_prompt`, `labelings`, `decided_pairs`, `tied_pairs`, `groups`.

    Raises:
        ConfigError, DataError: as the readers.
    """
    bad: list[str] = []

    def tell(text: str) -> None:
        bad.append(text)
        warn(text)

    rows = _READERS[kind](path, skip_bad_rows=skip_bad_rows, warn=tell)
    lengths = sorted(_characters(row) for row in rows)
    found: dict[str, Any] = {
        "rows": len(rows),
        "bad_rows": len(bad),
        "different_prompts": len({_key(row) for row in rows}),
        "median_characters": lengths[len(lengths) // 2],
        "longest_characters": lengths[-1],
    }
    rankings = [row for row in rows if isinstance(row, Ranking)]
    if rankings:
        found |= _describe_rankings(rankings)
    return found


def _describe_rankings(rankings: Sequence[Ranking]) -> dict[str, Any]:
    decided = tied = 0
    for ranking in rankings:
        for labeling in ranking.labelings:
            count = len(labeling.ranks)
            ties = sum(n * (n - 1) // 2 for n in Counter(labeling.ranks).values())
            tied += ties
            decided += count * (count - 1) // 2 - ties
    groups = Counter(labeling.group or "none" for ranking in rankings for labeling in ranking.labelings)
    return {
        "answers_per_prompt": dict(sorted(Counter(len(ranking.answers) for ranking in rankings).items())),
        "labelings": sum(len(ranking.labelings) for ranking in rankings),
        "decided_pairs": decided,
        "tied_pairs": tied,
        "groups": dict(groups),
    }


def _key(row: Row) -> str:
    return prompt_key(row.text) if isinstance(row, Passage) else prompt_key(row.prompt)


def _characters(row: Row) -> int:
    if isinstance(row, Passage):
        return len(row.text)
    prompt = row.prompt if isinstance(row.prompt, str) else "".join(message.content for message in row.prompt)
    answer = row.completion if isinstance(row, Demonstration) else ""
    longest = max(map(len, row.answers)) if isinstance(row, Ranking) else 0
    return len(prompt) + len(answer) + longest
