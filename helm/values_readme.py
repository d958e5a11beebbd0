"""Writes the table of values in helm/trimtab/README.md from the comments of values.yaml: run it after a change.

Every leaf of values.yaml needs a comment that begins with `# --`, at itself or at a map above it, which then speaks for
all of the map. The text of the README outside the two marks is written by hand.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

__all__ = ["Row", "UndocumentedValue", "readme_with_table", "rows"]

CHART = Path(__file__).parent / "trimtab"
BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"
_LONGEST_DEFAULT = 60


class UndocumentedValue(ValueError):
    """A key of values.yaml has no comment, or a comment has no key."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        key: with dots, such as `auth.enabled`.
        default: as JSON; a long one is only hinted at.
        description: the comment, in one line.
    """

    key: str
    default: str
    description: str


def rows(text: str) -> Iterator[Row]:
    """The rows of a values.yaml, in its order.

    Raises:
        UndocumentedValue: a leaf without a comment; the message has its key and line.
    """
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        raise UndocumentedValue("values.yaml is no mapping")
    yield from _rows_of(root, (), text.splitlines())


def _rows_of(node: yaml.MappingNode, above: tuple[str, ...], lines: list[str]) -> Iterator[Row]:
    for key_node, value_node in node.value:
        path = (*above, str(key_node.value))
        description = _comment_above(lines, key_node.start_mark.line)
        is_section = isinstance(value_node, yaml.MappingNode) and value_node.value and not value_node.flow_style
        if description:
            yield Row(".".join(path), "" if is_section else _default(value_node), description)
        if is_section:
            yield from _rows_of(value_node, path, lines) if not _speaks_for_all(description, value_node, lines) else ()
        elif not description:
            raise UndocumentedValue(
                f"values.yaml:{key_node.start_mark.line + 1}: {'.'.join(path)} has no comment `# --`"
            )


def _speaks_for_all(description: str, section: yaml.MappingNode, lines: list[str]) -> bool:
    """Whether a section's own comment is all that is said about it: no key in it has one."""
    inside = itertools.takewhile(
        lambda line: not line.strip() or len(line) - len(line.lstrip()) >= section.start_mark.column,
        lines[section.start_mark.line :],
    )
    return bool(description) and not any(line.strip().startswith("# --") for line in inside)


def _comment_above(lines: list[str], line: int) -> str:
    """The `# --` comment that ends right above a line; empty where there is none."""
    found: list[str] = []
    for text in reversed(lines[:line]):
        text = text.strip()
        if not text.startswith("#"):
            return ""
        found.insert(0, text.removeprefix("#").strip())
        if text.startswith("# --"):
            return " ".join(found).removeprefix("--").strip()
    return ""


def _default(node: yaml.Node) -> str:
    text = json.dumps(yaml.safe_load(yaml.serialize(node)))
    return text if len(text) <= _LONGEST_DEFAULT else "see values.yaml"


def readme_with_table(readme: str, values: str) -> str:
    """A README with the table of `values` between its two marks.

    Raises:
        ValueError: the marks are not there.
        UndocumentedValue: as `rows`.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md must have the lines {BEGIN} and {END}")
    table = ["| key | default | means |", "| --- | --- | --- |"]
    for row in rows(values):
        default = f"`{row.default}`" if row.default and row.default != "see values.yaml" else row.default
        table.append(f"| `{row.key}` | {default} | {row.description.replace('|', chr(92) + '|')} |")
    return f"{before}{BEGIN}\n{chr(10).join(table)}\n{END}{after}"


def main() -> int:
    """Rewrites the README."""
    readme = CHART / "README.md"
    readme.write_text(readme_with_table(readme.read_text(), (CHART / "values.yaml").read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
