"""`trimtab status`: every replica, what it serves and how far behind it is; the runs. Local or of a release."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from trimtab.cli.connect import credential_options, credentials_of, directory_option
from trimtab.cli.release import Release, release_options
from trimtab.cli.release_status import COMPONENT_COLUMNS, POD_COLUMNS, status_of
from trimtab.cli.replica import REFUSED, RUN_COLUMNS, SERVED_COLUMNS, Connect, replica_row, run_rows
from trimtab.cli.rows import table, table_console
from trimtab.client import Client
from trimtab.local import read_endpoints

__all__ = ["status"]

_TIMEOUT_S = 3.0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@directory_option
@release_options
@credential_options
def status(
    directory: Path,
    as_json: bool,
    release: str | None,
    namespace: str | None,
    kubeconfig: Path | None,
    context: str | None,
    **credentials: Any,
) -> None:
    """Services, replicas, versions, lag and queue; runs and their state. Of local services, or of a release.

    A release is read by your kubeconfig, from anywhere: pods by the Kubernetes API, versions and load through its
    port-forward. Without --token-file the token is read from the Secret that the chart made for clients. Ends with 1
    where a replica refuses the token.
    """
    if release is None:
        found = _local_status(directory, partial(Client, timeout_s=_TIMEOUT_S, **credentials_of(**credentials)))
        tables = {"replicas": ("service", "address", *SERVED_COLUMNS), "runs": RUN_COLUMNS}
    else:
        cluster = Release(release, namespace=namespace, kubeconfig=kubeconfig, context=context)
        known = credentials_of(**credentials)
        found = status_of(cluster, token=known["token"], tls=known["tls"])
        tables = {"components": COMPONENT_COLUMNS, "pods": POD_COLUMNS, "runs": RUN_COLUMNS}
    if as_json:
        click.echo(json.dumps(found))
    else:
        _print(found, tables)
    if any(row["state"] == REFUSED for row in found["replicas" if release is None else "pods"]):
        sys.exit(1)


def _local_status(directory: Path, connect: Connect) -> dict[str, Any]:
    endpoints = read_endpoints(directory)
    replicas = [
        {"service": service, "address": one["grpc"], **replica_row(one["grpc"], connect)}
        for service, ones in endpoints.items()
        for one in ones
    ]
    trainers = endpoints.get("trainer", [])
    runs, note = run_rows(trainers[0]["grpc"], connect) if trainers else ([], "")
    return {"replicas": replicas, "runs": runs, "notes": [note] if note else []}


def _print(found: dict[str, Any], tables: dict[str, tuple[str, ...]]) -> None:
    """The tables, each followed by the notes of its rows, then what is said of all."""
    console = table_console()
    for name, columns in tables.items():
        rows = found[name]
        console.print(table(columns, rows))
        for row in rows:
            if row.get("note"):
                subject = row.get("pod") or f"{row['service']} at {row['address']}"
                console.print(f"{subject}: {row['note']}", markup=False, highlight=False)
        console.print()
    for note in found["notes"]:
        console.print(note, markup=False, highlight=False)
