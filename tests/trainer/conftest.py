"""Runs that the trainer's tests share."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from trimtab_trainer.config import RunSpec
from trimtab_trainer.context import Orders
from trimtab_trainer.reporter import Event, EventKind, Reporter
from trimtab_trainer.run import RunOutcome, run


class _StopAfter:
    """A sink that asks for a stop when a step is done."""

    def __init__(self, step: int) -> None:
        self.step, self.orders = step, Orders()

    def send(self, event: Event) -> None:
        if event.event is EventKind.STEP_DONE and event.step == self.step:
            self.orders.stop()


@pytest.fixture(scope="session")
def go() -> Callable[..., RunOutcome]:
    """Runs a spec quietly: `go(spec, resume=False, stop_after=0)`."""

    def go(spec: RunSpec, *, resume: bool = False, stop_after: int = 0) -> RunOutcome:
        sink = _StopAfter(stop_after)
        with Reporter(spec.directory, sinks=[sink], console=Console(file=io.StringIO())) as reporter:
            return run(spec, resume=resume, reporter=reporter, orders=sink.orders)

    return go
