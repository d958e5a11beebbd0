"""A run: stages in order and once each, stopped, killed and resumed, and every way to refuse it."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from trimtab.errors import ConfigError, CorruptData, FailedPrecondition, Mismatch, TrainingDiverged
from trimtab_trainer.checkpoint import Snapshot
from trimtab_trainer.config import RunSpec, StageName
from trimtab_trainer.context import Orders, StageContext, StageResult
from trimtab_trainer.reporter import Reporter, RunState, read_events, step_metrics
from trimtab_trainer.run import StageFunction, read_outcome, run

STEPS = 6


def spec(directory: Path, **changes: Any) -> RunSpec:
    fields: dict[str, Any] = {
        "name": "r",
        "directory": directory,
        "model": "base",
        "data_directory": directory,
        "stages": ["sft", "reward_model"],
    }
    return RunSpec.model_validate({**fields, **changes})


class Counting:
    """A stage that counts: small, but with real checkpoints, events and stops."""

    def __init__(self, orders: Orders | None = None, stop_after: int = 0, fail_after: int = 0) -> None:
        self.orders, self.stop_after, self.fail_after = orders, stop_after, fail_after
        self.steps_made: list[int] = []

    def __call__(self, context: StageContext, config: object) -> StageResult:
        snapshot = context.checkpoints.load_latest() or Snapshot(step=0, tensors={"sum": torch.zeros(1)})
        total = snapshot.saved["sum"] if snapshot.step else snapshot.tensors["sum"]
        context.reporter.stage_started(context.stage, STEPS, step=snapshot.step)
        for step in range(snapshot.step + 1, STEPS + 1):
            total = total + step
            self.steps_made.append(step)
            if self.orders and step == self.stop_after:
                self.orders.stop()
            if step == self.fail_after:
                with context.saving_batch(step, lambda: {"ids": torch.arange(3)}):
                    raise TrainingDiverged("loss is nan", field="loss", value="nan")
            context.after_step(
                step, STEPS, 2, lambda s=step, t=total: Snapshot(s, {"sum": t}), metrics={"sum": float(total)}
            )
        return StageResult(metrics={"sum": float(total)}, details={"stages_before": list(context.results)})


def go(spec: RunSpec, first: StageFunction, second: StageFunction, **options: Any) -> Any:
    functions: Mapping[StageName, StageFunction] = {"sft": first, "reward_model": second}
    with Reporter(spec.directory, console=Console(file=io.StringIO())) as reporter:
        return run(spec, reporter=reporter, functions=functions, **options)


def test_stages_run_in_order_and_hand_on(tmp_path: Path) -> None:
    outcome = go(spec(tmp_path), Counting(), Counting())
    assert outcome.state is RunState.SUCCEEDED
    assert outcome.results["reward_model"].details == {"stages_before": ["sft"]}
    assert outcome.results["sft"].metrics == {"sum": 21.0}
    assert read_outcome(tmp_path) == outcome
    kinds = [(e.event.value, e.stage) for e in read_events(tmp_path / "events.jsonl")]
    assert kinds[0] == ("stage_started", "sft")
    assert kinds.index(("stage_done", "sft")) < kinds.index(("stage_started", "reward_model"))
    assert kinds[-1] == ("run_ended", "")
    assert (tmp_path / "spec.yaml").is_file()


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    orders = Orders()
    outcome = go(spec(tmp_path), Counting(), Counting(orders, stop_after=3), orders=orders)
    assert outcome.state is RunState.STOPPED and list(outcome.results) == ["sft"]
    first, second = Counting(), Counting()
    outcome = go(spec(tmp_path), first, second, resume=True)
    assert outcome.state is RunState.SUCCEEDED
    assert first.steps_made == [] and second.steps_made == [4, 5, 6]
    assert outcome.results["reward_model"].metrics == {"sum": 21.0}


def test_a_failed_run_says_why_saves_the_batch_and_repeats_only_what_was_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="sft: step 5: loss is nan") as caught:
        go(spec(tmp_path), Counting(fail_after=5), Counting())
    assert Path(caught.value.metadata["batch"]).is_file()
    assert read_outcome(tmp_path).state is RunState.FAILED
    assert list(read_events(tmp_path / "events.jsonl"))[-1].fields["state"] == "FAILED"
    first = Counting()
    go(spec(tmp_path), first, Counting(), resume=True)
    assert first.steps_made == [5, 6]
    assert step_metrics(tmp_path / "events.jsonl", "sft")[6] == {"sum": 21.0}


def test_a_checkpoint_on_request(tmp_path: Path) -> None:
    orders = Orders()
    orders.checkpoint()

    def saved(context: StageContext, config: object) -> StageResult:
        context.after_step(1, 9, 5, lambda: Snapshot(1), metrics={})
        assert context.checkpoints.steps() == [1]
        context.after_step(2, 9, 5, lambda: Snapshot(2), metrics={})
        assert context.checkpoints.steps() == [1]
        return StageResult()

    go(spec(tmp_path, stages=["sft"]), saved, saved, orders=orders)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_end(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)

    class Signalled(Counting):
        def __call__(self, context: StageContext, config: object) -> StageResult:
            os.kill(os.getpid(), number)
            return super().__call__(context, config)

    stage = Signalled()
    assert go(spec(tmp_path), stage, Counting()).state is RunState.STOPPED
    assert stage.steps_made == [1]
    assert signal.getsignal(number) is before


def test_resume_with_nothing_to_do_is_an_error(tmp_path: Path) -> None:
    go(spec(tmp_path), Counting(), Counting())
    with pytest.raises(FailedPrecondition, match="nothing to resume"):
        go(spec(tmp_path), Counting(), Counting(), resume=True)


def test_resume_without_a_run_and_start_over_a_run_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run in this folder"):
        go(spec(tmp_path), Counting(), Counting(), resume=True)
    go(spec(tmp_path), Counting(), Counting())
    with pytest.raises(ConfigError, match="holds a run already"):
        go(spec(tmp_path), Counting(), Counting())


def test_resume_with_another_spec_names_what_differs(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged):
        go(spec(tmp_path), Counting(fail_after=1), Counting())
    with pytest.raises(ConfigError, match="seed: the run .* was started with another value"):
        go(spec(tmp_path, seed=1), Counting(), Counting(), resume=True)
    moved = spec(tmp_path, services={"endpoints_file": "elsewhere.json"})
    assert go(moved, Counting(), Counting(), resume=True).state is RunState.SUCCEEDED


def test_a_deterministic_resume_wants_the_same_threads(tmp_path: Path) -> None:
    deterministic = spec(tmp_path, deterministic=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with pytest.raises(TrainingDiverged):
            go(deterministic, Counting(fail_after=1), Counting())
        torch.set_num_threads(2)
        with pytest.raises(Mismatch, match="threads is 2"):
            go(deterministic, Counting(), Counting(), resume=True)
    finally:
        torch.set_num_threads(before)
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_folder_of_a_run_that_failed_with_nothing_to_lose_is_free(tmp_path: Path) -> None:
    def broken(context: StageContext, config: object) -> StageResult:
        raise ConfigError("sft.demonstrations: row 3 is broken", field="sft.demonstrations")

    with pytest.raises(ConfigError, match="row 3"):
        go(spec(tmp_path), broken, Counting())
    assert go(spec(tmp_path, seed=1), Counting(), Counting()).state is RunState.SUCCEEDED


def test_one_process_at_a_time(tmp_path: Path) -> None:
    def second(context: StageContext, config: object) -> StageResult:
        with pytest.raises(FailedPrecondition, match="another process works"):
            run(spec(tmp_path), resume=True)
        return StageResult()

    go(spec(tmp_path, stages=["sft"]), second, second)


def test_a_state_that_is_no_state(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("[]")
    with pytest.raises(CorruptData, match="not the state of a run"):
        read_outcome(tmp_path)


def test_model_references(tmp_path: Path) -> None:
    for name in ("outside", "models/sft/epoch-1", "models/sft/epoch-2"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")

    def sft(context: StageContext, config: object) -> StageResult:
        return StageResult(model="models/sft/epoch-2")

    def reward_model(context: StageContext, config: object) -> StageResult:
        assert context.resolve_model("sft") == tmp_path / "models/sft/epoch-2"
        assert context.resolve_model("sft/epoch-1") == tmp_path / "models/sft/epoch-1"
        assert context.resolve_model("base") == tmp_path / "outside"
        assert context.resolve_model(str(tmp_path / "outside")) == tmp_path / "outside"
        for wrong in ("pretrain", "sft/epoch-9", "nowhere"):
            with pytest.raises(ConfigError, match="reward_model.initial_model"):
                context.resolve_model(wrong)
        return StageResult()

    go(spec(tmp_path, model=str(tmp_path / "outside")), sft, reward_model)


def test_full_memory_ends_a_run_with_one_line_and_it_goes_on(tmp_path: Path) -> None:
    class Greedy(Counting):
        def __call__(self, context: StageContext, config: object) -> StageResult:
            super().__call__(context, config)
            return StageResult(metrics={"sum": float(torch.ones(2**46).sum())})

    with pytest.raises(OSError, match="out of memory, .* MiB more were asked for") as caught:
        go(spec(tmp_path), Greedy(), Counting())
    assert caught.value.filename == "sft"
    outcome = read_outcome(tmp_path)
    assert outcome.state is RunState.FAILED and "out of memory" in outcome.error
    again = Counting()
    assert go(spec(tmp_path), again, Counting(), resume=True).state is RunState.SUCCEEDED
    assert again.steps_made == []
