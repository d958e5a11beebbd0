"""`trimtab status`: every replica, what it serves and how far behind it is; the runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from trimtab.client import Client
from trimtab.errors import TrimtabError
from trimtab.local import read_endpoints
from trimtab.v1 import trainer_pb2 as pb

__all__ = ["status"]

_TIMEOUT_S = 3.0


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=Path("trimtab-local"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(directory: Path, as_json: bool) -> None:
    """Services, replicas, versions, lag and queue; runs and their state."""
    endpoints = read_endpoints(directory)
    replicas = [_replica(service, one["grpc"]) for service, ones in endpoints.items() for one in ones]
    trainers = endpoints.get("trainer", [])
    found = {"replicas": replicas, "runs": _runs(trainers[0]["grpc"]) if trainers else []}
    if as_json:
        click.echo(json.dumps(found))
        return
    console = Console()
    table = Table("service", "address", "state", "version", "lag", "waiting", "running", "")
    for one in replicas:
        table.add_row(
            *(str(one[k]) for k in ("service", "address", "state", "version", "lag", "waiting", "running", "note"))
        )
    console.print(table)
    runs = Table("run", "state", "stage", "step", "error")
    for run in found["runs"]:
        runs.add_row(*(str(run[key]) for key in ("name", "state", "stage", "step", "error")))
    console.print(runs)


def _replica(service: str, address: str) -> dict[str, Any]:
    row: dict[str, Any] = {"service": service, "address": address, "state": "UNREACHABLE", "version": "", "lag": ""}
    row |= {"waiting": "", "running": "", "note": ""}
    try:
        with Client(address, timeout_s=_TIMEOUT_S) as client:
            info = client.info()
    except TrimtabError as error:
        return row | {"note": error.message}
    row |= {"state": info.state.value, "note": info.state_reason}
    row |= {"waiting": info.load.waiting_items, "running": info.load.running_items}
    for model in info.models:
        behind = model.channel_version > model.served.version
        row |= {"version": model.served.version, "lag": "behind" if behind else 0}
        row["note"] = model.last_swap_error or row["note"]
    return row


def _runs(address: str) -> list[dict[str, Any]]:
    try:
        with Client(address, timeout_s=_TIMEOUT_S) as client:
            page = client.list_runs(pb.ListRunsRequest(page_size=20))
    except TrimtabError:
        return []
    return [
        {
            "name": run.name,
            "state": pb.RunState.Name(run.state).removeprefix("RUN_STATE_"),
            "stage": run.stage,
            "step": f"{run.step}/{run.total_steps}",
            "error": run.error,
        }
        for run in page.runs
    ]
