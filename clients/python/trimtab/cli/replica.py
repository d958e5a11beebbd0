"""What a replica tells of itself, and the TrainerService of its runs and their replicas: rows of `trimtab status`, of
`trimtab runs status` and of the page for runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trimtab.client import Client
from trimtab.errors import PermissionDenied, TrimtabError, Unauthenticated
from trimtab.types import ServiceState
from trimtab.v1 import info_pb2
from trimtab.v1 import trainer_pb2 as pb

__all__ = [
    "NOT_ASKED",
    "REFUSED",
    "RUN_COLUMNS",
    "SERVED_COLUMNS",
    "Connect",
    "replica_row",
    "reported_replica_row",
    "run_rows",
]

Connect = Callable[[str], Client]
"""Opens a client of an address, with the deadline of its calls."""

RUN_COLUMNS = ("name", "state", "stage", "step", "error")

SERVED_COLUMNS = ("state", "version", "newest", "lag", "waiting", "running")

NOT_ASKED: dict[str, Any] = dict.fromkeys((*SERVED_COLUMNS, "note"), "")
"""Row of a replica that was not asked."""

REFUSED = "REFUSED"
"""State of a replica that does not take the caller's token."""

_MOST_RUNS = 20
_UNREACHABLE = "UNREACHABLE"


def replica_row(address: str, connect: Connect) -> dict[str, Any]:
    """State, version served, the channel's newest and the lag behind it, load, and a note on what is wrong.

    The lag is newest - version: 0 where it serves what its channel points to, below 0 after a roll-back that it has not
    followed yet.
    """
    try:
        with connect(address) as client:
            info = client.info()
    except (Unauthenticated, PermissionDenied) as error:
        return NOT_ASKED | {"state": REFUSED, "note": error.message}
    except TrimtabError as error:
        return NOT_ASKED | {"state": _UNREACHABLE, "note": error.message}
    row = NOT_ASKED | {"state": info.state.value, "note": info.state_reason}
    row |= {"waiting": info.load.waiting_items, "running": info.load.running_items}
    for model in info.models:
        row |= {"newest": model.channel_version or "", "note": model.last_swap_error or row["note"]}
        if info.state is not ServiceState.WAITING_FOR_VERSION:
            newest = model.channel_version or model.served.version
            row |= {"version": model.served.version, "lag": newest - model.served.version}
    return row


def reported_replica_row(replica: pb.RunReplica) -> dict[str, Any]:
    """A replica as the run that works with it told of it.

    `lag` is as in `replica_row`, None where nothing of a channel is served; `calls` are those of the run that it has
    not answered; `seconds_since_answer` counts at the time of the report, None: it has never answered.
    """
    is_known = replica.state in info_pb2.ServiceState.values()[1:]
    state = info_pb2.ServiceState.Name(replica.state).removeprefix("SERVICE_STATE_") if is_known else _UNREACHABLE
    has_lag = replica.version and replica.channel_version
    return {
        "service": replica.service,
        "address": replica.address,
        "state": state,
        "version": replica.version,
        "lag": replica.channel_version - replica.version if has_lag else None,
        "waiting": replica.waiting_items,
        "running": replica.running_items,
        "calls": replica.calls,
        "seconds_since_answer": replica.seconds_since_answer if replica.HasField("seconds_since_answer") else None,
        "note": replica.note,
    }


def run_rows(address: str, connect: Connect) -> tuple[list[dict[str, Any]], str]:
    """The newest runs of the TrainerService at an address, and a note where they are unknown or not all."""
    try:
        with connect(address) as client:
            page = client.list_runs(pb.ListRunsRequest(page_size=_MOST_RUNS))
    except TrimtabError as error:
        return [], f"runs are unknown: {error.message}"
    rows = [
        {
            "name": run.name,
            "state": pb.RunState.Name(run.state).removeprefix("RUN_STATE_"),
            "stage": run.stage,
            "step": f"{run.step}/{run.total_steps}",
            "error": run.error,
        }
        for run in page.runs
    ]
    return rows, f"there are more runs than the newest {_MOST_RUNS}" if page.next_page_token else ""
