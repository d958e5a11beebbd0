"""A run: its stages in order, each done once, and what makes it survive being stopped or killed.

The run's folder:

    spec.yaml                  the whole spec, defaults included
    state.json                 state of the run, what each finished stage handed on, seconds spent
    events.jsonl               every event (`reporter`)
    checkpoints/STAGE/         checkpoints of a stage (`checkpoint`)
    models/STAGE/...           Hugging Face folders that a stage made; models/untrained is the miniature's base
    data/                      the miniature's datasets
    labels/                    copies of labeling projects that are datasets of the run
    diverged/                  batches that ended a run with a value that is not finite

A stage is a function `(context, config) -> StageResult`, found by name in `STAGE_FUNCTIONS` and imported when its turn
comes. SIGINT and SIGTERM let the step end, save a checkpoint and end the run as STOPPED; a second one ends it at once.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from trimtab.errors import ConfigError, CorruptData, FailedPrecondition, Mismatch, TrimtabError
from trimtab_trainer.checkpoint import CheckpointStore, write_file_atomically
from trimtab_trainer.checkpoint_tensors import check_seen_by_all
from trimtab_trainer.config import MINIATURE, RunSpec, StageName, load_run_spec, spec_to_yaml
from trimtab_trainer.context import Orders, StageContext, StageResult, StageStopped
from trimtab_trainer.data.labeling import copy_labels
from trimtab_trainer.distributed import ranks
from trimtab_trainer.memory import telling_full_memory
from trimtab_trainer.optimization import compute_environment
from trimtab_trainer.reporter import Reporter, RunState

__all__ = ["STAGE_FUNCTIONS", "RunOutcome", "StageFunction", "begins_anew", "check_same_spec", "read_outcome", "run"]

StageFunction = Callable[[StageContext, Any], StageResult]

STAGE_FUNCTIONS: Mapping[StageName, str] = {
    "pretrain": "trimtab_trainer.pretrain:pretrain",
    "sft": "trimtab_trainer.sft:train",
    "collect_rankings": "trimtab_trainer.collect_rankings:collect",
    "reward_model": "trimtab_trainer.reward_model:train",
    "reward_model_folds": "trimtab_trainer.reward_model_folds:train",
    "sft_baseline": "trimtab_trainer.sft_baseline:choose",
    "ppo": "trimtab_trainer.ppo:train",
    "ppo_without_ptx": "trimtab_trainer.ppo_controls:train_without_ptx",
    "ppo_without_kl": "trimtab_trainer.ppo_controls:train_without_kl",
    "ptx_control": "trimtab_trainer.ptx_control:train",
    "dpo": "trimtab_trainer.dpo:train",
    "evaluate": "trimtab_trainer.evaluate:evaluate",
}
"""Where each stage's function is, `module:function`; imported only when the stage runs."""

_FORMAT = 1


@dataclass
class RunOutcome:
    """What state.json holds.

    Attributes:
        state: RUNNING while a process works at it (or was killed).
        results: what each finished stage handed on.
        seconds: wall time spent in each stage, over all resumes.
        stage: the one under way or last begun.
        error: of a FAILED run.
        environment: facts that a deterministic resume must find again.
    """

    state: RunState = RunState.RUNNING
    results: dict[str, StageResult] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    stage: str = ""
    error: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def run(
    spec: RunSpec,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    orders: Orders | None = None,
    functions: Mapping[StageName, str | StageFunction] = STAGE_FUNCTIONS,
    on_success: Callable[[Path], object] = lambda directory: None,
) -> RunOutcome:
    """Executes a run's stages in order.

    Args:
        spec: what to do. When resuming it must equal the spec of the run's folder, services aside.
        resume: goes on where the folder's run was stopped or killed; stages done stay done.
        reporter: takes the events; None makes one.
        orders: asks for a stop or a checkpoint from outside.
        functions: the stages, by name.
        on_success: called with the run's folder once all stages are done, before the end of the run is told.

    Returns:
        SUCCEEDED, or STOPPED when it was asked to stop (the CLI's exit code is then 130).

    Raises:
        ConfigError: the device is not there; the folder holds a run already, or none to resume, or one with another
            spec.
        FailedPrecondition: resumed, and there is nothing left to do; or another process works in the folder.
        Mismatch: a deterministic run is resumed with another thread count, device or torch.
        TrimtabError: whatever ended the run as FAILED.
    """
    _check_device(spec)
    orders = orders or Orders()
    with _only_process_in(spec.directory), compute_environment(threads=spec.threads, deterministic=spec.deterministic):
        outcome = _continue(spec) if resume else _begin(spec)
        own_reporter = reporter is None
        reporter = reporter or Reporter(spec.directory)
        try:
            with _stopped_by_signals(orders):
                return _execute(spec, outcome, reporter, orders, functions, on_success)
        finally:
            if own_reporter:
                reporter.close()


def read_outcome(directory: Path) -> RunOutcome:
    """Reads DIR/state.json.

    Raises:
        ConfigError: there is no run in this folder.
        CorruptData: the file is not what `run` writes.
    """
    path = directory / "state.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        results = {stage: StageResult(**result) for stage, result in record.pop("results").items()}
        record.pop("format")
        return RunOutcome(**{**record, "state": RunState(record["state"])}, results=results)
    except FileNotFoundError:
        raise ConfigError(f"{directory}: no run in this folder (it has no state.json)", field="directory") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptData(f"{path}: not the state of a run: {error}", field="state.json") from error


def begins_anew(directory: Path) -> bool:
    """Whether a run may begin in this folder: there is none, or it failed before it had anything to lose.

    Raises:
        CorruptData: as `read_outcome`.
    """
    if not (directory / "state.json").exists():
        return True
    before = read_outcome(directory)
    return before.state is RunState.FAILED and not before.results and not any((directory / "checkpoints").rglob("*.*"))


def check_same_spec(spec: RunSpec) -> None:
    """Compares a spec with that of the run in its folder.

    Raises:
        ConfigError: they differ in more than services and who watches; names what differs.
    """
    before = load_run_spec(spec.directory / "spec.yaml")
    # where the services are and who watches may change; anything else would make it another run
    same = RunSpec.model_fields.keys() - {"services", "tensorboard", "wandb"}
    changed = [key for key in RunSpec.model_fields if key in same and getattr(before, key) != getattr(spec, key)]
    if changed:
        differing = _differing(before.model_dump(include=set(changed)), spec.model_dump(include=set(changed)))
        key, (was, now) = next(iter(differing.items()))
        others = ", ".join([*differing][1:])
        raise ConfigError(
            f"{key}: the run in {spec.directory} was started with another value: {was!r}, and {now!r} now"
            f"{f'; so were {others}' if others else ''}. Resume with the spec it has, or start a new run in another "
            "folder",
            field=key,
            value=now,
            limit=was,
        )


def _execute(
    spec: RunSpec,
    outcome: RunOutcome,
    reporter: Reporter,
    orders: Orders,
    functions: Mapping[StageName, str | StageFunction],
    on_success: Callable[[Path], object],
) -> RunOutcome:
    directory = spec.directory
    try:
        check_seen_by_all(directory.resolve())
        _prepare(spec, reporter, orders)
        for stage in spec.stages:
            if stage in outcome.results:
                continue
            outcome.stage = stage
            _write(directory, outcome)
            _run_stage(spec, stage, outcome, reporter, orders, functions[stage])
            _write(directory, outcome)
            if orders.stop_asked and stage != spec.stages[-1]:
                raise StageStopped(f"asked to stop after {stage}")
        on_success(directory)
    except StageStopped:
        outcome.state = RunState.STOPPED
    except BaseException as error:  # state and events say how it ended, whatever it was
        outcome.state = RunState.FAILED
        outcome.error = error.message if isinstance(error, TrimtabError) else f"{type(error).__name__}: {error}"
        _write(directory, outcome)
        reporter.run_ended(outcome.state, outcome.error)
        raise
    else:
        outcome.state = RunState.SUCCEEDED
    _write(directory, outcome)
    reporter.run_ended(outcome.state)
    return outcome


def _run_stage(
    spec: RunSpec,
    stage: StageName,
    outcome: RunOutcome,
    reporter: Reporter,
    orders: Orders,
    function: str | StageFunction,
) -> None:
    config = spec.stage_config(stage)
    checkpoints = CheckpointStore(
        spec.directory / "checkpoints" / stage,
        keep=getattr(config, "keep_checkpoints", 2),
        warn=lambda text: reporter.warn(text, stage=stage),
    )
    context = StageContext(spec, stage, reporter, checkpoints, outcome.results, orders)
    began = time.monotonic()
    try:
        with telling_full_memory(stage):
            result = _load(function)(context, config)
    finally:
        outcome.seconds[stage] = outcome.seconds.get(stage, 0.0) + time.monotonic() - began
    outcome.results[stage] = result
    steps = checkpoints.steps()
    reporter.stage_done(stage, steps[-1] if steps else 0, result.metrics, version=result.version)


def _load(function: str | StageFunction) -> StageFunction:
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    found: StageFunction = getattr(importlib.import_module(module), name)
    return found


def _begin(spec: RunSpec) -> RunOutcome:
    if not begins_anew(spec.directory):
        raise ConfigError(
            f"directory: {spec.directory} holds a run already; resume it, or take another folder",
            field="directory",
            value=spec.directory,
        )
    shutil.rmtree(spec.directory / "labels", ignore_errors=True)  # of a run that failed before it had anything to lose
    outcome = RunOutcome(environment=_environment(spec))
    write_file_atomically(spec.directory / "spec.yaml", spec_to_yaml(spec))
    _write(spec.directory, outcome)
    return outcome


def _continue(spec: RunSpec) -> RunOutcome:
    outcome = read_outcome(spec.directory)
    check_same_spec(spec)
    if outcome.state is RunState.SUCCEEDED:
        raise FailedPrecondition(
            f"{spec.directory}: nothing to resume: all stages are done ({', '.join(spec.stages)})",
            field="resume",
            value=spec.directory,
        )
    found = _environment(spec)
    before_that = {"processes": "1", **outcome.environment}
    if spec.deterministic and (odd := {k for k in found if before_that.get(k) != found[k]}):
        key = sorted(odd)[0]
        raise Mismatch(
            f"{key} is {found[key]}; the deterministic run in {spec.directory} was started with "
            f"{before_that.get(key)}, and results depend on it",
            field=key,
            value=found[key],
            limit=before_that.get(key),
        )
    outcome.state, outcome.error = RunState.RUNNING, ""
    return outcome


def _differing(one: Any, other: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Leaves that differ between two dumped specs, by dotted key."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return {} if one == other else {key: (one, other)}
    found: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys((*one, *other)):
        found |= _differing(one.get(name), other.get(name), f"{key}.{name}" if key else name)
    return found


def _check_device(spec: RunSpec) -> None:
    if spec.device.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(spec.device.partition(":")[2] or 0) >= count:
            raise ConfigError(
                f"device: {spec.device}, but this machine shows {count} CUDA devices to torch {torch.__version__}",
                field="device",
                value=spec.device,
                limit=count,
            )


def _environment(spec: RunSpec) -> dict[str, str]:
    return {
        "threads": str(torch.get_num_threads()),
        "device": spec.device,
        "torch": torch.__version__,
        "processes": str(ranks()),
    }


def _write(directory: Path, outcome: RunOutcome) -> None:
    record = {"format": _FORMAT, **asdict(outcome)}
    write_file_atomically(directory / "state.json", json.dumps(record, indent=1, allow_nan=False) + "\n")


def _prepare(spec: RunSpec, reporter: Reporter, orders: Orders) -> None:
    """Copies labels and writes what the miniature's part of the spec asks for, unless they are there."""

    def pause(seconds: float) -> None:
        if orders.stop_asked:
            raise StageStopped("asked to stop while the run waited for the labeling service")
        time.sleep(seconds)

    copy_labels(spec, tell=reporter.message, pause=pause)
    if spec.miniature is None:
        return
    from trimtab_trainer.miniature.files import Sizes, write_datasets
    from trimtab_trainer.miniature.tokenizer import save_base

    data = spec.directory / "data"
    if not (data / "miniature.json").exists():  # written last
        sizes = spec.miniature.model_dump(exclude={"seed", "width"})
        write_datasets(data, seed=spec.miniature.seed, sizes=Sizes(**sizes))
        reporter.message(f"the miniature's datasets are in {data}; its labelers and texts are simulated")
    base = spec.directory / "models" / "untrained"
    if spec.model == MINIATURE and not base.exists():
        partial = base.with_name(".partial-untrained")
        shutil.rmtree(partial, ignore_errors=True)
        save_base(partial, seed=spec.seed % 2**32, width=spec.miniature.width)
        partial.rename(base)


@contextmanager
def _only_process_in(directory: Path) -> Iterator[None]:
    """Holds DIR/.lock, which the system frees when the process ends in whatever way."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(
                f"{directory}: another process works at this run", field="directory", value=directory
            ) from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _stopped_by_signals(orders: Orders) -> Iterator[None]:
    """Makes the first SIGINT or SIGTERM a stop order; the second acts as it did before. Main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        orders.stop()
        signal.signal(number, before[number] if before[number] is not None else signal.SIG_DFL)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
