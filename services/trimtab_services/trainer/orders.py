"""Checkpoint orders on their way to a run: what was acknowledged to the caller reaches the run, whatever breaks.

An order lies in the event store. It goes out once on each report stream, and is settled only when the run has
certainly had it, so one whose stream broke goes out again on the next. The cost of that is at most a second checkpoint.
"""

from __future__ import annotations

import time

from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.events import EventStore

__all__ = ["CheckpointOrders"]

_ON_ITS_WAY_S = 2.0
"""A step reported later than this after an order went out was ended by a run that had read it; an earlier report may
have crossed it on the way."""


class CheckpointOrders:
    """The checkpoint orders of one run on one report stream.

    Args:
        store: where the orders are kept.
        name: the run.
    """

    def __init__(self, store: EventStore, name: str) -> None:
        self._store = store
        self._name = name
        self._sent = 0
        self._sent_at = 0.0

    def settle(self, event: pb.RunEvent) -> None:
        """Forgets what was sent, where the event shows that a checkpoint of the run came after it."""
        if _ends_with_checkpoint(event):
            self._store.settle_checkpoint_orders(self._name, self._store.checkpoint_order(self._name))
        elif event.HasField("step_done") and self._sent and time.monotonic() - self._sent_at > _ON_ITS_WAY_S:
            self._store.settle_checkpoint_orders(self._name, self._sent)
            self._sent = 0

    def take(self) -> bool:
        """Whether an order is there that did not go out on this stream; it counts as sent from now on."""
        number = self._store.checkpoint_order(self._name)
        if number <= self._sent:
            return False
        self._sent, self._sent_at = number, time.monotonic()
        return True


def _ends_with_checkpoint(event: pb.RunEvent) -> bool:
    return event.HasField("run_ended") and event.run_ended.state != pb.RUN_STATE_FAILED
