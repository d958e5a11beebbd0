"""Argon2 takes memory and a core: never more than two hashes at once, whoever asks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from trimtab.errors import Overloaded
from trimtab.v1 import labeling_pb2 as pb
from trimtab_services.labeling import accounts
from trimtab_services.labeling.accounts import NewPassword, Role
from trimtab_services.labeling.database import Database
from trimtab_services.labeling.hashing import Hashing

from .people import PASSWORD, Person, Service


@pytest.fixture
def ann(tmp_path: Path) -> Iterator[Database]:
    """A database with one account."""
    database = Database(f"sqlite:///{tmp_path}/a.sqlite", wait_s=30.0)
    database.migrate()
    with database.changing() as connection:
        accounts.create(connection, "test", name="ann", password=NewPassword.of(PASSWORD), role=Role.LABELER)
    yield database
    database.close()


class Held:
    """Argon2 as it is, but each check of a password waits until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.now = 0
        self.most = 0
        self._lock = threading.Lock()
        verify = PasswordHasher.verify

        def wait_and_verify(hasher: PasswordHasher, kept: str, password: str) -> bool:
            with self._lock:
                self.now += 1
                self.most = max(self.most, self.now)
            try:
                assert self.go_on.wait(30)
                return verify(hasher, kept, password)
            finally:
                with self._lock:
                    self.now -= 1

        monkeypatch.setattr(PasswordHasher, "verify", wait_and_verify)

    async def wait_for(self, checks: int) -> None:
        async with asyncio.timeout(30):
            while self.now != checks:
                await asyncio.sleep(0.01)


def test_page_and_programs_share_one_bound(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.account("ann")
    now, most = 0, 0
    lock = threading.Lock()

    class Slow(type(accounts._hasher)):  # type: ignore[misc]
        """Argon2 as it is, but long enough to be seen together."""

        def hash(self, *given: object, **options: object) -> object:
            return self._counted(super().hash, *given, **options)

        def verify(self, *given: object) -> object:
            return self._counted(super().verify, *given)

        def _counted(self, work: object, *given: object, **options: object) -> object:
            nonlocal now, most
            with lock:
                now, most = now + 1, max(most, now + 1)
            time.sleep(0.1)
            try:
                return work(*given, **options)  # type: ignore[operator]
            finally:
                with lock:
                    now -= 1

    monkeypatch.setattr(accounts, "_hasher", Slow(time_cost=2, memory_cost=19 * 1024, parallelism=1))

    def ask(number: int) -> None:
        if number % 3 == 0:
            service.account(f"labeler-{number}")
        elif number % 3 == 1:
            service.program.update_account(pb.UpdateAccountRequest(name="ann", password=f"{PASSWORD}{number}"))
        else:
            Person(service.url, "ann", "a wrong password").close()

    with ThreadPoolExecutor(9) as pool:
        list(pool.map(ask, range(9)))
    assert most == 2


def test_no_turn_is_held_while_the_database_is_waited_for(ann: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    read, go_on = Database.read, asyncio.Event()

    async def wait_and_read(database: Database, *given: object) -> object:
        await go_on.wait()
        return await read(database, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Database, "read", wait_and_read)

    async def work() -> None:
        hashing = Hashing(ann)
        logins = [asyncio.create_task(hashing.password_matches("ann", PASSWORD)) for _ in range(4)]
        await asyncio.sleep(0.05)
        async with asyncio.timeout(30):
            await hashing.new_password(PASSWORD)
        go_on.set()
        assert [account and account.name for account in await asyncio.gather(*logins)] == ["ann"] * 4

    asyncio.run(work())


def test_more_than_some_dozens_that_wait_are_refused(ann: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)

    async def work() -> None:
        hashing = Hashing(ann)
        logins = [asyncio.create_task(hashing.password_matches("ann", PASSWORD)) for _ in range(70)]
        await held.wait_for(2)
        async with asyncio.timeout(30):
            while sum(login.done() for login in logins) < 6:
                await asyncio.sleep(0.01)
        for ask in (hashing.password_matches("ann", PASSWORD), hashing.new_password(PASSWORD)):
            with pytest.raises(Overloaded, match="password: 64 others wait to be checked") as caught:
                await ask
            assert caught.value.retry_after_s and caught.value.limit == "64"
        held.go_on.set()
        told = await asyncio.gather(*logins, return_exceptions=True)
        assert sum(isinstance(one, Overloaded) for one in told) == 6
        assert sum(getattr(one, "name", "") == "ann" for one in told) == 64
        assert await hashing.password_matches("ann", PASSWORD)  # there is room again

    asyncio.run(work())


def test_who_hangs_up_leaves_no_more_than_two_hashes(ann: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)

    async def work() -> None:
        hashing = Hashing(ann)
        for _ in range(3):
            logins = [asyncio.create_task(hashing.password_matches("ann", PASSWORD)) for _ in range(2)]
            await asyncio.sleep(0.2)
            for login in logins:
                login.cancel()
            await asyncio.gather(*logins, return_exceptions=True)
        await held.wait_for(2)
        held.go_on.set()
        assert await hashing.password_matches("ann", PASSWORD)
        assert held.most == 2

    asyncio.run(work())


@pytest.mark.parametrize("changes", [{"password": NewPassword.of("another password")}, {"enabled": False}])
def test_what_was_changed_while_a_login_waited_counts(
    ann: Database, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)

    async def work() -> None:
        hashing = Hashing(ann)
        login = asyncio.create_task(hashing.password_matches("ann", PASSWORD))
        await held.wait_for(1)
        await ann.change(accounts.update, "test", "ann", **changes)  # type: ignore[arg-type]
        held.go_on.set()
        assert await login is None

    asyncio.run(work())
