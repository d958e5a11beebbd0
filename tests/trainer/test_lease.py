"""The lease of a run on its channels, beside a real weights service that dies and comes back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trimtab.client import Client
from trimtab.errors import LeaseHeld, Unavailable
from trimtab.local import LocalServices, read_endpoints
from trimtab.v1 import weights_pb2
from trimtab_trainer import lease
from trimtab_trainer.lease import LeaseKeeper

TTL_S = 2.0
PREFIX = "policy/"


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    alone = {"generation": 0, "reward": 0, "reference": 0, "trainer": 0}
    with LocalServices(tmp_path_factory.mktemp("services"), replicas=alone) as running:
        yield running


@pytest.fixture
def weights(services: LocalServices, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(lease, "_TTL_S", TTL_S)
    monkeypatch.setattr(lease, "_RENEW_S", TTL_S / 4)
    with Client(read_endpoints(services.directory)["weights"][0]["grpc"], timeout_s=10) as client:
        yield client


def keeper(weights: Client, run: str = "one") -> LeaseKeeper:
    return LeaseKeeper(weights, PREFIX, run, tell=lambda text: None, pause=time.sleep)


def kill(services: LocalServices) -> None:
    os.kill(read_endpoints(services.directory)["weights"][0]["pid"], signal.SIGKILL)


def eventually(check: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            check()
            return
        except Unavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_lease_that_ran_out_while_the_service_was_away_is_taken_again(
    services: LocalServices, weights: Client
) -> None:
    held = keeper(weights)
    before = held.lease_id
    pid = read_endpoints(services.directory)["weights"][0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(TTL_S + 0.5)
    os.kill(pid, signal.SIGCONT)
    eventually(held.check)
    assert held.lease_id != before
    time.sleep(TTL_S + 0.5)  # and is renewed from then on
    taken = held.lease_id
    held.check()
    assert held.lease_id == taken
    held.close()


def test_what_somebody_else_has_taken_meanwhile_is_lost(weights: Client) -> None:
    held = keeper(weights)
    weights.release_lease(weights_pb2.ReleaseLeaseRequest(lease_id=held.lease_id))  # as good as run out
    other = keeper(weights, run="other")
    time.sleep(TTL_S + 0.5)
    with pytest.raises(LeaseHeld, match="'other on"):
        held.check()
    held.close()
    other.check()
    other.close()


def test_a_service_that_dies_while_a_lease_is_waited_for(services: LocalServices, weights: Client) -> None:
    left_behind = weights_pb2.AcquireLeaseRequest(channel_prefix=PREFIX, holder="one on another host", ttl_ms=8_000)
    weights.acquire_lease(left_behind)
    waits: list[str] = []

    def pause(seconds: float) -> None:
        if len(waits) == 1:
            kill(services)
        waits.append("")
        time.sleep(seconds)

    taken = LeaseKeeper(weights, PREFIX, "one", tell=lambda text: None, pause=pause)
    assert len(waits) > 3
    taken.check()
    taken.close()


def test_the_next_life_of_a_run_goes_on_with_its_lease_at_once(weights: Client, tmp_path: Path) -> None:
    def life(run: str, kept_in: Path) -> LeaseKeeper:
        return LeaseKeeper(weights, PREFIX, run, kept_in=kept_in, tell=lambda text: None, pause=refuse_to_wait)

    def refuse_to_wait(seconds: float) -> None:
        raise AssertionError("waited for the lease of the life before")

    killed = life("one", tmp_path / "lease")
    killed._stop.set()  # as a killed process leaves it: nothing renewed, nothing given back
    assert (tmp_path / "lease").stat().st_mode & 0o777 == 0o600
    resumed = life("one", tmp_path / "lease")
    assert resumed.lease_id == killed.lease_id
    with pytest.raises(LeaseHeld):
        life("two", tmp_path / "other")
    resumed.close()
    assert not (tmp_path / "lease").exists()
    life("two", tmp_path / "other").close()
