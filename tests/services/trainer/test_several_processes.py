"""Runs that the local launcher starts on several processes: trained together, stopped and killed whole."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trimtab import Client
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.config import LocalLauncherConfig
from trimtab_services.trainer.launchers.local import kill

from .test_over_grpc import demonstrations, get, process_of, sft, start, trainer_service  # noqa: F401  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TWO = LocalLauncherConfig(processes=2)


def parent_of(pid: int) -> int | None:
    """The parent of a process that still works; None of one that does not."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return int(parent) if state != "Z" else None


def others_of(pid: int) -> set[int]:
    """The processes that a run's process has started."""
    known = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return {one for one in known if parent_of(one) == pid}


def wait_for(condition: Callable[[], object]) -> None:
    """Two processes that import torch at once take their time on a busy machine."""
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def wait_gone(pids: set[int]) -> None:
    wait_for(lambda: all(parent_of(pid) is None for pid in pids))


def wait_state(service: Client, name: str, state: pb.RunState.ValueType) -> pb.Run:
    wait_for(lambda: get(service, name).state == state)
    return get(service, name)


def wait_steps(service: Client, name: str, steps: int) -> None:
    wait_for(lambda: get(service, name).step >= steps)


@pytest.fixture
def spec(llama_folder: Path, demonstrations: Path) -> str:  # noqa: F811
    return sft(llama_folder, demonstrations, epochs=100)


@contextmanager
def pair_at_work(directory: Path, spec: str) -> Iterator[tuple[Client, pb.Run, int, set[int]]]:
    """A service, its run of two processes that has made two steps, and that run's first process and others."""
    with trainer_service(directory, launcher=TWO, start_timeout_s=200) as (_, service):
        run = start(service, "pair", spec)
        wait_steps(service, "pair", 2)
        yield service, run, *processes_of(directory)


def processes_of(directory: Path) -> tuple[int, set[int]]:
    """The first process of the run, and the others."""
    pid = process_of(directory, "pair")
    others = others_of(pid)
    assert others
    return pid, others


def test_a_run_that_is_stopped_goes_on_on_another_number(tmp_path: Path, spec: str) -> None:
    directory = tmp_path / "runs"
    with pair_at_work(directory, spec) as (service, run, pid, others):
        service.stop_run(pb.StopRunRequest(name="pair"))
        wait_state(service, "pair", pb.RUN_STATE_STOPPED)
        wait_gone({pid, *others})
        folder = Path(run.directory)
        assert json.loads((folder / "state.json").read_text())["environment"]["processes"] == "2"
    with trainer_service(directory, start_timeout_s=200) as (_, service):  # one process goes on where two were
        steps = get(service, "pair").step
        service.resume_run(pb.ResumeRunRequest(name="pair"))
        wait_steps(service, "pair", steps + 1)
        assert others_of(process_of(directory, "pair")) == set()
        service.stop_run(pb.StopRunRequest(name="pair"))
        wait_state(service, "pair", pb.RUN_STATE_STOPPED)


def test_one_that_is_lost_ends_the_run_and_a_kill_leaves_none(tmp_path: Path, spec: str) -> None:
    directory = tmp_path / "runs"
    with pair_at_work(directory, spec) as (service, _, pid, others):
        for other in others:
            os.kill(other, signal.SIGKILL)
        assert "rank 1" in wait_state(service, "pair", pb.RUN_STATE_FAILED).error
        wait_gone({pid, *others})
        service.resume_run(pb.ResumeRunRequest(name="pair"))
        wait_state(service, "pair", pb.RUN_STATE_RUNNING)
        pid, others = processes_of(directory)
        kill(pid, "pair")
        wait_gone(others)
        wait_state(service, "pair", pb.RUN_STATE_FAILED)


def test_a_first_process_that_is_killed_alone_leaves_none(tmp_path: Path, spec: str) -> None:
    with pair_at_work(tmp_path / "runs", spec) as (service, _, pid, others):
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        wait_gone(others)
        assert time.monotonic() - began < 30  # by themselves they look for it for a minute
        wait_state(service, "pair", pb.RUN_STATE_FAILED)
