"""A replica on another host whose packets are lost: told in a stated time, its work done elsewhere, and it is back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from networks import OtherHost, other_host
from processes import ServiceProcess, serving
from tiny_models import make_policy, make_tokenizer
from trimtab import AsyncClient
from trimtab.client import Client
from trimtab.resolver import StaticResolver
from trimtab.types import SamplingParams, VersionRequirement
from trimtab_models.loading import load_policy, save_model
from trimtab_models.tokenizer import load_tokenizer
from trimtab_models.versions import publish_model
from trimtab_trainer.fleet import SILENT_S, Fleet
from trimtab_trainer.rollout_work import RolloutPrompt
from trimtab_trainer.rollouts import Rollout, RolloutDispatcher

pytestmark = pytest.mark.slow

CHANNEL = "policy/latest"
TOKENS = 160
PROMPTS = [RolloutPrompt(str(number), (5, 6, 7 + number), seed=number) for number in range(24)]


@pytest.fixture
def host() -> Iterator[OtherHost]:
    with other_host() as made:
        yield made


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    tokenizer, folder = make_tokenizer(), tmp_path / "policy"
    save_model(make_policy("llama", len(tokenizer), hidden=128, layers=6), tokenizer, folder)
    return folder


def until(condition: Callable[[], bool], *, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def publish(store: Client, folder: Path) -> int:
    return publish_model(store, load_policy(folder), load_tokenizer(folder), channels=[CHANNEL]).version


def served(replica: ServiceProcess) -> int:
    with replica.client() as client:
        models = client.info(timeout_s=10).models
    return models[0].served.version if models else 0


class Dispatch:
    """A dispatcher over some replicas, and what it told."""

    def __init__(self, *replicas: ServiceProcess) -> None:
        self.told: list[str] = []
        self._addresses = [replica.target for replica in replicas]
        self.dispatcher = RolloutDispatcher(self._fleets, timeout_s=170)

    def collect(self, fault: Callable[[], None] = lambda: None) -> tuple[list[Rollout], float]:
        """The fault happens once the work is under way."""
        sampling = SamplingParams(max_new_tokens=TOKENS, min_new_tokens=TOKENS)
        began = time.monotonic()
        pending = self.dispatcher.submit(PROMPTS, sampling, VersionRequirement(at_least=1), score=False)
        time.sleep(0.7)
        assert not pending.done()
        fault()
        return pending.result(), time.monotonic() - began

    def _fleets(self) -> tuple[Fleet, Fleet, Fleet]:
        def fleet(name: str, addresses: list[str]) -> Fleet:
            return Fleet(name, StaticResolver(addresses), AsyncClient, tell=self.told.append)

        return fleet("generation", self._addresses), fleet("reward", []), fleet("reference", [])


def test_a_host_whose_packets_are_lost_is_told_and_comes_back(tmp_path: Path, policy: Path, host: OtherHost) -> None:
    reachable = {"host": host.here, "insecure": True, "store": str(tmp_path / "store")}
    with serving("weights", tmp_path / "weights", **reachable) as weights, weights.client() as store:
        assert publish(store, policy) == 1
        source = {"address": weights.target, "channel": CHANNEL}
        settings = {"weights": source, "slots": 4, "deterministic": True, "threads": 1}
        there = {**settings, "host": host.address, "insecure": True}
        with (
            serving("generation", tmp_path / "near", **settings) as near,
            serving("generation", tmp_path / "far", within=host.within, **there) as far,
        ):
            until(lambda: served(near) == served(far) == 1)
            dispatch = Dispatch(near, far)
            healthy, healthy_s = dispatch.collect()
            assert dispatch.told == []

            rollouts, seconds = dispatch.collect(fault=host.cut)
            assert [one.token_ids for one in rollouts] == [one.token_ids for one in healthy]
            assert seconds < 4 * healthy_s + SILENT_S
            until(lambda: len(dispatch.told) > 0, within_s=SILENT_S + 5)
            assert dispatch.told[0].startswith(f"generation at {far.target}: ")
            assert "silent during generation" in dispatch.told[0] or "cannot be reached" in dispatch.told[0]

            assert publish(store, policy) == 2  # the same weights, by another number
            until(lambda: served(near) == 2)
            host.mend()
            until(lambda: served(far) == 2)
            again, _ = dispatch.collect()
            assert [one.token_ids for one in again] == [one.token_ids for one in healthy]
            assert f"generation at {far.target} is back" in dispatch.told
            dispatch.dispatcher.close()
