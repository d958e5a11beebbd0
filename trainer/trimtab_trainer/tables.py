"""A table of figures, for a terminal, for Markdown and for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Table", "percent"]


@dataclass(frozen=True)
class Table:
    """A table of texts; the first `names` columns are names, the others figures."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1

    def text(self) -> str:
        """For a terminal: columns one under the other, figures to the right."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        aligned = (
            "  ".join(
                cell.ljust(width) if column < self.names else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )
        return "\n".join([self.title, *(f"  {line}" for line in aligned)])

    def markdown(self, level: int = 2) -> str:
        """With its title as a heading of that level."""
        marks = ["---" if column < self.names else "---:" for column in range(len(self.header))]
        lines = [
            "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |"
            for line in (self.header, marks, *self.rows)
        ]
        return "\n".join([f"{'#' * level} {self.title}", "", *lines])


def percent(share: float) -> str:
    """A share for people."""
    return f"{100 * share:.1f} %"
