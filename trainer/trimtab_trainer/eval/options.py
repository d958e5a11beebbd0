"""Options that the evaluations of models share, and what becomes of their findings."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from trimtab.cli.connect import credential_options, credentials_of

if TYPE_CHECKING:
    from trimtab_trainer.eval.findings import Findings

__all__ = ["Output", "choices_option", "contestant_options", "findings_options", "output_options"]

Command = TypeVar("Command", bound=Callable[..., Any])


def contestant_options(*, urls: bool = False, tokenizer: bool = False) -> Callable[[Command], Command]:
    """Adds --model, --baseline, --timeout and credentials, which the command gets as `compared`, a `Comparison`.

    Args:
        urls: whether the place of a model may be an http or https URL.
        tokenizer: also adds --tokenizer, the folder with that of models not given as a folder.
    """

    def add(command: Command) -> Command:
        @functools.wraps(command)
        def with_contestants(*, models: tuple[str, ...], baseline: str | None, timeout_s: float, **given: Any) -> Any:
            from trimtab_trainer.eval.contestants import Comparison, Connection, baseline_of, parse_contestants
            from trimtab_trainer.eval.continuations import tokenizer_folder

            credentials = credentials_of(**{name: given.pop(name) for name in _CREDENTIALS})
            contestants = parse_contestants(models, urls=urls)
            reference = baseline_of(contestants, baseline)
            folder = given.pop("tokenizer", None)
            tokenizers = {one.name: tokenizer_folder(one, folder) for one in contestants} if tokenizer else {}
            compared = Comparison(contestants, reference, Connection(timeout_s, **credentials), tokenizers)
            return command(compared=compared, **given)

        added: Any = with_contestants
        for option in (
            *([_TOKENIZER] if tokenizer else []),
            click.option(
                "--timeout", "timeout_s", default=600.0, show_default=True, help="Deadline of a call in seconds."
            ),
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
            added = option(added)
        return credential_options(added)  # type: ignore[no-any-return]  # click's own types forget the command's

    return add


_CREDENTIALS = tuple(inspect.signature(credentials_of).parameters)
_TOKENIZER = click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="Folder with the tokenizer of models not given as a folder.",
)


def choices_option(name: str, choices: Iterable[str], default: str) -> Callable[[Command], Command]:
    """Adds an option that may be given again, for some of a few names; the command gets them as `asked`, each once.

    Args:
        name: of the option.
        choices: all of them, which are asked where none is given.
        default: them in words.
    """
    known = list(choices)

    def asked(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> list[str]:
        return list(dict.fromkeys(given)) or known

    return click.option(
        name,
        "asked",
        type=click.Choice(known),
        multiple=True,
        callback=asked,
        help=f"May be given again.  [default: {default}]",
    )


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
