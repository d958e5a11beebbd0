"""Lists of a command: a table for people, or one JSON object a line for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

__all__ = ["json_option", "limit_option", "print_rows", "table", "table_console"]

_PIPED_WIDTH = 240

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    """Adds --json, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")(command)


def limit_option(command: Command) -> Command:
    """Adds --limit: the most rows of a list, None for all."""
    return click.option("--limit", type=click.IntRange(min=1), help="Most rows, newest first. Default: all.")(command)


def table_console() -> Console:
    """Where tables go: as wide as the terminal; wide enough for every word where no terminal is."""
    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, markup=False, emoji=False)


def table(keys: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Table:
    """A table that fits a narrow terminal, in which nothing is cut off and every text stands as it is."""
    made = Table(*(Column(key, overflow="fold") for key in keys), box=None, padding=(0, 1), pad_edge=False)
    for row in rows:
        made.add_row(*(Text(str(row[key])) for key in keys))  # a plain str would be read as markup
    return made


def print_rows(
    keys: Sequence[str],
    rows: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]],
    *,
    as_json: bool,
    limit: int | None = None,
) -> None:
    """Prints the first rows of a list, and says so where there are more.

    Args:
        keys: columns of the table.
        rows: each for machines, and for people.
        as_json: the former, a line as soon as it is there, instead of a table of the latter.
        limit: most rows; None for all.
    """
    shown: list[Mapping[str, Any]] = []
    has_more = False
    for number, (machine, people) in enumerate(rows):
        if number == limit:
            has_more = True
            break
        if as_json:
            click.echo(json.dumps(machine))
        else:
            shown.append(people)
    if not as_json:
        table_console().print(table(keys, shown))
    if has_more:
        click.echo(f"there are more than these {limit}; without --limit all are listed", err=True)
