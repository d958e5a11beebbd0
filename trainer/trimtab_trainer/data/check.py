"""What is in a dataset file: counts, lengths, doubles, and prompts that two files share; for `trimtab data check`."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trimtab_trainer.data.lengths import Lengths
from trimtab_trainer.data.on_disk import DiskCounts, digest, open_private_database
from trimtab_trainer.data.records import Demonstration, Passage, Ranking, Row, prompt_key, turns_of
from trimtab_trainer.data.tally import Tally

__all__ = ["Leaks", "SharedPrompts", "describe_dataset", "find_leaks"]

_MARK = re.compile(r"(?<!\d)[\W_]|[\W_](?!\d)")
"""Neither letter nor digit, nor between two digits, where it makes another number or sum: 1.5, 2-2, 2+2."""


def describe_dataset(rows: Iterable[Row]) -> dict[str, Any]:
    """Counts what is in the rows of one file, of which there is at least one, holding one at a time.

    Returns:
        `rows`, `repeated_rows` (equal to an earlier one), `different_prompts`, `longest_characters`,
        `median_characters`, and `categories` where rows have one; for rankings also `answers_per_prompt`, `labelings`,
        `decided_pairs`, `tied_pairs`, `wholly_tied_labelings`, `equal_answers` (rankings with an answer twice),
        `equal_answers_ranked_apart` (labelings that contradict themselves), `groups`.
    """
    different, prompts = DiskCounts(), DiskCounts()
    lengths, rankings = Lengths(), _Rankings()
    categories = Tally()
    count = 0
    for row in rows:
        count += 1
        different.add(digest(repr(row)))
        prompts.add(prompt_key(row.prompt).encode())
        lengths.add(_characters(row))
        if not isinstance(row, Passage) and row.category:
            categories.add(row.category)
        if isinstance(row, Ranking):
            rankings.add(row)
    table = lengths.table()
    found: dict[str, Any] = {
        "rows": count,
        "repeated_rows": count - len(different),
        "different_prompts": len(prompts),
        "median_characters": table.median if table else 0,
        "longest_characters": table.max if table else 0,
    }
    if categories.counts:
        found["categories"] = dict(categories.counts.most_common())
    return found | rankings.figures()


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


class SharedPrompts:
    """The prompts of several files, each file known by a number."""

    def __init__(self) -> None:
        self._database = open_private_database(
            "CREATE TABLE prompts (file INTEGER, exact BLOB, similar BLOB, rows INTEGER, PRIMARY KEY (file, exact))"
            " WITHOUT ROWID;"
            "CREATE INDEX by_similarity ON prompts (file, similar)"
        )

    def add(self, file: int, row: Row) -> None:
        """Takes the prompt of one row; a passage's text is its prompt."""
        similarity = _similarity(row)
        self._database.execute(
            "INSERT INTO prompts VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE SET rows = rows + 1",
            (file, prompt_key(row.prompt).encode(), digest(similarity) if similarity else None),
        )

    def leaks(self, file: int, other: int) -> Leaks:
        """What two of the files share."""
        is_exact = "EXISTS (SELECT 1 FROM prompts AS b WHERE b.file = :other AND b.exact = a.exact)"
        is_similar = "EXISTS (SELECT 1 FROM prompts AS b WHERE b.file = :other AND b.similar = a.similar)"

        def count(what: str, where: str, one: int, another: int) -> int:
            query = f"SELECT coalesce({what}, 0) FROM prompts AS a WHERE a.file = :file AND ({where})"
            return self._database.execute(query, {"file": one, "other": another}).fetchone()[0]

        return Leaks(
            prompts=count("count(*)", is_exact, file, other),
            similar_prompts=count("count(DISTINCT a.similar)", is_similar, file, other),
            rows=count("sum(a.rows)", f"{is_exact} OR {is_similar}", file, other),
            other_rows=count("sum(a.rows)", f"{is_exact} OR {is_similar}", other, file),
        )


def find_leaks(rows: Iterable[Row], other: Iterable[Row]) -> Leaks:
    """Compares the prompts of two files, of any kinds."""
    shared = SharedPrompts()
    for file, side in enumerate((rows, other)):
        for row in side:
            shared.add(file, row)
    return shared.leaks(0, 1)


class _Rankings:
    """Counts over rankings, one after another."""

    def __init__(self) -> None:
        self._answers: Counter[int] = Counter()
        self._groups = Tally()
        self._counts: Counter[str] = Counter()

    def add(self, ranking: Ranking) -> None:
        self._answers[len(ranking.answers)] += 1
        different = len(set(ranking.answers))
        self._counts["equal_answers"] += different < len(ranking.answers)
        for labeling in ranking.labelings:
            count = len(labeling.ranks)
            ties = sum(n * (n - 1) // 2 for n in Counter(labeling.ranks).values())
            self._groups.add(labeling.group or "none")
            self._counts["labelings"] += 1
            self._counts["tied_pairs"] += ties
            self._counts["decided_pairs"] += count * (count - 1) // 2 - ties
            self._counts["wholly_tied_labelings"] += len(set(labeling.ranks)) == 1
            apart = len(set(zip(ranking.answers, labeling.ranks, strict=True))) > different
            self._counts["equal_answers_ranked_apart"] += apart

    def figures(self) -> dict[str, Any]:
        """Empty without rankings."""
        if not self._answers:
            return {}
        counts = ("labelings", "decided_pairs", "tied_pairs", "wholly_tied_labelings")
        return {
            "answers_per_prompt": dict(sorted(self._answers.items())),
            **{name: self._counts[name] for name in (*counts, "equal_answers", "equal_answers_ranked_apart")},
            "groups": dict(self._groups.counts),
        }


def _similarity(row: Row) -> str:
    """Letters, digits and signs between digits in lower case, composed and decomposed characters alike (NFKC)."""
    text = unicodedata.normalize("NFKC", "".join(turn.content for turn in turns_of(row.prompt))).casefold()
    return _MARK.sub("", "".join(text.split()))


def _characters(row: Row) -> int:
    prompt = sum(len(turn.content) for turn in turns_of(row.prompt))
    answer = row.completion if isinstance(row, Demonstration) else ""
    longest = max(map(len, row.answers)) if isinstance(row, Ranking) else 0
    return prompt + len(answer) + longest
