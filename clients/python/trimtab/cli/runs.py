"""`trimtab runs`: start, list, watch, stop and resume runs of a trainer service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from trimtab.cli.connect import client_of, connection_options
from trimtab.cli.display import RunDisplay, follow_run
from trimtab.errors import ConfigError
from trimtab.v1 import trainer_pb2 as pb

__all__ = ["runs"]


@click.group()
def runs() -> None:
    """Start, list, watch, stop and resume runs of the trainer service."""


@runs.command()
@click.argument("name")
@click.argument("spec_file", type=click.Path(path_type=Path))
@click.option("--watch/--no-watch", "follow", default=False, help="Follow the run until it ends.")
@connection_options
def start(name: str, spec_file: Path, follow: bool, **connection: Any) -> None:
    """Start the run NAME from SPEC_FILE."""
    try:
        text = spec_file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{spec_file}: {error.strerror or error}", field="spec_file", value=spec_file) from None
    with client_of("trainer", **connection) as client:
        run = client.start_run(pb.StartRunRequest(name=name, spec_yaml=text)).run
        click.echo(f"{run.name}: {_state(run)}, in {run.directory}")
        if follow:
            _watch(client, name)


@runs.command("list")
@connection_options
def list_runs(**connection: Any) -> None:
    """The runs, newest first."""
    table = Table("name", "state", "stage", "step", "error")
    token = ""
    with client_of("trainer", **connection) as client:
        while True:
            page = client.list_runs(pb.ListRunsRequest(page_token=token))
            for run in page.runs:
                table.add_row(run.name, _state(run), run.stage, f"{run.step}/{run.total_steps}", run.error[:80])
            token = page.next_page_token
            if not token:
                break
    Console().print(table)


@runs.command()
@click.argument("name")
@connection_options
def watch(name: str, **connection: Any) -> None:
    """Follow the run NAME until it ends; Ctrl-C stops watching, not the run."""
    with client_of("trainer", **connection) as client:
        _watch(client, name)


@runs.command()
@click.argument("name")
@connection_options
def stop(name: str, **connection: Any) -> None:
    """Ask the run NAME to finish its step, save a checkpoint and end."""
    with client_of("trainer", **connection) as client:
        click.echo(_state(client.stop_run(pb.StopRunRequest(name=name)).run))


@runs.command()
@click.argument("name")
@connection_options
def resume(name: str, **connection: Any) -> None:
    """Go on with the run NAME from its last checkpoint."""
    with client_of("trainer", **connection) as client:
        click.echo(_state(client.resume_run(pb.ResumeRunRequest(name=name)).run))


def _watch(client: Any, name: str) -> None:
    with RunDisplay(Console()) as display:
        follow_run(client, name, display)


def _state(run: pb.Run) -> str:
    return pb.RunState.Name(run.state).removeprefix("RUN_STATE_")
