"""Use cases of prompts beside the shares that the paper prints for its own (InstructGPT, table 1)."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab_trainer.data.tally import Tally

__all__ = ["PAPER_SHARES", "Categories", "CategoryShare", "paper_category"]

PAPER_SHARES = {
    "Generation": 0.456,
    "Open QA": 0.124,
    "Brainstorming": 0.112,
    "Chat": 0.084,
    "Rewrite": 0.066,
    "Summarization": 0.042,
    "Classification": 0.035,
    "Other": 0.035,
    "Closed QA": 0.026,
    "Extract": 0.019,
}
"""Of the prompts that customers sent to the paper's API; they add up to 99.9 %."""

_OTHER_NAMES = {"extraction": "Extract", "brainstorm": "Brainstorming", "summary": "Summarization"}
_BY_NAME = {name.casefold(): name for name in PAPER_SHARES} | _OTHER_NAMES


@dataclass(frozen=True)
class CategoryShare:
    """One row of the table.

    Attributes:
        category: the paper's name where it has one, else the file's; "" for rows without one.
        rows: of it.
        share: of all rows, 0..1.
        paper: the paper's share; None where it has no such category.
    """

    category: str
    rows: int
    share: float
    paper: float | None


class Categories:
    """Counts categories one row after another."""

    def __init__(self) -> None:
        self._rows = Tally({"", *PAPER_SHARES})

    def add(self, category: str) -> str:
        """One row more; returns the name that it is counted by, as `Tally.add`."""
        return self._rows.add(paper_category(category))

    def table(self) -> list[CategoryShare]:
        """The paper's categories in its order, then the file's own, most frequent first; nothing if no row has one."""
        rows = self._rows.counts
        total = rows.total()
        if set(rows) <= {""}:
            return []
        own = [name for name, _ in rows.most_common() if name not in PAPER_SHARES]
        return [
            CategoryShare(name, rows[name], rows[name] / total, PAPER_SHARES.get(name))
            for name in (*PAPER_SHARES, *own)
        ]


def paper_category(category: str) -> str:
    """The paper's name of a category, "closed_qa" being "Closed QA"; its own where the paper has none."""
    return _BY_NAME.get(" ".join(category.replace("_", " ").replace("-", " ").split()).casefold(), category)
