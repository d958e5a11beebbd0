"""What an evaluation found: figures as JSON, and the same as tables on a terminal and on a page of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from trimtab.errors import ConfigError
from trimtab_trainer.checkpoint import write_file_atomically
from trimtab_trainer.report import page_environment, versions
from trimtab_trainer.report_plots import Plot
from trimtab_trainer.tables import Table

__all__ = ["Bounded", "Findings", "check_new_file", "check_place", "interval", "save"]


@dataclass(frozen=True)
class Findings:
    """What one evaluation found.

    Attributes:
        kind: the command that found it, such as "preference".
        title: of its page.
        settings: what was asked for, and what the data were: everything that is needed to do it again but the versions
            of the software, which `save` adds.
        figures: every number, as JSON can hold it; nothing of the tables is rounded here.
        tables: the figures for people.
        plots: drawn figures.
        notes: sentences on how it was counted, and what it does not say.
    """

    kind: str
    title: str
    settings: Mapping[str, Any]
    figures: Mapping[str, Any]
    tables: Sequence[Table]
    plots: Sequence[Plot] = ()
    notes: Sequence[str] = field(default=())

    def text(self) -> str:
        """For a terminal."""
        return "\n\n".join([*(table.text() for table in self.tables), *self.notes])


def check_place(out: Path, name: str) -> None:
    """Refuses a place that findings cannot be written to, before any work is done.

    Raises:
        ConfigError: as `check_new_file`, of OUT/NAME.json and OUT/NAME.html.
    """
    for path in (out / f"{name}.json", out / f"{name}.html"):
        check_new_file("out", path)


def check_new_file(field: str, path: Path) -> None:
    """Refuses a file that is there, or whose folder cannot be made or written to.

    Args:
        field: the option that names it.
        path: of the file.

    Raises:
        ConfigError: it is one of these.
    """
    if path.exists():
        raise ConfigError(f"{field}: {path} is there already and is not replaced", field=field, value=path)
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir():
        raise ConfigError(f"{field}: {path}: {there} is no folder", field=field, value=path)
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{field}: {path}: {there} cannot be written to", field=field, value=path)


def save(findings: Findings, out: Path, name: str) -> None:
    """Writes OUT/NAME.json and OUT/NAME.html, whole or not at all. In the folder `eval` of a run its report shows them.

    The JSON file has `kind`, `title`, `at` (UTC), `settings` with `versions`, `figures`, `tables` and `notes`.

    Raises:
        ConfigError: as `check_place`.
    """
    check_place(out, name)
    out.mkdir(parents=True, exist_ok=True)
    written = {
        "kind": findings.kind,
        "title": findings.title,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {**findings.settings, "versions": versions()},
        "figures": findings.figures,
        "tables": [
            {"title": one.title, "header": one.header, "rows": one.rows, "names": one.names} for one in findings.tables
        ],
        "notes": findings.notes,
    }
    text = json.dumps(written, indent=1, default=str, allow_nan=False)
    page = page_environment().get_template("findings.html").render(found=written, plots=findings.plots)
    write_file_atomically(out / f"{name}.html", page)
    write_file_atomically(out / f"{name}.json", text + "\n")


class Bounded(Protocol):
    """A figure with its 95 % interval; the ends are None where there is too little to make one."""

    @property
    def value(self) -> float:
        """The figure."""
        ...

    @property
    def low(self) -> float | None:
        """Lower end."""
        ...

    @property
    def high(self) -> float | None:
        """Upper end."""
        ...


def interval(found: Bounded, shown: Callable[[float], str] = "{:.3f}".format) -> str:
    """A figure with its interval for people; `shown` is one number of it."""
    if found.low is None or found.high is None:
        return f"{shown(found.value)} (too few)"
    return f"{shown(found.value)} ({shown(found.low)} to {shown(found.high)})"
