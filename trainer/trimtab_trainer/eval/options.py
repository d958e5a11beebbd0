"""Options that the evaluations of models share, and what becomes of their findings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from trimtab.cli.connect import credential_options, credentials_of

if TYPE_CHECKING:
    from trimtab_trainer.eval.contestants import Connection
    from trimtab_trainer.eval.findings import Findings

__all__ = ["connection_of", "contestant_options", "file_digest", "findings_options", "tell"]

Command = TypeVar("Command", bound=Callable[..., Any])


def contestant_options(command: Command) -> Command:
    """Adds --model, --baseline, --timeout and the credentials that `connection_of` reads."""
    for option in (
        click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Deadline of a call in seconds."),
        click.option("--baseline", metavar="NAME", help="What the others are compared with.  [default: the first]"),
        click.option(
            "--model",
            "models",
            multiple=True,
            required=True,
            metavar="NAME=PLACE",
            help="A model folder, for which a service is started, or host:port of a service; may be given again.",
        ),
    ):
        command = option(command)
    return credential_options(command)


def connection_of(timeout_s: float, **credentials: Any) -> Connection:
    """From the options of `contestant_options`."""
    from trimtab_trainer.eval.contestants import Connection

    return Connection(timeout_s, **credentials_of(**credentials))


def findings_options(default_name: str) -> Callable[[Command], Command]:
    """Adds --bootstrap-samples, --seed, --out, --name and --json."""

    def add(command: Command) -> Command:
        for option in (
            click.option("--json", "as_json", is_flag=True, help="The figures as one JSON object."),
            click.option("--name", default=default_name, show_default=True, help="Of the files in --out."),
            click.option(
                "--out",
                type=click.Path(path_type=Path),
                help="Folder for NAME.json and NAME.html; a run's report shows what is in its folder `eval`.",
            ),
            click.option("--seed", default=0, show_default=True, help="Of every draw."),
            click.option(
                "--bootstrap-samples",
                "resamples",
                type=click.IntRange(100, 100_000),
                default=1000,
                show_default=True,
                help="Resamples of each 95 % interval.",
            ),
        ):
            command = option(command)
        return command

    return add


def tell(findings: Findings, out: Path | None, name: str, *, as_json: bool) -> None:
    """Prints findings, and saves them where a folder was given."""
    from trimtab_trainer.eval.findings import save

    click.echo(json.dumps(findings.figures, allow_nan=False) if as_json else findings.text())
    if out is not None:
        save(findings, out, name)


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
