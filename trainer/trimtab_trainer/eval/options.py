"""Options that the evaluations of models share, and what becomes of their findings."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from trimtab.cli.connect import credential_options, credentials_of

if TYPE_CHECKING:
    from trimtab_trainer.eval.contestants import Connection
    from trimtab_trainer.eval.findings import Findings

__all__ = ["Output", "connection_of", "contestant_options", "findings_options", "output_options"]

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


@dataclass(frozen=True)
class Output:
    """Where a command's findings go: to standard output, and to NAME.json and NAME.html where a folder is given.

    Attributes:
        folder: None for none.
        name: of the files.
        as_json: prints the figures as one JSON object instead of tables.
    """

    folder: Path | None
    name: str
    as_json: bool

    def check(self) -> None:
        """Refuses a place that cannot be written, before any work is done.

        Raises:
            ConfigError: as `findings.check_place`.
        """
        from trimtab_trainer.eval.findings import check_place

        if self.folder is not None:
            check_place(self.folder, self.name)

    def tell(self, findings: Findings) -> None:
        """Prints findings, and saves them where a folder was given."""
        from trimtab_trainer.eval.findings import save

        click.echo(json.dumps(findings.figures, allow_nan=False) if self.as_json else findings.text())
        if self.folder is not None:
            save(findings, self.folder, self.name)


def output_options(default_name: str) -> Callable[[Command], Command]:
    """Adds --out, --name and --json, which the command gets as `output`, an `Output` whose place was checked."""

    def add(command: Command) -> Command:
        @functools.wraps(command)
        def with_output(*, out: Path | None, name: str, as_json: bool, **given: Any) -> Any:
            output = Output(out, name, as_json)
            output.check()
            return command(output=output, **given)

        added: Any = with_output
        for option in (
            click.option("--json", "as_json", is_flag=True, help="The figures as one JSON object."),
            click.option("--name", default=default_name, show_default=True, help="Of the files in --out."),
            click.option(
                "--out",
                type=click.Path(path_type=Path),
                help="Folder for NAME.json and NAME.html; a run's report shows what is in its folder `eval`.",
            ),
        ):
            added = option(added)
        return added  # type: ignore[no-any-return]  # click's own types forget the command's

    return add


def findings_options(default_name: str) -> Callable[[Command], Command]:
    """Adds --bootstrap-samples and --seed to the options of `output_options`."""

    def add(command: Command) -> Command:
        command = output_options(default_name)(command)
        for option in (
            click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every draw."),
            click.option(
                "--bootstrap-samples",
                "resamples",
                type=click.IntRange(100, 10_000),
                default=1000,
                show_default=True,
                help="Resamples of each 95 % interval.",
            ),
        ):
            command = option(command)
        return command

    return add
