"""Passwords are hashed beside the event loop, and only a few at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from trimtab.errors import Overloaded
from trimtab_services.labeling import accounts
from trimtab_services.labeling.accounts import Account, NewPassword
from trimtab_services.labeling.database import Database

__all__ = ["Hashing"]

P = ParamSpec("P")
T = TypeVar("T")

_MOST_HASHES = 2
"""Hashes at once in this process, whoever asks: each takes 19 MiB and a core."""
_MOST_PASSWORDS = 64
"""Passwords that are hashed or wait for it: those of about two seconds."""
_RETRY_AFTER_S = 2.0


class Hashing:
    """Gives turns at Argon2.

    Args:
        database: where the hashes are kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # A thread is busy until its hash is done; a semaphore would be free as soon as who waits for it hangs up.
        self._threads = ThreadPoolExecutor(_MOST_HASHES, thread_name_prefix="hashing")
        self._passwords = 0

    async def new_password(self, text: str) -> NewPassword:
        """Checks and hashes a password.

        Raises:
            InvalidRequest: it is too short or too long.
            Overloaded: too many wait for their turn.
        """
        return await self._in_turn(NewPassword.of, text)

    async def password_matches(self, name: str, password: str) -> Account | None:
        """The enabled account of that name whose password this is; None for all else, after the same work.

        Raises:
            Overloaded: too many wait for their turn.
        """
        kept = await self._database.read(accounts.kept_password, name)
        if await self._in_turn(kept.lets_in, password) is None:
            return None
        now = await self._database.read(accounts.kept_password, name)  # it may have been changed while this waited
        return now.account if now.hash == kept.hash else None

    async def _in_turn(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._passwords >= _MOST_PASSWORDS:
            raise Overloaded(
                f"password: {self._passwords} others wait to be checked; try again in {_RETRY_AFTER_S:g} s",
                field="password",
                value=self._passwords,
                limit=_MOST_PASSWORDS,
                retry_after_s=_RETRY_AFTER_S,
            )
        self._passwords += 1
        try:
            return await asyncio.wrap_future(self._threads.submit(work, *args, **kwargs))
        finally:
            self._passwords -= 1
