"""Passwords are hashed beside the event loop, and only a few at once."""

from __future__ import annotations

import asyncio

from trimtab_services.labeling import accounts
from trimtab_services.labeling.accounts import Account, NewPassword
from trimtab_services.labeling.database import Database

__all__ = ["Hashing"]

_MOST_HASHES = 2
"""Hashes at once in this process, whoever asks: each takes 19 MiB and a core."""


class Hashing:
    """Gives turns at Argon2.

    Args:
        database: where the hashes are kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turns = asyncio.Semaphore(_MOST_HASHES)

    async def new_password(self, text: str) -> NewPassword:
        """Checks and hashes a password.

        Raises:
            InvalidRequest: it is too short or too long.
        """
        async with self._turns:
            return await asyncio.to_thread(NewPassword.of, text)

    async def password_matches(self, name: str, password: str) -> Account | None:
        """The enabled account of that name whose password this is; None for all else, after the same work."""
        async with self._turns:
            return await self._database.read(accounts.password_matches, name, password)
