"""The scheduler and its queue: batching, bounds, deadlines, cancellation, priority, fairness, aging."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from trimtab.errors import DeadlineExceeded, InternalError, InvalidRequest, Overloaded, Reason, Unavailable
from trimtab.v1 import types_pb2
from trimtab_services.runtime.metrics import Metrics
from trimtab_services.runtime.queue import Item, WorkQueue, cut_batch, level_of
from trimtab_services.runtime.scheduler import Done, Scheduler, Work

ROLLOUT, BULK, INTERACTIVE = (
    types_pb2.PRIORITY_ROLLOUT,
    types_pb2.PRIORITY_BULK,
    types_pb2.PRIORITY_INTERACTIVE,
)


class Bench:
    """A scheduler whose compute step can be held, and which writes down every batch."""

    def __init__(self, *, max_batch_tokens=100, max_queue_tokens=1000, aging_s=20.0, fail=None) -> None:
        self.batches: list[list[object]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.seconds = 0.0
        self.fail = fail
        self.metrics = Metrics()
        self.scheduler: Scheduler[object, object] = Scheduler(
            self._compute,
            max_batch_tokens=max_batch_tokens,
            max_queue_tokens=max_queue_tokens,
            metrics=self.metrics,
            aging_s=aging_s,
        )

    def _compute(self, group, payloads):
        self.gate.wait(10)
        time.sleep(self.seconds)
        if self.fail is not None and self.fail in payloads:
            raise ValueError(f"cannot compute {self.fail}")
        self.batches.append(list(payloads))
        return [("done", payload) for payload in payloads]

    def submit(self, name, tokens=10, *, count=1, priority=ROLLOUT, deadline_s=None, caller="a", group=None):
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        works = [Work(f"{name}{i}" if count > 1 else name, tokens, group) for i in range(count)]
        call = self.scheduler.submit(works, priority=priority, deadline=deadline, caller=caller)
        return asyncio.create_task(call)

    async def hold(self) -> None:
        """Occupies the compute thread until the gate opens."""
        self.gate.clear()
        self.submit("holder", 1)
        while not self.scheduler.load().running_items:
            await asyncio.sleep(0.001)

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def run(body: Callable[[Bench], Awaitable[None]], **options) -> None:
    async def main() -> None:
        bench = Bench(**options)
        try:
            await body(bench)
        finally:
            bench.gate.set()
            await bench.scheduler.close()

    asyncio.run(main())


def item(name: str, tokens: int, *, caller="a", priority=ROLLOUT, at=0.0, deadline=None, group=None) -> Item:
    return Item(name, tokens, group, level_of(priority), caller, at, deadline, None, 0)


def names(items: list[Item]) -> list[str]:
    return [item.payload for item in items]


def drain(queue: WorkQueue, now: float = 0.0) -> list[list[str]]:
    batches = []
    while batch := queue.take(now)[0]:
        batches.append(names(batch))
    return batches


def test_results_in_order_of_the_request_and_idle_work_starts_at_once():
    async def body(bench: Bench) -> None:
        done = await bench.submit("x", 10, count=5)
        assert [d.value for d in done] == [("done", f"x{i}") for i in range(5)]
        assert all(isinstance(d, Done) and d.queue_s < 0.5 and d.batch == 1 for d in done)
        assert bench.sample("trimtab_computed_tokens_total") == 50

    run(body)


def test_waiting_work_of_several_callers_shares_batches_within_the_budget():
    async def body(bench: Bench) -> None:
        await bench.hold()
        calls = [bench.submit(f"c{i}", 25, caller=f"caller{i}") for i in range(8)]
        await asyncio.sleep(0.01)
        bench.gate.set()
        await asyncio.gather(*calls)
        assert sorted(map(len, bench.batches[1:])) == [4, 4]

    run(body)


def test_batches_hold_similar_lengths_and_padding_counts_in_the_budget():
    window = [item(f"{tokens}", tokens) for tokens in (10, 90, 12, 50, 49, 11, 9)]
    assert names(cut_batch(window, 100)) == ["12", "11", "10", "9"]
    assert names(cut_batch(window[1:], 100)) == ["90"]
    assert names(cut_batch(window[3:], 100)) == ["50", "49"]
    assert names(cut_batch([item("long", 500), *window], 100)) == ["long"]


def test_a_batch_ends_where_padding_would_cost_more_than_one_more_batch():
    window = [item(f"{tokens}", tokens) for tokens in (300, 290, 280, 40)]
    assert names(cut_batch(window, 1600)) == ["300", "290", "280"]  # 40 would be padded by 260, more than a 16th
    assert names(cut_batch(window[::-1], 1600)) == ["40"]
    assert names(cut_batch([item("300", 300), item("210", 210)], 1600)) == ["300", "210"]


def test_an_odd_length_is_not_overtaken_by_newcomers_of_common_lengths():
    queue = WorkQueue(max_batch_tokens=40)
    queue.add(item("first", 10, at=0.0))
    queue.add(item("odd", 40, at=0.0))
    order: list[str] = []
    for turn in range(1, 60):
        for number in range(4):
            queue.add(item(f"{turn}.{number}", 10, at=float(turn)))
        order += names(queue.take(float(turn))[0])
    assert order.index("odd") <= 8
    assert queue.tokens == 10 * queue.items


def test_a_newcomer_that_is_more_urgent_joins_a_window_in_use():
    queue = WorkQueue(max_batch_tokens=10)
    for number in range(30):
        queue.add(item(f"big{number}", 10, caller="big"))
    assert names(queue.take(0.0)[0]) == ["big0"]
    queue.add(item("small", 10, caller="small"))
    assert "small" in names(queue.take(0.0)[0]) + names(queue.take(0.0)[0])


def test_groups_never_share_a_batch():
    queue = WorkQueue(max_batch_tokens=100)
    for number in range(4):
        queue.add(item(f"{number}", 10, group="even" if number % 2 == 0 else "odd"))
    assert sorted(map(sorted, drain(queue))) == [["0", "2"], ["1", "3"]]


def test_a_full_queue_refuses_with_the_time_after_which_there_is_room():
    async def body(bench: Bench) -> None:
        bench.seconds = 0.02
        await bench.submit("warm", 100)
        await bench.hold()
        waiting = bench.submit("w", 100, count=10)
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded) as caught:
            await bench.submit("late", 500)
        error = caught.value
        assert error.reason == Reason.QUEUE_FULL
        assert (error.value, error.limit) == ("1500", "1000")
        # 500 tokens must leave at the measured 100 tokens in 0.02 s.
        assert error.retry_after_s is not None and 0.08 < error.retry_after_s < 0.3
        assert bench.sample("trimtab_dropped_items_total", cause="queue_full") == 1
        assert bench.sample("trimtab_queue_tokens") == 1000
        bench.gate.set()
        await waiting
        await bench.submit("room again", 500)

    run(body)


def test_more_than_the_whole_queue_is_the_callers_mistake():
    async def body(bench: Bench) -> None:
        with pytest.raises(InvalidRequest) as caught:
            await bench.submit("x", 600, count=2)
        assert caught.value.reason == Reason.TOO_MANY_ITEMS
        assert (caught.value.value, caught.value.limit) == ("1200", "1000")

    run(body)


def test_work_that_cannot_meet_its_deadline_is_refused_at_once():
    async def body(bench: Bench) -> None:
        bench.seconds = 0.5
        await bench.submit("cold", 100)
        bench.seconds = 0.1
        await bench.hold()
        waiting = bench.submit("w", 100, count=5)
        await asyncio.sleep(0.01)
        hopeful = bench.submit("one batch says little", 100, deadline_s=2)
        bench.gate.set()
        await asyncio.gather(waiting, hopeful)  # 1,000 tokens a second
        await bench.hold()
        waiting = bench.submit("w", 100, count=5)
        await asyncio.sleep(0.01)
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            await bench.submit("late", 100, deadline_s=0.3)
        assert caught.value.reason == Reason.DEADLINE_UNMEETABLE
        assert time.monotonic() - started < 0.1
        with pytest.raises(DeadlineExceeded) as caught:
            await bench.submit("past", 1, deadline_s=-1)
        assert caught.value.reason == Reason.DEADLINE_EXCEEDED
        fits = bench.submit("fits", 100, deadline_s=30)
        bench.gate.set()
        await asyncio.gather(waiting, fits)

    run(body)


def test_an_idle_service_tries_even_when_its_measured_rate_is_bad():
    async def body(bench: Bench) -> None:
        bench.seconds = 0.5
        await bench.submit("first is slow", 1)  # 2 tokens a second
        bench.seconds = 0.0
        await bench.submit("x", 100, deadline_s=1.0)

    run(body)


def test_expired_and_cancelled_work_is_never_computed():
    async def body(bench: Bench) -> None:
        await bench.hold()
        late = bench.submit("late", 30, deadline_s=0.05)
        gone = bench.submit("gone", 40, count=2)
        stays = bench.submit("stays", 50)
        await asyncio.sleep(0.1)
        gone.cancel()
        with pytest.raises(DeadlineExceeded):
            await late
        await asyncio.gather(gone, return_exceptions=True)
        assert bench.scheduler.load().waiting_tokens == 50
        bench.gate.set()
        await stays
        assert bench.batches == [["holder"], ["stays"]]
        assert bench.sample("trimtab_computed_tokens_total") == 51
        assert bench.sample("trimtab_dropped_items_total", cause="cancelled") == 2
        assert bench.sample("trimtab_dropped_items_total", cause="deadline") == 1

    run(body)


def test_a_bad_item_does_not_fail_its_neighbours():
    async def body(bench: Bench) -> None:
        await bench.hold()
        good, bad = bench.submit("good"), bench.submit("bad")
        await asyncio.sleep(0.01)
        bench.gate.set()
        assert (await good)[0].value == ("done", "good")
        assert isinstance((await bad)[0].value, InternalError)

    run(body, fail="bad")


def test_jobs_run_between_batches_in_the_compute_thread():
    async def body(bench: Bench) -> None:
        assert await bench.scheduler.run_between(lambda: threading.current_thread().name) == "compute"
        with pytest.raises(ZeroDivisionError):
            await bench.scheduler.run_between(lambda: 1 // 0)
        await bench.submit("still alive")

    run(body)


def test_closing_fails_what_waits_with_draining():
    async def body(bench: Bench) -> None:
        await bench.hold()
        waiting = bench.submit("w")
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(bench.scheduler.close())
        await asyncio.sleep(0.01)
        bench.gate.set()
        await closing
        for call in (waiting, bench.submit("after")):
            with pytest.raises(Unavailable) as caught:
                await call
            assert caught.value.reason == Reason.DRAINING

    run(body)


def test_the_end_of_the_compute_thread_is_reported():
    async def main() -> None:
        faults: list[Exception] = []

        def prepare() -> None:
            raise OSError("no device")

        scheduler: Scheduler[str, str] = Scheduler(
            lambda group, payloads: payloads,
            max_batch_tokens=10,
            max_queue_tokens=10,
            metrics=Metrics(),
            prepare=prepare,
            on_fault=faults.append,
        )
        await asyncio.sleep(0.05)
        assert [str(fault) for fault in faults] == ["no device"]
        with pytest.raises(InternalError, match="OSError: no device"):
            await scheduler.submit([Work("x", 1)], priority=ROLLOUT, deadline=None, caller="a")
        await scheduler.close()

    asyncio.run(main())


def test_urgent_levels_first():
    queue = WorkQueue(max_batch_tokens=10)
    for name, priority in (("bulk", BULK), ("rollout", ROLLOUT), ("person", INTERACTIVE)):
        queue.add(item(name, 10, priority=priority))
    assert drain(queue) == [["person"], ["rollout"], ["bulk"]]


def test_waiting_work_ages_upwards_so_nothing_starves():
    queue = WorkQueue(max_batch_tokens=10, aging_s=5)
    queue.add(item("bulk", 10, priority=BULK, at=0.0))
    order = []
    for second in range(20):
        queue.add(item(f"r{second}", 10, at=float(second)))
        order += names(queue.take(float(second))[0])
        queue.add(item(f"s{second}", 10, at=float(second)))
    assert "bulk" in order[5:15]
    assert queue.tokens == 10 * queue.items


def test_a_caller_with_little_work_is_not_behind_a_caller_with_much():
    queue = WorkQueue(max_batch_tokens=10)
    for number in range(50):
        queue.add(item(f"big{number}", 10, caller="big"))
    for number in range(2):
        queue.add(item(f"small{number}", 10, caller="small"))
    order = [batch[0] for batch in drain(queue)]
    assert order.index("small0") <= 1
    assert order.index("small1") <= 4
    assert len(order) == 52


def test_admission_estimates_by_fair_share():
    queue = WorkQueue(max_batch_tokens=10)
    for number in range(50):
        queue.add(item(f"big{number}", 10, caller="big"))
    assert queue.ahead_of("small", 1, 10) == 20
    assert queue.ahead_of("big", 1, 10) == 510
    assert queue.ahead_of("big", 0, 10) == 10


def test_removed_items_never_come_out():
    queue = WorkQueue(max_batch_tokens=100)
    items = [item(f"{number}", 10, caller=f"{number % 3}") for number in range(9)]
    for one in items:
        queue.add(one)
    for one in items[::2]:
        queue.remove(one)
    assert sorted(sum(drain(queue), [])) == ["1", "3", "5", "7"]
    assert (queue.items, queue.tokens) == (0, 0)
