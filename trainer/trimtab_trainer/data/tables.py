"""The figures of a file as tables, for a terminal and for a dataset card."""

from __future__ import annotations

from trimtab_trainer.data.file_statistics import FileStatistics
from trimtab_trainer.tables import Table, percent

__all__ = ["statistics_tables"]


def statistics_tables(found: FileStatistics) -> list[Table]:
    """Categories, lengths and agreement; those that the file has."""
    tables = [_categories(found), *_lengths(found), _agreement(found)]
    return [table for table in tables if table.rows]


def _categories(found: FileStatistics) -> Table:
    rows = [
        (one.category or "(none)", str(one.rows), percent(one.share), "" if one.paper is None else percent(one.paper))
        for one in found.categories
    ]
    return Table("Categories, beside InstructGPT's (table 1)", ("category", "rows", "share", "InstructGPT"), rows)


def _lengths(found: FileStatistics) -> list[Table]:
    header = ("field", "category", "count", "mean", "std", "min", "25 %", "50 %", "75 %", "max")
    tables = []
    for unit in ("characters", "tokens"):
        rows = []
        for one in found.lengths:
            table = one.table
            figures = (table.mean, table.std, table.min, table.quarter, table.median, table.three_quarters, table.max)
            if one.unit == unit:
                rows.append((one.field, one.category or "all", str(table.count), *map(_number, figures)))
        tables.append(Table(f"Lengths in {unit}", header, rows, names=2))
    return tables


def _agreement(found: FileStatistics) -> Table:
    rows = [
        (
            one.source or "all",
            one.group or "any two",
            percent(one.value),
            "" if one.low is None or one.high is None else f"{percent(one.low)} to {percent(one.high)}",
            str(one.decisions),
            str(one.prompts),
        )
        for one in found.agreement
    ]
    header = ("source", "group", "agree", "95 % interval", "decisions", "prompts")
    return Table("Agreement between labelers, pairs that both decide", header, rows, names=2)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}".removesuffix(".0")
