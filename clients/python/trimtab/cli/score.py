"""`trimtab score`: rewards of one pair, or of a file of any length, resumable."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trimtab.cli.connect import async_client_of, connection_options
from trimtab.cli.score_requests import RequestOptions, ScoredRow, score_in_order
from trimtab.cli.score_rows import InputRow, RowReader
from trimtab.errors import ConfigError, DataError
from trimtab.types import Priority, TruncationSide

__all__ = ["score"]


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--prompt", help="Score one pair instead of a file.")
@click.option("--completion", help="Its completion.")
@click.option("--output", type=click.Path(path_type=Path), help="File for the scored rows. Default: standard output.")
@click.option("--resume", is_flag=True, help="Go on with an --output that was interrupted; start it if there is none.")
@click.option("--model", default="", help="Reward model by name. Default: the service's own default.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Texts of a request.")
@click.option("--in-flight", type=click.IntRange(min=1), default=4, show_default=True, help="Requests at a time.")
@click.option(
    "--priority",
    type=click.Choice([priority.value.lower() for priority in Priority]),
    default=Priority.BULK.value.lower(),
    show_default=True,
    help="Among the work that waits in the service.",
)
@click.option(
    "--truncate",
    type=click.Choice([side.value.lower() for side in (TruncationSide.LEFT, TruncationSide.RIGHT)]),
    help="Cut what is too long at this end. Default: too long is an error.",
)
@click.option(
    "--on-error",
    type=click.Choice(["fail", "write"]),
    default="fail",
    show_default=True,
    help="A row that is refused ends the command, or is written with `error` instead of a reward.",
)
@click.option("--skip-bad-rows", type=click.IntRange(min=0), default=0, show_default=True, help="Bad rows tolerated.")
@click.option(
    "--patience",
    "patience_s",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Longest wait in seconds for a service that is away or full.",
)
@connection_options
def score(
    file: Path | None,
    prompt: str | None,
    completion: str | None,
    output: Path | None,
    resume: bool,
    model: str,
    batch: int,
    in_flight: int,
    priority: str,
    truncate: str | None,
    on_error: str,
    skip_bad_rows: int,
    patience_s: float,
    **connection: Any,
) -> None:
    """Score the rows of FILE, JSON lines (`.gz` too; `-` is standard input), and write them with their rewards.

    A row has prompt and completion, or messages: it gets `reward`. With prompt, chosen and rejected it gets
    `reward_chosen` and `reward_rejected`; with prompt and answers, `rewards`. All get `reward_model` and
    `reward_version`; other fields are kept, and so is the order. With --resume an interrupted --output is completed; it
    is then equal byte for byte to one that was never interrupted, where the service is `deterministic`.
    """
    options = RequestOptions(
        model=model,
        priority=Priority(priority.upper()),
        truncation=TruncationSide(truncate.upper()) if truncate else TruncationSide.NONE,
        batch=batch,
        in_flight=in_flight,
        patience_s=patience_s,
    )
    _check_output(output, resume, file)
    with ExitStack() as stack:
        if file is not None and prompt is None and completion is None:
            reader = stack.enter_context(RowReader(file, skip_bad_rows=skip_bad_rows, warn=_warn))
            name, byte_count, rows = reader.name, reader.byte_count, reader.rows()
        elif file is None and prompt is not None and completion is not None:
            name, byte_count = "--prompt", None
            rows = iter([InputRow(1, 0, {"prompt": prompt, "completion": completion}, "completion")])
        else:
            raise click.UsageError("give FILE, or --prompt with --completion")
        if output is not None:
            options = replace(options, written_by=_skip_written(output, rows, name))
        out = stack.enter_context(output.open("a", encoding="utf-8")) if output is not None else None
        progress = stack.enter_context(_progress(byte_count, out))
        writer = _Writer(name, out, progress, fails=on_error == "fail")
        asyncio.run(_score_all(rows, options, writer, connection))
    writer.tell()


async def _score_all(
    rows: Iterator[InputRow], options: RequestOptions, writer: _Writer, connection: dict[str, Any]
) -> None:
    async with (
        async_client_of("reward", **connection) as client,
        aclosing(score_in_order(client, rows, options)) as answers,
    ):
        async for scored in answers:
            writer.write(scored)


class _Writer:
    """Writes rows and shows how far they are.

    Args:
        name: of the input, for errors.
        out: where to; None is standard output.
        progress: of one task.
        fails: whether a refused row ends it.
    """

    def __init__(self, name: str, out: TextIO | None, progress: Progress, *, fails: bool) -> None:
        self._name = name
        self._out = out
        self._progress = progress
        self._fails = fails
        self._count = 0
        self._refused = 0
        self._cut = 0

    def write(self, scored: list[ScoredRow]) -> None:
        """Writes rows up to one that is refused.

        Raises:
            DataError: names its file, line, field and reason.
        """
        fatal = next((one for one in scored if one.error is not None), None) if self._fails else None
        whole = scored[: scored.index(fatal)] if fatal is not None else scored
        if whole:
            click.echo("".join(json.dumps(one.written) + "\n" for one in whole), file=self._out, nl=False)
            self._count += len(whole)
            self._refused += sum(one.error is not None for one in whole)
            self._cut += sum(one.cut for one in whole)
            self._show(whole[-1].row.position)
        if fatal is not None and fatal.error is not None:
            raise DataError(
                f"{self._name}:{fatal.row.line}: {fatal.error.message}",
                field=fatal.error.field,
                value=fatal.error.value or None,
                limit=fatal.error.limit or None,
            )

    def tell(self) -> None:
        """Says what no reward shows."""
        if self._refused:
            _warn(f"{self._refused} of {self._count} rows were refused and have `error` instead of a reward")
        if self._cut:
            _warn(f"{self._cut} texts were too long and were cut")

    def _show(self, position: int) -> None:
        (task,) = self._progress.tasks
        rate = self._count / task.elapsed if task.elapsed else 0.0
        self._progress.update(task.id, completed=position, rows=self._count, rate=rate)


@contextmanager
def _progress(byte_count: int | None, out: TextIO | None) -> Iterator[Progress]:
    """One bar on stderr, where that is a terminal and the rows are not written across it."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.fields[rows]} rows"),
        BarColumn(),
        TextColumn("{task.fields[rate]:.1f} rows/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal or (out is None and sys.stdout.isatty()),
        redirect_stdout=False,  # rows are no part of what the terminal shows
    )
    progress.add_task("score", total=byte_count, rows=0, rate=0.0)
    with progress:
        yield progress


def _warn(message: str) -> None:
    click.echo(f"warning: {message}", err=True)


def _check_output(output: Path | None, resume: bool, file: Path | None) -> None:
    if output is None:
        if resume:
            raise click.UsageError("--resume goes on with an --output; give one")
        return
    if output.suffix == ".gz":
        raise ConfigError(
            f"output: {output}: an interrupted .gz cannot be completed; write plain JSON lines",
            field="output",
            value=output,
        )
    if not output.exists():
        return
    if file is not None and file.exists() and output.samefile(file):
        raise ConfigError(f"output: {output} is the input", field="output", value=output)
    if not resume and output.stat().st_size:
        raise ConfigError(f"output: {output} is there already; --resume goes on with it", field="output", value=output)


def _skip_written(output: Path, rows: Iterator[InputRow], name: str) -> str:
    """Drops a torn last line, and passes over the rows that are written; returns the model that scored the last one.

    Raises:
        ConfigError: what is written is not of these rows.
    """
    count, last = _recover(output)
    passed = list(islice(rows, count - 1, count)) if count else []
    if count and not (passed and passed[0].is_origin_of(last)):
        where = f"{name}:{passed[0].line}" if passed else f"{name}, which has fewer rows"
        raise ConfigError(
            f"output: {output}:{count} was not made of {where}; --resume goes on only with the output of the same rows",
            field="output",
            value=output,
        )
    model: str = json.loads(last).get("reward_model", "") if count else ""
    return model


def _recover(output: Path) -> tuple[int, bytes]:
    """How many rows are written, and the last; a line that was not written to its end is cut off."""
    if not output.exists():
        return 0, b""
    count, whole, last = 0, 0, b""
    with output.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            count, whole, last = count + 1, whole + len(line), line
        file.truncate(whole)
    return count, last
