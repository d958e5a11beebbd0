"""`trimtab runs`: start, list, show, watch, stop, resume and delete runs of a trainer service, and read their logs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console

from trimtab.cli.connect import client_of, connection_options
from trimtab.cli.display import RunDisplay, follow_run
from trimtab.cli.following import WATCH_S, follow
from trimtab.cli.replica import RUN_COLUMNS, reported_replica_row
from trimtab.cli.rows import json_option, limit_option, print_rows, table, table_console
from trimtab.client import Client
from trimtab.errors import ConfigError, NotFound
from trimtab.v1 import trainer_pb2 as pb

__all__ = ["runs"]

_REPLICA_COLUMNS = ("service", "address", "state", "version", "lag", "waiting", "running", "calls", "note")
_EXIT_CODES = {pb.RUN_STATE_FAILED: 1, pb.RUN_STATE_STOPPED: 130}
_DELETE_S = 300.0
"""A claim goes only after the pods that mount it, and a folder of many checkpoints takes its time."""


@click.group()
def runs() -> None:
    """Start, list, show, watch, stop, resume and delete runs of the trainer service, and read their logs."""


@runs.command()
@click.argument("name")
@click.argument("spec_file", type=click.Path(path_type=Path))
@click.option("--watch/--no-watch", "follow", default=False, help="Follow the run until it ends.")
@connection_options
def start(name: str, spec_file: Path, follow: bool, **connection: Any) -> int:
    """Start the run NAME from SPEC_FILE. With --watch the exit code is that of `runs watch`.

    Where the run is there already with this very spec, nothing is started: its state is told, with exit code 1 where it
    has failed and 130 where it was stopped. `name` and `directory` of the spec are not used.
    """
    try:
        text = spec_file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{spec_file}: {error.strerror or error}", field="spec_file", value=spec_file) from None
    with client_of("trainer", **connection) as client:
        before = _found(client, name)
        run = client.start_run(pb.StartRunRequest(name=name, spec_yaml=text)).run
        is_there = before is not None and before.create_time == run.create_time
        click.echo(_told_again(run) if is_there else f"{run.name}: {_state(run)}, in {run.directory}")
        if unused := ", ".join(_unused(text, run)):
            click.echo(f"{spec_file}: not used: {unused}; the run has those of the trainer service", err=True)
        if follow:
            return _watch(client, name)
        return _EXIT_CODES.get(run.state, 0) if is_there else 0


def _found(client: Client, name: str) -> pb.Run | None:
    try:
        return client.get_run(pb.GetRunRequest(name=name)).run
    except NotFound:
        return None


def _unused(spec_yaml: str, run: pb.Run) -> list[str]:
    """`name` and `directory` of a spec, where they are not those of the run; a spec that the service has taken."""
    spec, own = yaml.safe_load(spec_yaml), {"name": run.name, "directory": run.directory}
    return [f"{key} {spec[key]!r}" for key, value in own.items() if spec.get(key) not in (None, value)]


def _told_again(run: pb.Run) -> str:
    """What `start` says of a run that was there already."""
    time = run.create_time.ToDatetime(UTC).astimezone()
    told = f"{run.name}: was started already, {time:%Y-%m-%d %H:%M:%S}, with this spec; nothing new is started. "
    told += f"{_state(run)}{f': {run.error}' if run.error else ''}, in {run.directory}"
    if run.state == pb.RUN_STATE_SUCCEEDED:
        return f"{told}; another name makes another run of the spec"
    if run.state in (pb.RUN_STATE_FAILED, pb.RUN_STATE_STOPPED):
        return f"{told}; `trimtab runs resume {run.name}` goes on with it"
    return told


@runs.command("list")
@limit_option
@json_option
@connection_options
def list_runs(limit: int | None, as_json: bool, **connection: Any) -> None:
    """The runs, newest first."""
    with client_of("trainer", **connection) as client:
        rows = ((_row(run), {**_row(run), "step": _steps(run)}) for run in _all_runs(client))
        print_rows(RUN_COLUMNS, rows, as_json=as_json, limit=limit)


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
@json_option
@connection_options
def status(name: str, as_json: bool, **connection: Any) -> None:
    """Show the run NAME, and the replicas that it works with as it told of them last."""
    with client_of("trainer", **connection) as client:
        found = client.get_run(pb.GetRunRequest(name=name))
    row = _row(found.run)
    replicas = [reported_replica_row(one) for one in found.replicas.replicas]
    if as_json:
        time = found.replicas_time.ToJsonString() if replicas else None
        click.echo(json.dumps({**row, "replicas": replicas, "replicas_time": time}))
        return
    console = table_console()
    console.print(table(RUN_COLUMNS, [{**row, "step": _steps(found.run)}]))
    if replicas:
        console.print(f"\nreplicas at {found.replicas_time.ToDatetime(UTC).astimezone():%H:%M:%S}")
        console.print(
            table(_REPLICA_COLUMNS, [{**one, "lag": "" if one["lag"] is None else one["lag"]} for one in replicas])
        )


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
@click.option("--follow", "-f", "follows", is_flag=True, help="Go on with what is written later, until the run ends.")
@connection_options
def logs(name: str, follows: bool, **connection: Any) -> None:
    """Print what the process of the run NAME, or the first pod of its Job, has written."""
    with client_of("trainer", **connection) as client:
        for piece in _log(client, name, follows=follows):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()


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


@runs.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Do not ask. A run that has not ended is refused all the same.")
@connection_options
def delete(name: str, force: bool, **connection: Any) -> None:
    """Delete the ended run NAME for good: checkpoints, models, log, events, on Kubernetes its Job and its own claim.

    Versions that it has published stay in the weights service; `weights prune` removes them.
    """
    if not force:
        click.confirm(f"Delete run {name} with its checkpoints, models, log and events for good?", abort=True, err=True)
    with client_of("trainer", **connection) as client:
        gone = client.delete_run(pb.DeleteRunRequest(name=name), timeout_s=_DELETE_S)
    if not gone.deleted:
        click.echo(f"there is no run {name}; nothing was deleted")
        return
    freed = [f"{_size(gone.freed_bytes)} on the trainer's volume"]
    freed += [f"a claim of {_size(gone.freed_claim_bytes)}"] if gone.freed_claim_bytes else []
    click.echo(f"{name}: deleted; freed {' and '.join(freed)}")
    if gone.left:
        click.echo(f"left: {gone.left}")


def _log(client: Client, name: str, *, follows: bool) -> Iterator[bytes]:
    """The pieces of a log, each once."""
    offset = 0

    def watch() -> Iterator[pb.WatchRunLogResponse]:
        request = pb.WatchRunLogRequest(name=name, offset_bytes=offset, follow=follows)
        return client.watch_run_log(request, timeout_s=WATCH_S)

    for reply in follow(watch):
        offset = reply.offset_bytes + len(reply.data)
        yield reply.data


def _size(count: int) -> str:
    size, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.4g} {units[0]}"


def _watch(client: Client, name: str) -> int:
    with RunDisplay(Console()) as display:
        follow_run(client, name, display)
    run = client.get_run(pb.GetRunRequest(name=name)).run
    if run.state == pb.RUN_STATE_FAILED:
        click.echo(f"run {name}: {run.error}; `trimtab runs logs {name}` has what it wrote", err=True)
    return {pb.RUN_STATE_SUCCEEDED: 0, **_EXIT_CODES}.get(run.state, 1)


def _steps(run: pb.Run) -> str:
    return f"{run.step}/{run.total_steps}"


def _state(run: pb.Run) -> str:
    return pb.RunState.Name(run.state).removeprefix("RUN_STATE_")
