"""A run's events for people: a progress bar with the time left for each stage, a line for everything else.

Where nobody watches a terminal, a line now and then takes the place of the bars.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from trimtab.cli.following import WATCH_S, follow
from trimtab.client import Client
from trimtab.v1 import trainer_pb2 as pb

__all__ = ["RunDisplay", "follow_run", "stage_progress"]

_SHOWN = 4
_SECONDS_BETWEEN_LINES = 10.0
_FIRST = (
    "reward", "held_out_reward", "mean_kl", "held_out_kl", "loss", "held_out_loss", "accuracy", "accuracy_low",
    "accuracy_high", "labeler_agreement", "rankings", "pretraining_loss", "ended_fraction", "completion_tokens",
    "ptx_loss", "explained_variance", "learning_rate", "gradient_norm",
)  # fmt: skip
"""Figures that people look for first, in this order; the rest follows by name."""


def stage_progress(console: Console) -> Progress:
    """Bars with description, steps, times and `figures`, a field of each task.

    Where the terminal is narrow the figures give way, steps and times never do.
    """

    def whole(width: int) -> Column:
        return Column(no_wrap=True, min_width=width)

    return Progress(
        TextColumn("{task.description}", table_column=whole(16)),
        BarColumn(bar_width=16, table_column=whole(16)),
        MofNCompleteColumn(table_column=whole(9)),
        TimeElapsedColumn(table_column=whole(7)),
        TimeRemainingColumn(table_column=whole(7)),
        TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        console=console,
        expand=True,
    )


class RunDisplay:
    """Shows events; a context manager, since a bar must be closed.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = stage_progress(console)
        self._tasks: dict[str, TaskID] = {}
        self._line_at = time.monotonic()

    def __enter__(self) -> RunDisplay:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def show(self, event: pb.RunEvent) -> None:
        """Shows one event."""
        match event.WhichOneof("event"):
            case "stage_started":
                self._begin(event)
            case "step_done":
                self._step(event)
            case "stage_done":
                self._print(f"{event.stage}: {_figures(event.stage_done.metrics, most=8)}")
            case "message":
                prefix = {pb.SEVERITY_WARNING: "warning: ", pb.SEVERITY_ERROR: "error: "}.get(
                    event.message.severity, ""
                )
                self._print(f"{event.stage + ': ' if event.stage else ''}{prefix}{event.message.text}")
            case "run_ended":
                state = pb.RunState.Name(event.run_ended.state).removeprefix("RUN_STATE_")
                self._print(f"run {state}{': ' + event.run_ended.error if event.run_ended.error else ''}")

    def _begin(self, event: pb.RunEvent) -> None:
        if self._console.is_terminal:
            self._bar(event, event.stage_started.total_steps, "")
        else:
            self._print(f"{event.stage}: {f'goes on after step {event.step}' if event.step else 'begins'}")

    def _step(self, event: pb.RunEvent) -> None:
        total, figures = event.step_done.total_steps, _figures(event.step_done.metrics)
        if self._console.is_terminal:
            self._bar(event, total, figures)
        elif time.monotonic() - self._line_at >= _SECONDS_BETWEEN_LINES:
            self._print(f"{event.stage}: step {event.step}{f' of {total}' if total else ''}: {figures}")

    def _bar(self, event: pb.RunEvent, total: int, figures: str) -> None:
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._progress.add_task(event.stage, total=total or None, figures="")
        self._progress.update(
            self._tasks[event.stage], completed=event.step, total=total or None, figures=escape(figures)
        )

    def _print(self, line: str) -> None:
        self._line_at = time.monotonic()
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


def follow_run(client: Client, name: str, display: RunDisplay, *, after_sequence: int = 0) -> None:
    """Shows a run's events until it has ended; a lost connection is made again, and no event is missed or shown twice.

    Raises:
        Unavailable: the service was away for a minute.
        NotFound: no such run.
    """

    def watch() -> Iterator[pb.WatchRunResponse]:
        return client.watch_run(pb.WatchRunRequest(name=name, after_sequence=after_sequence), timeout_s=WATCH_S)

    for reply in follow(watch):  # the service ends the stream only with the run
        after_sequence = reply.event.sequence
        display.show(reply.event)


def _figures(metrics: Mapping[str, float], most: int = _SHOWN) -> str:
    order = {name: place for place, name in enumerate(_FIRST)}
    shown = sorted(metrics.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))[:most]
    return "  ".join(f"{name} {value:.4g}" for name, value in shown)
