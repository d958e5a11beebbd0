"""`trimtab runs`: start, list, watch, stop and resume runs of a trainer service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from trimtab.cli.connect import client_of, connection_options
from trimtab.cli.display import RunDisplay, follow_run
from trimtab.cli.rows import json_option, limit_option, print_rows
from trimtab.client import Client
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
def start(name: str, spec_file: Path, follow: bool, **connection: Any) -> int:
    """Start the run NAME from SPEC_FILE. With --watch the exit code is that of `runs watch`."""
    try:
        text = spec_file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{spec_file}: {error.strerror or error}", field="spec_file", value=spec_file) from None
    with client_of("trainer", **connection) as client:
        run = client.start_run(pb.StartRunRequest(name=name, spec_yaml=text)).run
        click.echo(f"{run.name}: {_state(run)}, in {run.directory}")
        return _watch(client, name) if follow else 0


@runs.command("list")
@limit_option
@json_option
@connection_options
def list_runs(limit: int | None, as_json: bool, **connection: Any) -> None:
    """The runs, newest first."""
    with client_of("trainer", **connection) as client:
        rows = ((_row(run), {**_row(run), "step": f"{run.step}/{run.total_steps}"}) for run in _all_runs(client))
        print_rows(("name", "state", "stage", "step", "error"), rows, as_json=as_json, limit=limit)


def _all_runs(client: Client) -> Iterator[pb.Run]:
    token: str | None = ""
    while token is not None:
        page = client.list_runs(pb.ListRunsRequest(page_token=token))
        yield from page.runs
        token = page.next_page_token or None


def _row(run: pb.Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "state": _state(run),
        "stage": run.stage,
        "step": run.step,
        "total_steps": run.total_steps,
        "error": run.error,
        "directory": run.directory,
        "create_time": run.create_time.ToJsonString(),
        "update_time": run.update_time.ToJsonString(),
    }


@runs.command()
@click.argument("name")
@connection_options
def watch(name: str, **connection: Any) -> int:
    """Follow the run NAME until it ends; Ctrl-C stops watching, not the run.

    Exit code 0 when it has succeeded, 130 when it was stopped, 1 when it has failed.
    """
    with client_of("trainer", **connection) as client:
        return _watch(client, name)


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


def _watch(client: Client, name: str) -> int:
    with RunDisplay(Console()) as display:
        follow_run(client, name, display)
    run = client.get_run(pb.GetRunRequest(name=name)).run
    return {pb.RUN_STATE_SUCCEEDED: 0, pb.RUN_STATE_STOPPED: 130}.get(run.state, 1)


def _state(run: pb.Run) -> str:
    return pb.RunState.Name(run.state).removeprefix("RUN_STATE_")
