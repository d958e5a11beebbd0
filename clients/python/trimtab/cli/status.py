"""`trimtab status`: every replica, what it serves and how far behind it is; the runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from trimtab.cli.connect import credential_options, credentials_of, directory_option
from trimtab.cli.rows import table, table_console
from trimtab.client import Client
from trimtab.errors import TrimtabError
from trimtab.local import read_endpoints
from trimtab.types import ServiceState
from trimtab.v1 import trainer_pb2 as pb

__all__ = ["status"]

_TIMEOUT_S = 3.0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@directory_option
@credential_options
def status(directory: Path, as_json: bool, **credentials: Any) -> None:
    """Services, replicas, versions, lag and queue; runs and their state."""
    endpoints = read_endpoints(directory)
    connect = partial(Client, timeout_s=_TIMEOUT_S, **credentials_of(**credentials))
    replicas = [_replica(service, one["grpc"], connect) for service, ones in endpoints.items() for one in ones]
    trainers = endpoints.get("trainer", [])
    found = {"replicas": replicas, "runs": _runs(trainers[0]["grpc"], connect) if trainers else []}
    if as_json:
        click.echo(json.dumps(found))
        return
    console = table_console()
    console.print(table(("service", "address", "state", "version", "lag", "waiting", "running"), replicas))
    for one in replicas:
        if one["note"]:
            console.print(f"{one['service']} at {one['address']}: {one['note']}", markup=False, highlight=False)
    console.print()
    console.print(table(("name", "state", "stage", "step", "error"), found["runs"]))


def _replica(service: str, address: str, connect: Callable[[str], Client]) -> dict[str, Any]:
    row: dict[str, Any] = {"service": service, "address": address, "state": "UNREACHABLE", "version": "", "lag": ""}
    row |= {"waiting": "", "running": "", "note": ""}
    try:
        with connect(address) as client:
            info = client.info()
    except TrimtabError as error:
        return row | {"note": error.message}
    row |= {"state": info.state.value, "note": info.state_reason}
    row |= {"waiting": info.load.waiting_items, "running": info.load.running_items}
    for model in info.models:
        if info.state is ServiceState.WAITING_FOR_VERSION:
            row["note"] = model.last_swap_error or row["note"]
            continue
        other = model.channel_version not in (0, model.served.version)
        row |= {"version": model.served.version, "lag": "behind" if other else 0}
        row["note"] = model.last_swap_error or row["note"]
    return row


def _runs(address: str, connect: Callable[[str], Client]) -> list[dict[str, Any]]:
    try:
        with connect(address) as client:
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
