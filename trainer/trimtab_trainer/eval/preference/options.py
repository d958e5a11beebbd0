"""What the commands over people's labels share: options and settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from trimtab_trainer.eval.options import findings_options

if TYPE_CHECKING:
    from trimtab_trainer.eval.preference.labels import Label

__all__ = ["label_options", "read", "settings"]

Command = TypeVar("Command", bound=Callable[..., Any])

_PATH = click.Path(path_type=Path)


def label_options(name: str) -> Callable[[Command], Command]:
    """Adds FILE... and the options of a command over labels, whose findings have that name unless told otherwise."""

    def add(command: Command) -> Command:
        command = findings_options(name)(command)
        for option in (
            click.argument("files", nargs=-1, required=True, type=_PATH, metavar="FILE..."),
            click.option(
                "--by",
                default="model,version,temperature",
                show_default=True,
                metavar="FIELDS",
                help="What makes a contestant: fields of `sources`, or `system`, the row's list `systems`.",
            ),
            click.option("--baseline", metavar="NAME", help="Contestant that the others are compared with."),
            click.option("--group", "groups", multiple=True, help="Only labelers of this group; may be repeated."),
            click.option(
                "--skip-bad-rows", type=click.IntRange(0), default=0, show_default=True, help="Tolerated in each FILE."
            ),
        )[::-1]:
            command = option(command)
        return command

    return add


def read(files: tuple[Path, ...], by: str, groups: tuple[str, ...], skip_bad_rows: int) -> list[Label]:
    """The labels that the options name; bad rows are told on stderr.

    Raises:
        ConfigError: a field of `by` is none, and as `read_labels`.
        DataError: as `read_labels`.
    """
    from trimtab.errors import ConfigError
    from trimtab_trainer.eval.preference.labels import BY, read_labels

    fields = by.split(",")
    if unknown := [field for field in fields if field not in BY]:
        allowed = ", ".join(BY)
        raise ConfigError(f"by: {unknown[0]!r} is none of {allowed}", field="by", value=unknown[0], limit=allowed)
    return read_labels(
        files, fields, groups=groups, skip_bad_rows=skip_bad_rows, warn=lambda text: click.echo(text, err=True)
    )


def settings(files: tuple[Path, ...], **options: Any) -> dict[str, Any]:
    """What is needed to do it again: the options, and each file with its digest."""
    from trimtab_trainer.digests import content_digest

    return {"files": {str(file): content_digest(file) for file in files}, **options}
