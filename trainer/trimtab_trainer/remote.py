"""Reports a run's events and the state of its replicas to a TrainerService, whatever happens to the connection.

The service acknowledges each event once it is on its disk; after a lost connection the run asks how far it came and
goes on from there. The run never waits for the service: events stay on the run's own disk until the service is back.
The state of the replicas is told as it is now, again on each new connection. Orders (stop, checkpoint) come back on the
same stream.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from trimtab import Client
from trimtab.errors import InvalidRequest, NotFound, TrimtabError
from trimtab.v1 import trainer_pb2 as pb
from trimtab_trainer.context import Orders
from trimtab_trainer.reporter import Event, read_events

__all__ = ["RemoteSink"]

_log = logging.getLogger(__name__)

_STREAM_S = 3600.0
_KEEPALIVE_S = 2.0
_BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)


class RemoteSink:
    """Sends events from a thread of its own; implements `reporter.EventSink`.

    Args:
        client: of the TrainerService.
        run: name of the run there.
        directory: the run's folder; events of an earlier life are read from its events.jsonl.
        orders: told when the service asks for a stop or a checkpoint.
    """

    def __init__(self, client: Client, run: str, directory: Path, orders: Orders) -> None:
        self._client = client
        self._run = run
        self._orders = orders
        self._events: list[Event] = list(read_events(directory / "events.jsonl"))
        self._acknowledged = 0
        self._replicas: pb.RunReplicas | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._send_all, name="report-events", daemon=True)
        self._thread.start()

    def send(self, event: Event) -> None:
        """Takes one event; does not block."""
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def take_replicas(self, replicas: pb.RunReplicas) -> None:
        """Takes the state of the run's replicas, in the place of the one before; does not block."""
        with self._changed:
            self._replicas = replicas
            self._changed.notify_all()

    def close(self, *, timeout_s: float = 10.0) -> bool:
        """Waits until every event is acknowledged; False when the service was not there in time."""
        give_up = time.monotonic() + timeout_s
        with self._changed:
            while self._acknowledged < len(self._events) and time.monotonic() < give_up:
                self._changed.wait(0.1)
            complete = self._acknowledged >= len(self._events)
            self._closing = True
            self._changed.notify_all()
        self._thread.join(2.0)
        self._client.close()
        return complete

    def _send_all(self) -> None:
        failures = 0
        while not self._closing:
            try:
                for reply in self._client.report_events(self._requests(), timeout_s=_STREAM_S):
                    failures = 0
                    self._take(reply)
            except (NotFound, InvalidRequest) as error:
                _log.error("the trainer service refuses the events of this run: %s", error)
                return
            except TrimtabError as error:
                _log.warning("events are not reported for now: %s", error)
            if not self._closing:
                time.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1

    def _requests(self) -> Iterator[pb.ReportEventsRequest]:
        """Hello, then every event after the last acknowledged one; a hello now and then lets orders come back."""
        self._answered = False
        yield pb.ReportEventsRequest(name=self._run)
        sent: int | None = None
        told: pb.RunReplicas | None = None
        while True:
            with self._changed:
                if sent is None:  # the answer to the hello says where to go on
                    while not self._answered and not self._closing:
                        self._changed.wait(0.1)
                    sent = self._acknowledged
                # Every answer wakes this wait; without the condition each hello would bring the next at once.
                self._changed.wait_for(lambda seen=(sent, told): self._has_news(*seen) or self._closing, _KEEPALIVE_S)
                batch = self._events[sent:]
                replicas = self._replicas
                closing = self._closing
            for event in batch:
                yield pb.ReportEventsRequest(event=event.to_message())
            sent += len(batch)
            if closing and not batch:
                return
            if replicas is not told or not batch:
                yield pb.ReportEventsRequest(replicas=replicas if replicas is not told else None)
                told = replicas

    def _has_news(self, sent: int, told: pb.RunReplicas | None) -> bool:
        return sent < len(self._events) or self._replicas is not told

    def _take(self, reply: pb.ReportEventsResponse) -> None:
        with self._changed:
            self._acknowledged = reply.acknowledged_sequence
            self._answered = True
            self._changed.notify_all()
        if reply.stop:
            self._orders.stop()
        if reply.checkpoint:
            self._orders.checkpoint()
