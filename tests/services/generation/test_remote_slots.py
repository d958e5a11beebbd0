"""Slots of the remote host: bounded, by priority, and never lost."""

from __future__ import annotations

import asyncio

from trimtab_services.generation.remote.slots import PrioritySlots


def test_slots_go_by_priority_then_by_arrival() -> None:
    async def body() -> None:
        slots, entered = PrioritySlots(1), list[tuple[int, int]]()

        async def work(priority: int, number: int) -> None:
            async with slots.take(priority):
                entered.append((priority, number))
                await asyncio.sleep(0)

        async with slots.take(0):
            tasks = [asyncio.create_task(work(number % 3, number)) for number in range(9)]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert entered == [(0, 0), (0, 3), (0, 6), (1, 1), (1, 4), (1, 7), (2, 2), (2, 5), (2, 8)]

    asyncio.run(asyncio.wait_for(body(), 10))


def test_a_slot_is_not_lost_whenever_its_taker_goes() -> None:
    async def body() -> None:
        slots, release = PrioritySlots(1), asyncio.Event()

        async def work() -> None:
            async with slots.take(0):
                await release.wait()

        holder = asyncio.create_task(work())
        waits, is_given, last = (asyncio.create_task(work()) for _ in range(3))
        await asyncio.sleep(0)
        waits.cancel()  # before its turn
        await asyncio.sleep(0)
        holder.cancel()
        while not holder.done():
            await asyncio.sleep(0)
        is_given.cancel()  # its turn has come, and it has not run since
        release.set()
        await asyncio.gather(holder, waits, is_given, last, return_exceptions=True)
        assert [task.cancelled() for task in (holder, waits, is_given, last)] == [True, True, True, False]
        async with slots.take(0):
            pass

    asyncio.run(asyncio.wait_for(body(), 10))
