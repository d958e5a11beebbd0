"""Metrics of a run for the tools that people watch experiments with: TensorBoard, and Weights & Biases where asked for.

Both get what events.jsonl gets and are no source of truth: a resumed run writes on, a step done twice appears twice.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError
from trimtab_trainer.config import RunSpec, WandbConfig
from trimtab_trainer.reporter import Event, EventKind, EventSink

__all__ = ["experiment_logs"]


@contextmanager
def experiment_logs(spec: RunSpec) -> Iterator[list[EventSink]]:
    """Sinks for the tools that the spec asks for; closed at the end.

    Raises:
        ConfigError: a tool's package is not installed, or it refuses its configuration.
    """
    sinks: list[_TensorBoard | _Wandb] = []
    try:
        if spec.tensorboard:
            sinks.append(_TensorBoard(spec.directory / "tensorboard"))
        if spec.wandb is not None:
            sinks.append(_Wandb(spec, spec.wandb))
        yield list(sinks)
    finally:
        for sink in sinks:
            sink.close()


class _TensorBoard:
    """Writes DIR/tensorboard: every metric as STAGE/METRIC, messages as text."""

    def __init__(self, folder: Path) -> None:
        self._writer = _package("tensorboardX", "tensorboard", "tensorboardX").SummaryWriter(str(folder))

    def send(self, event: Event) -> None:
        """Takes one event."""
        if event.event is EventKind.STEP_DONE:
            for name, value in event.fields["metrics"].items():
                self._writer.add_scalar(f"{event.stage}/{name}", value, event.step, walltime=event.time)
        elif event.event is EventKind.MESSAGE:
            tag = f"{event.stage or 'run'}/messages"
            self._writer.add_text(tag, event.fields["text"], event.step, walltime=event.time)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """One Weights & Biases run; a resumed run of ours goes on in the same one."""

    def __init__(self, spec: RunSpec, config: WandbConfig) -> None:
        wandb = _package("wandb", "wandb", "trimtab[wandb]")
        try:
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                mode=config.mode,
                name=spec.name,
                id=f"{spec.name}-{spec.seed}",
                resume="allow",
                dir=str(spec.directory),
                config=spec.model_dump(mode="json"),
            )
        except Exception as error:  # its own errors, a missing login among them
            raise ConfigError(f"wandb: {error}", field="wandb", value=config.project) from error
        self._steps: dict[str, str] = {}

    def send(self, event: Event) -> None:
        """Takes one event; each stage counts its own steps."""
        if event.event is not EventKind.STEP_DONE:
            return
        if event.stage not in self._steps:
            self._steps[event.stage] = f"{event.stage}/step"
            self._run.define_metric(f"{event.stage}/*", step_metric=self._steps[event.stage])
        metrics = {f"{event.stage}/{name}": value for name, value in event.fields["metrics"].items()}
        self._run.log({**metrics, self._steps[event.stage]: event.step})

    def close(self) -> None:
        self._run.finish()


def _package(module: str, key: str, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(f"{key}: the package is not installed: pip install '{install}'", field=key) from None
