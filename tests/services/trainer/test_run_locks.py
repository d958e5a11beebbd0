"""A lock for each run."""

from __future__ import annotations

import asyncio

import pytest

from trimtab_services.trainer.run_locks import RunLocks


def test_one_run_waits_for_itself_and_no_other_does() -> None:
    async def check() -> None:
        locks = RunLocks()
        async with locks.of("a"):
            async with asyncio.timeout(1), locks.of("b"):
                pass
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), locks.of("a"):
                    pass
        async with asyncio.timeout(1), locks.of("a"):
            pass

    asyncio.run(check())


def test_until_free_waits_for_those_held_now() -> None:
    async def check() -> None:
        locks = RunLocks()
        done: list[str] = []

        async def hold(name: str, seconds: float) -> None:
            async with locks.of(name):
                await asyncio.sleep(seconds)
                done.append(name)

        async with asyncio.TaskGroup() as group:
            group.create_task(hold("a", 0.05))
            group.create_task(hold("b", 0.1))
            await asyncio.sleep(0)
            await locks.until_free()
            assert sorted(done) == ["a", "b"]

    asyncio.run(check())
