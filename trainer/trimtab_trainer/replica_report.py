"""What a run tells of its replicas: how each was when it was last asked, again and again while the run uses them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice

from trimtab.errors import TrimtabError
from trimtab.v1 import info_pb2
from trimtab.v1 import trainer_pb2 as pb
from trimtab_trainer.fleet import Fleet, Replica

__all__ = ["run_replicas", "tell_replicas"]

_log = logging.getLogger(__name__)

_EVERY_S = 5.0
"""As often as a fleet asks its replicas how they are."""
_MOST_REPLICAS, _MOST_ADDRESS, _MOST_NOTE = 1000, 300, 500
"""What a TrainerService takes (`RunReplicas` in trainer.proto); it refuses all that a run reports beyond that."""


async def tell_replicas(fleets: Sequence[Fleet], tell: Callable[[pb.RunReplicas], None]) -> None:
    """Tells of the replicas every 5 seconds until it is cancelled, and then that none is in use any more.

    Between collections nobody else looks who has come, gone or recovered. A report that fails is logged, once for the
    same error in a row; the next one is tried all the same.

    Args:
        fleets: of the run, on this event loop.
        tell: must not block.
    """
    failure = ""
    try:
        while True:
            try:
                for fleet in fleets:
                    with suppress(TrimtabError):  # whoever needs the fleet is told
                        await fleet.well()
                tell(run_replicas(fleets))
                failure = ""
            except Exception as error:
                if repr(error) != failure:
                    failure = repr(error)
                    _log.exception("the run's replicas are not told of for now")
            await asyncio.sleep(_EVERY_S)
    finally:
        tell(pb.RunReplicas())


def run_replicas(fleets: Sequence[Fleet]) -> pb.RunReplicas:
    """The replicas of all fleets as they are known now; the first thousand."""
    now = time.monotonic()
    rows = (_row(fleet.name, replica, now) for fleet in fleets for replica in fleet.known())
    return pb.RunReplicas(replicas=islice(rows, _MOST_REPLICAS))


def _row(service: str, replica: Replica, now: float) -> pb.RunReplica:
    row = pb.RunReplica(service=service, address=replica.address[:_MOST_ADDRESS], calls=len(replica.calls))
    if replica.seen_at is not None:
        row.seconds_since_answer = now - replica.seen_at
    if replica.info is None:
        row.note = replica.last_error.removeprefix(f"{replica.address}: ")[:_MOST_NOTE]
    if replica.seen is None:
        return row
    row.state = info_pb2.ServiceState.Value(f"SERVICE_STATE_{replica.seen.state}")
    row.waiting_items = replica.seen.load.waiting_items
    row.running_items = replica.seen.load.running_items
    if replica.seen.models:
        model = replica.seen.models[0]
        row.version, row.channel_version = model.served.version, model.channel_version
        row.note = row.note or model.last_swap_error[:_MOST_NOTE]
    return row
