"""Argon2 takes memory and a core: never more than two hashes at once, whoever asks."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from trimtab.v1 import labeling_pb2 as pb
from trimtab_services.labeling import accounts

from .people import PASSWORD, Person, Service


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
