"""Collections over replicas that are slow, silent, killed, drained or new: complete, without doubles, and in time.

The services are processes of their own, so that the faults are real: signals to them, and what the kernel makes of it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from tiny_models import make_policy, make_tokenizer
from trimtab import AsyncClient
from trimtab.client import Client
from trimtab.errors import Unavailable
from trimtab.local import CHANNELS, LocalServices, read_endpoints, request_scale
from trimtab.resolver import FileResolver
from trimtab.types import SamplingParams, ServiceState, VersionRequirement
from trimtab_models.loading import reward_model_from_policy, save_model
from trimtab_models.versions import publish_folder
from trimtab_trainer.fleet import SILENT_S, Fleet
from trimtab_trainer.rollout_work import RolloutPrompt
from trimtab_trainer.rollouts import Rollout, RolloutDispatcher

pytestmark = pytest.mark.alone

MODEL = {"deterministic": True, "threads": 1}
SETTINGS = {"generation": {**MODEL, "slots": 4, "drain_s": 0.2}, "reward": MODEL, "reference": MODEL}
REPLICAS = {"generation": 2, "reward": 2, "reference": 2, "trainer": 0}
TOKENS = 160
SAMPLING = SamplingParams(max_new_tokens=TOKENS, min_new_tokens=TOKENS)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    """Two replicas each of generation, reward and reference, all serving; a sample takes a second or so."""
    tokenizer, models = make_tokenizer(), tmp_path_factory.mktemp("models")
    save_model(make_policy("llama", len(tokenizer), hidden=128, layers=6), tokenizer, models / "policy")
    reward = reward_model_from_policy(models / "policy", tokenizer=tokenizer, seed=1)
    save_model(reward, tokenizer, models / "reward")
    folders = {"generation": "policy", "reward": "reward", "reference": "policy"}
    with LocalServices(tmp_path_factory.mktemp("services"), replicas=REPLICAS, settings=SETTINGS) as running:
        with Client(read_endpoints(running.directory)["weights"][0]["grpc"]) as weights:
            for service, folder in folders.items():
                publish_folder(weights, models / folder, channels=[CHANNELS[service]])
        yield running


@pytest.fixture
def whole(services: LocalServices) -> None:
    """All replicas are there and serve, whatever a test before has done to them."""
    for service in ("generation", "reward", "reference"):
        wait_until(lambda service=service: len(serving(services, service)) == REPLICAS[service])


def prompts_of(count: int) -> list[RolloutPrompt]:
    return [RolloutPrompt(str(n), (5, 6, 7 + n), seed=n, num_samples=2) for n in range(count)]


@dataclass
class Outcome:
    """Of one collection."""

    rollouts: list[Rollout]
    seconds: float
    hedged: int

    @property
    def samples(self) -> dict[tuple[str, int], tuple[int, ...]]:
        return {(one.prompt_id, one.sample_index): one.token_ids for one in self.rollouts}


@dataclass
class Collector:
    """A dispatcher over the services, and what it told."""

    services: LocalServices
    told: list[str] = field(default_factory=list)
    queues: list[tuple[int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dispatcher = RolloutDispatcher(
            self.fleets, timeout_s=170, on_queue=lambda *queue: self.queues.append(queue)
        )

    def collect(self, prompts: int, *, score: bool = False, fault: Callable[[], None] = lambda: None) -> Outcome:
        """Collects two samples of each prompt; the fault happens once the work is under way."""
        given = prompts_of(prompts)
        self.dispatcher.take_hedged()
        began = time.monotonic()
        pending = self.dispatcher.submit(given, SAMPLING, VersionRequirement(), score=score)
        time.sleep(0.7)
        assert not pending.done()
        fault()
        rollouts = pending.result()
        outcome = Outcome(rollouts, time.monotonic() - began, self.dispatcher.take_hedged())
        assert [(one.prompt_id, one.sample_index) for one in rollouts] == [
            (prompt.prompt_id, index) for prompt in given for index in range(2)
        ]
        assert not score or all(one.known_ref_logprobs.shape == (TOKENS,) and one.known_reward for one in rollouts)
        return outcome

    def fleets(self) -> tuple[Fleet, Fleet, Fleet]:
        def fleet(name: str) -> Fleet:
            return Fleet(name, FileResolver(self.services.endpoints_file, name), AsyncClient, tell=self.told.append)

        return fleet("generation"), fleet("reward"), fleet("reference")


@pytest.fixture
def collector(services: LocalServices, whole: None) -> Iterator[Collector]:
    made = Collector(services)
    yield made
    made.dispatcher.close()


@pytest.fixture(scope="module")
def healthy(services: LocalServices) -> Outcome:
    """12 prompts without a fault, once everybody is warm."""
    wait_until(lambda: len(serving(services, "generation")) == 2)
    collector = Collector(services)
    collector.collect(12)
    outcome = collector.collect(12)
    collector.dispatcher.close()
    assert outcome.hedged == 0 and collector.told == []
    return outcome


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def serving(services: LocalServices, service: str) -> list[str]:
    """Addresses of the replicas that serve."""
    found = []
    for endpoint in read_endpoints(services.directory)[service]:
        with Client(endpoint["grpc"]) as client:
            if client.info(timeout_s=10).state is ServiceState.SERVING:
                found.append(endpoint["grpc"])
    return found


def endpoint(services: LocalServices, service: str, number: int) -> dict[str, str]:
    return read_endpoints(services.directory)[service][number]


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    """A process that gets a tenth of its time, as if its machine were ten times as slow."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            over.wait(0.18)
            os.kill(pid, signal.SIGCONT)
            over.wait(0.02)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def stoppable(pid: int) -> Iterator[Callable[[], None]]:
    """Stops a process for good when called: its connections stay open and say nothing."""
    try:
        yield lambda: os.kill(pid, signal.SIGSTOP)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_slow_replica_is_hedged_and_then_starved(
    services: LocalServices, healthy: Outcome, collector: Collector
) -> None:
    with slowed(int(endpoint(services, "generation", 1)["pid"])):
        first = collector.collect(12)
        second = collector.collect(12)
    assert first.samples == second.samples == healthy.samples
    assert first.hedged > 0 and first.seconds < 7 * healthy.seconds
    assert second.hedged < first.hedged and second.seconds < 4 * healthy.seconds
    assert collector.told == []  # slow is not failed


def test_the_older_of_two_collections_goes_first_and_the_younger_takes_the_slots_it_leaves(
    services: LocalServices, healthy: Outcome, collector: Collector
) -> None:
    """Eight slots: of 24 samples each, the second collection's begin while the first one's last ones run."""
    queues: list[tuple[int, int, int]] = []
    dispatcher = RolloutDispatcher(collector.fleets, timeout_s=170, on_queue=lambda *queue: queues.append(queue))
    ended: list[int] = []
    pending = []
    for number in range(2):
        one = dispatcher.submit(prompts_of(12), SAMPLING, VersionRequirement(), score=False)
        one.add_done_callback(lambda _, number=number: ended.append(number))
        pending.append(one)
    first, second = (Outcome(one.result(), 0.0, 0) for one in pending)
    dispatcher.close()
    assert ended == [0, 1]
    assert first.samples == second.samples == healthy.samples
    left = [waiting + running for waiting, running, _ in queues]
    assert left[0] == 48 and left[-1] == 0 and sorted(left, reverse=True) == left
    assert any(waiting < 24 < waiting + running for waiting, running, _ in queues), queues


def test_late_samples_of_the_older_collection_find_room_beside_a_younger_one(
    services: LocalServices, healthy: Outcome, collector: Collector
) -> None:
    queues: list[tuple[int, int, int]] = []
    dispatcher = RolloutDispatcher(collector.fleets, timeout_s=170, on_queue=lambda *queue: queues.append(queue))
    with slowed(int(endpoint(services, "generation", 1)["pid"])):
        older = dispatcher.submit(prompts_of(12), SAMPLING, VersionRequirement(), score=False)
        dispatcher.submit(prompts_of(60), SAMPLING, VersionRequirement(), score=False)
        outcome = Outcome(older.result(), 0.0, dispatcher.take_hedged())
        waiting, running, _ = queues[-1]
        dispatcher.close()
    assert outcome.samples == healthy.samples and outcome.hedged > 0
    assert waiting + running > 80  # of 120: the younger one has not gone first
    assert queues[-1][:2] == (0, 0)


@pytest.mark.slow
def test_a_silent_replica_is_told_in_a_stated_time_and_its_samples_are_made_elsewhere(
    services: LocalServices, healthy: Outcome, collector: Collector
) -> None:
    silent = endpoint(services, "generation", 1)
    with stoppable(int(silent["pid"])) as stop:
        outcome = collector.collect(12, fault=stop)
        wait_until(lambda: len(collector.told) > 0, SILENT_S + 5)
        again = collector.collect(12)
    assert outcome.samples == again.samples == healthy.samples
    assert collector.queues[-1] == (0, 0, 1)  # of those that are well
    assert outcome.seconds < 4 * healthy.seconds + SILENT_S and again.seconds < 4 * healthy.seconds
    assert collector.told[0].startswith(f"generation at {silent['grpc']}: silent during generation")
    wait_until(lambda: f"generation at {silent['grpc']} is back" in collector.told)


def test_a_killed_replica_is_told_and_its_samples_are_made_elsewhere(
    services: LocalServices, healthy: Outcome, collector: Collector
) -> None:
    killed = endpoint(services, "generation", 0)
    outcome = collector.collect(12, fault=lambda: os.kill(int(killed["pid"]), signal.SIGKILL))
    assert outcome.samples == healthy.samples
    assert outcome.seconds < 4 * healthy.seconds
    assert collector.told[0].startswith(f"generation at {killed['grpc']}: cannot be reached")


@pytest.mark.slow
def test_replicas_that_drain_and_come_are_used_as_they_are_there(
    services: LocalServices, healthy: Outcome, collector: Collector
) -> None:
    """The one that goes has a fifth of a second to drain, too little to end what it has."""
    outcome = collector.collect(12, fault=lambda: request_scale(services.directory, "generation", 1))
    assert outcome.samples == healthy.samples and outcome.seconds < 4 * healthy.seconds

    wait_until(lambda: len(read_endpoints(services.directory)["generation"]) == 1)
    outcome = collector.collect(120, fault=lambda: request_scale(services.directory, "generation", 2))
    assert healthy.samples.items() <= outcome.samples.items()
    with urllib.request.urlopen(f"http://{endpoint(services, 'generation', 1)['metrics']}/metrics") as page:
        assert 'trimtab_request_total{caller="127.0.0.1",code="OK",method="Generate"}' in page.read().decode()


@pytest.mark.parametrize("service", ["reward", "reference"])
def test_a_slow_scorer_holds_no_batch_up(
    service: str, services: LocalServices, healthy: Outcome, collector: Collector
) -> None:
    without = collector.collect(12, score=True)
    with slowed(int(endpoint(services, service, 0)["pid"])):
        outcome = collector.collect(12, score=True)
    assert outcome.samples == healthy.samples
    assert [one.reward for one in outcome.rollouts] == [one.reward for one in without.rollouts]
    assert outcome.seconds < 2 * without.seconds + 2


def test_a_silent_scorer_holds_no_batch_up(services: LocalServices, healthy: Outcome, collector: Collector) -> None:
    collector.collect(12, score=True)
    silent = endpoint(services, "reward", 0)
    with stoppable(int(silent["pid"])) as stop:
        outcome = collector.collect(12, score=True, fault=stop)
    assert outcome.samples == healthy.samples
    assert outcome.seconds < 2 * healthy.seconds + SILENT_S + 5


@pytest.mark.slow
def test_a_silent_service_ends_the_collection_by_name(services: LocalServices, collector: Collector) -> None:
    collector.dispatcher.reward.patience_s = 1.0
    pids = [int(one["pid"]) for one in read_endpoints(services.directory)["reward"]]
    with stoppable(pids[0]) as stop, stoppable(pids[1]) as stop_other:

        def both() -> None:
            stop()
            stop_other()

        began = time.monotonic()
        with pytest.raises(Unavailable, match="no reward replica has served for 1 s") as raised:
            collector.collect(12, score=True, fault=both)
    assert time.monotonic() - began < 3 * SILENT_S
    for one in read_endpoints(services.directory)["reward"]:
        assert one["grpc"] in str(raised.value)
