"""Ranks that die, fail, hang, are asked to stop or never come: the others end in bounded time, and say who it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rank_calls import TooLarge, fail_on, freeze, interrupt, kill
from trimtab.errors import ConfigError, Unavailable
from trimtab_trainer import ranks
from trimtab_trainer.config import RunSpec
from trimtab_trainer.context import Orders
from trimtab_trainer.places import Place

TESTS = Path(__file__).parents[1]
ENDS_WITHIN_S = 60
"""Bound of every wait below; most take a second or two where nothing else keeps the machine busy."""

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))


def spec(directory: Path, **changes: Any) -> RunSpec:
    fields = {"name": "r", "directory": directory, "model": "base", "stages": ["sft"], "data_directory": directory}
    return RunSpec.model_validate({**fields, "threads": 1, **changes})


def leading(directory: Path, size: int = 2, orders: Orders | None = None, **changes: Any) -> Any:
    place = Place.of({}, processes=size)
    assert place is not None
    follower = [sys.executable, "-m", "trimtab", "run", "-"]
    return ranks.leading(place, orders or Orders(), spec(directory, **changes), start=follower)


def test_the_error_of_one_rank_ends_all_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"rank 2 of 3 \(.*, process \d+\): TooLarge: tried to allocate 9.00 GiB"):
        with leading(tmp_path, 3):
            began = time.monotonic()
            fail_on(2)
    assert time.monotonic() - began < ENDS_WITHIN_S


def test_the_error_of_rank_0_is_itself_and_ends_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TooLarge):
        with leading(tmp_path):
            fail_on(0)
    assert "rank 1 ends: rank 0 of 2" in (told := capfd.readouterr().err) and "TooLarge: tried to allocate" in told


def test_a_rank_that_is_killed_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"rank 1 of 2 \(.*, process \d+\) was killed by SIGKILL"):
        with leading(tmp_path):
            began = time.monotonic()
            kill(1)
    assert time.monotonic() - began < ENDS_WITHIN_S


@pytest.mark.slow
def test_a_rank_that_hangs_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "SILENCE_S", 20.0)
    with pytest.raises(Unavailable, match=r"rank 1 of 2 \(.*, process \d+\) has been silent for 20 s"):
        with leading(tmp_path):
            freeze(1)


def test_a_lost_rank_ends_rank_0_in_whatever_it_waits_for(tmp_path: Path) -> None:
    """As in the rollouts of PPO, when no rank is at a collective."""
    orders, others = Orders(), set(children())
    with pytest.raises(Unavailable, match="was killed by SIGKILL"):
        with leading(tmp_path, orders=orders):
            (child,) = set(children()) - others
            os.kill(child, signal.SIGKILL)
            give_up = time.monotonic() + ENDS_WITHIN_S
            while not orders.stop_asked and time.monotonic() < give_up:
                time.sleep(0.1)


def test_a_stop_that_any_rank_is_asked_for_is_one_of_the_run(tmp_path: Path) -> None:
    orders = Orders()
    with leading(tmp_path, orders=orders):
        interrupt(1)
        give_up = time.monotonic() + ENDS_WITHIN_S
        while not orders.stop_asked and time.monotonic() < give_up:
            time.sleep(0.1)
    assert orders.stop_asked


def test_a_rank_that_does_not_come_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "JOIN_TIMEOUT_S", 2.0)
    place = Place.of({}, processes=3)
    assert place is not None
    with pytest.raises(Unavailable, match=r"rank 1, 2 of 3 did not come to 127.0.0.1:\d+ within 2 s"):
        with ranks.leading(place, Orders(), spec(tmp_path)):
            pytest.fail("it went on alone")


def test_a_device_that_names_one_gpu_is_none_for_several_ranks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device: cuda:1 is one GPU, and the run has 2 processes"):
        with leading(tmp_path, device="cuda:1"):
            pytest.fail("it went on")


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is 4, so RANK, MASTER_ADDR, MASTER_PORT must be set too"),
        ({"WORLD_SIZE": "4", "RANK": "4"}, "RANK is 4; allowed by WORLD_SIZE: 0..3"),
        ({"WORLD_SIZE": "4", "RANK": "one"}, "RANK is 'one'; allowed: a number"),
    ],
)
def test_an_environment_that_makes_no_sense(environment: dict[str, str], told: str) -> None:
    rest = {"MASTER_ADDR": "node-0", "MASTER_PORT": "29500"} if "RANK" in environment else {}
    with pytest.raises(ConfigError, match=told):
        Place.of({**environment, **rest})


def test_the_environment_of_torchrun_says_where_one_is() -> None:
    place = Place(3, 8, 1, 2, "node-0", 29500)
    assert Place.of(place.environment()) == place
    assert Place.of({**place.environment(), "TORCHELASTIC_USE_AGENT_STORE": "True"}) != place
    assert Place.of({}) is None and Place.of({"WORLD_SIZE": "1", "RANK": "0"}) is None
    with pytest.raises(ConfigError, match="processes: 2, but WORLD_SIZE is 8"):
        Place.of(place.environment(), processes=2)


def children() -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]
