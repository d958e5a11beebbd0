"""What a stage is given: its spec, its folders, what earlier stages made, and a way to tell and to be told.

A stage is a function `(context, config) -> StageResult`. It goes on from `context.checkpoints.load_latest()` and ends
every step with `context.after_step`, which reports, saves a checkpoint when one is due, and stops the stage when asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trimtab.errors import ConfigError, TrainingDiverged, TrimtabError
from trimtab_trainer.checkpoint import CheckpointStore, Snapshot
from trimtab_trainer.config import MINIATURE, STAGES, RunSpec, StageName
from trimtab_trainer.reporter import Reporter, RolloutSample

__all__ = ["Orders", "StageContext", "StageResult", "StageStopped"]


class StageStopped(Exception):
    """No error: the stage ended early on request, with its checkpoint on disk."""


class Orders:
    """What a running run is asked to do: by signals, by the trainer service or by a test, from any thread."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._checkpoint = threading.Event()
        self._failure: TrimtabError | None = None

    def stop(self) -> None:
        """Finish the step, write a checkpoint, end."""
        self._stop.set()

    def checkpoint(self) -> None:
        """Write a checkpoint after the step."""
        self._checkpoint.set()

    def fail(self, error: TrimtabError) -> None:
        """End with an error that the stage itself cannot meet, such as another process of the run that is gone."""
        self._failure = error

    @property
    def stop_asked(self) -> bool:
        """Whether `stop` was called.

        Raises:
            TrimtabError: that of `fail`.
        """
        if self._failure is not None:
            raise self._failure
        return self._stop.is_set()

    def take_checkpoint_order(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        asked = self._checkpoint.is_set()
        self._checkpoint.clear()
        return asked


@dataclass(frozen=True)
class StageResult:
    """What a stage hands on.

    Attributes:
        model: Hugging Face folder, relative to the run's folder; None when the stage makes no model.
        metrics: figures of the whole stage.
        details: anything else for the report and for later stages; JSON values only.
        version: version published at its end; 0 when none was.
    """

    model: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    version: int = 0


@dataclass
class StageContext:
    """What one stage is given.

    Attributes:
        spec: the whole run.
        stage: its name.
        reporter: takes its events.
        checkpoints: its own checkpoints.
        results: what the stages before it handed on.
        orders: what it is asked to do.
    """

    spec: RunSpec
    stage: StageName
    reporter: Reporter
    checkpoints: CheckpointStore
    results: Mapping[str, StageResult]
    orders: Orders

    @property
    def device(self) -> torch.device:
        """Where models of the run live."""
        return torch.device(self.spec.device)

    @property
    def models(self) -> Path:
        """DIR/models/<stage>: where the stage saves Hugging Face folders."""
        return self.spec.directory / "models" / self.stage

    def seed(self, own: int | None = None) -> int:
        """The stage's seed: its own where the spec gives one, else the run's."""
        return self.spec.seed if own is None else own

    def resolve_model(self, reference: str, *, key: str = "initial_model") -> Path:
        """The folder that a model reference means (see `config`).

        Raises:
            ConfigError: the stage has not run, it makes no model, or there is no such folder.
        """
        first, _, rest = reference.partition("/")
        if reference == "base":
            folder = Path(self.base_model)
        elif first in STAGES and not rest:
            result = self.results.get(first)
            if result is None or result.model is None:
                raise ConfigError(
                    f"{self.stage}.{key}: {reference!r}: stage {first} has made no model; done so far: "
                    f"{', '.join(self.results) or 'none'}",
                    field=f"{self.stage}.{key}",
                    value=reference,
                )
            folder = self.spec.directory / result.model
        elif first in STAGES:
            folder = self.spec.directory / "models" / reference
        else:
            folder = Path(reference)
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"{self.stage}.{key}: {reference!r} means {folder}, which is no model folder (it has no config.json)",
                field=f"{self.stage}.{key}",
                value=reference,
            )
        return folder

    @property
    def base_model(self) -> str:
        """Folder of the base model: what `pretrain` made where it ran, else the spec's `model`."""
        if "pretrain" in self.results and (made := self.results["pretrain"].model):
            return str(self.spec.directory / made)
        return self.untrained_model

    @property
    def untrained_model(self) -> str:
        """Folder of the spec's `model`; the miniature's is written by the run to DIR/models/untrained."""
        made = self.spec.directory / "models" / "untrained"
        return str(made) if self.spec.model == MINIATURE else self.spec.model

    def relative(self, folder: Path) -> str:
        """A folder of the run as `StageResult.model` wants it."""
        return str(folder.relative_to(self.spec.directory))

    def warn(self, text: str, step: int = 0) -> None:
        """A warning of this stage."""
        self.reporter.warn(text, stage=self.stage, step=step)

    def after_step(
        self,
        step: int,
        total_steps: int,
        every: int,
        capture: Callable[[], Snapshot],
        *,
        metrics: Mapping[str, float],
        samples: Sequence[RolloutSample] = (),
    ) -> None:
        """Ends a step: reports it, saves a checkpoint when one is due or asked for, and stops when asked to.

        Args:
            step: steps done, from 1.
            total_steps: of the stage; 0 when not known.
            every: steps between two checkpoints.
            capture: makes the snapshot; called only when one is saved.
            metrics: figures of the step.
            samples: of its rollouts, for people.

        Raises:
            StageStopped: a stop was asked for; the checkpoint is on disk.
        """
        self.reporter.step_done(self.stage, step, total_steps, metrics, samples)
        asked = self.orders.take_checkpoint_order()
        stop = self.orders.stop_asked
        if asked or stop or step % every == 0 or step == total_steps:
            self.checkpoints.save(capture())
        if stop:
            raise StageStopped(f"{self.stage} was asked to stop after step {step}")

    @contextmanager
    def saving_batch(self, step: int, batch: Callable[[], Mapping[str, Tensor]]) -> Iterator[None]:
        """Saves the batch when the body raises TrainingDiverged, and names the file in the error's metadata `batch`."""
        try:
            yield
        except TrainingDiverged as error:
            path = self.spec.directory / "diverged" / f"{self.stage}-step-{step}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: t.detach().to("cpu", copy=True).contiguous() for name, t in batch().items()}, path)
            raise TrainingDiverged(
                f"{self.stage}: step {step}: {error.message}; the batch is in {path}",
                field=error.field,
                value=error.value,
                limit=error.limit,
                metadata={**error.metadata, "batch": str(path)},
            ) from error
