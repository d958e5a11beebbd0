"""What is in a dataset file: counts, lengths, doubles, and prompts that two files share; for `trimtab data check`."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab_trainer.data.readers import read_demonstrations, read_pretraining, read_prompts, read_rankings
from trimtab_trainer.data.records import Demonstration, Passage, PromptRow, Ranking, prompt_key

__all__ = ["READERS", "Leaks", "Row", "describe_dataset", "find_leaks"]

_MARK = re.compile(r"(?<!\d)[\W_]|[\W_](?!\d)")
"""Neither letter nor digit, nor between two digits, where it makes another number or sum: 1.5, 2-2, 2+2."""

Row = Demonstration | Ranking | PromptRow | Passage

READERS: dict[str, Callable[..., Sequence[Row]]] = {
    "demonstrations": read_demonstrations,
    "rankings": read_rankings,
    "prompts": read_prompts,
    "pretraining": read_pretraining,
}
"""What reads each kind of dataset."""


def describe_dataset(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts what is in the rows of one file, of which there is at least one.

    Returns:
        `rows`, `repeated_rows` (equal to an earlier one), `different_prompts`, `longest_characters`,
        `median_characters`, and `categories` where rows have one; for rankings also `answers_per_prompt`, `labelings`,
        `decided_pairs`, `tied_pairs`, `wholly_tied_labelings`, `equal_answers` (rankings with an answer twice),
        `equal_answers_ranked_apart` (labelings that contradict themselves), `groups`.
    """
    lengths = sorted(_characters(row) for row in rows)
    found: dict[str, Any] = {
        "rows": len(rows),
        "repeated_rows": len(rows) - len(set(rows)),
        "different_prompts": len({prompt_key(row.prompt) for row in rows}),
        "median_characters": lengths[len(lengths) // 2],
        "longest_characters": lengths[-1],
    }
    categories = Counter(row.category for row in rows if not isinstance(row, Passage) and row.category)
    if categories:
        found["categories"] = dict(categories.most_common())
    rankings = [row for row in rows if isinstance(row, Ranking)]
    if rankings:
        found |= _describe_rankings(rankings)
    return found


@dataclass(frozen=True)
class Leaks:
    """Prompts of one file that are in another as well; training on either makes the other no test.

    Attributes:
        prompts: different prompts that both files have, letter by letter.
        similar_prompts: likewise when only letters, digits and a sign between two digits count and case does not; at
            least `prompts`, but for those that have neither letter nor digit.
        rows: rows of the first file with such a prompt, of either sort.
        other_rows: likewise of the second.
    """

    prompts: int
    similar_prompts: int
    rows: int
    other_rows: int


def find_leaks(rows: Iterable[Row], other: Iterable[Row]) -> Leaks:
    """Compares the prompts of two files, of any kinds; a passage's text is its prompt."""
    ours, theirs = ([(prompt_key(row.prompt), _similarity(row)) for row in side] for side in (rows, other))
    exact = {key for key, _ in ours} & {key for key, _ in theirs}
    similar = ({text for _, text in ours} & {text for _, text in theirs}) - {""}

    def leaking(side: list[tuple[str, str]]) -> int:
        return sum(key in exact or text in similar for key, text in side)

    return Leaks(prompts=len(exact), similar_prompts=len(similar), rows=leaking(ours), other_rows=leaking(theirs))


def _describe_rankings(rankings: Sequence[Ranking]) -> dict[str, Any]:
    decided = tied = wholly_tied = ranked_apart = 0
    for ranking in rankings:
        for labeling in ranking.labelings:
            count = len(labeling.ranks)
            wholly_tied += len(set(labeling.ranks)) == 1
            ranked_apart += len(set(zip(ranking.answers, labeling.ranks, strict=True))) > len(set(ranking.answers))
            ties = sum(n * (n - 1) // 2 for n in Counter(labeling.ranks).values())
            tied += ties
            decided += count * (count - 1) // 2 - ties
    groups = Counter(labeling.group or "none" for ranking in rankings for labeling in ranking.labelings)
    return {
        "answers_per_prompt": dict(sorted(Counter(len(ranking.answers) for ranking in rankings).items())),
        "labelings": sum(len(ranking.labelings) for ranking in rankings),
        "decided_pairs": decided,
        "tied_pairs": tied,
        "wholly_tied_labelings": wholly_tied,
        "equal_answers": sum(len(set(ranking.answers)) < len(ranking.answers) for ranking in rankings),
        "equal_answers_ranked_apart": ranked_apart,
        "groups": dict(groups),
    }


def _prompt_text(row: Row) -> str:
    return row.prompt if isinstance(row.prompt, str) else "".join(message.content for message in row.prompt)


def _similarity(row: Row) -> str:
    """Letters, digits and signs between digits in lower case, composed and decomposed characters alike (NFKC)."""
    text = unicodedata.normalize("NFKC", _prompt_text(row)).casefold()
    return _MARK.sub("", "".join(text.split()))


def _characters(row: Row) -> int:
    prompt = _prompt_text(row)
    answer = row.completion if isinstance(row, Demonstration) else ""
    longest = max(map(len, row.answers)) if isinstance(row, Ranking) else 0
    return len(prompt) + len(answer) + longest
