"""Login, logout and one's own password."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web
from pydantic import Field

from trimtab.types.shared import Record, Text
from trimtab_services.labeling.accounts import MOST_PASSWORD
from trimtab_services.labeling.contents import StoredText
from trimtab_services.labeling.hashing import Hashing
from trimtab_services.labeling.http.people import PREFIX, People
from trimtab_services.runtime.http import Route
from trimtab_services.runtime.json_body import read_json
from trimtab_services.runtime.web import reply

__all__ = ["LoginRoutes"]


class _Login(Record):
    name: StoredText = Field(max_length=MOST_PASSWORD)
    password: Text = Field(max_length=MOST_PASSWORD, repr=False)


class _NewPassword(Record):
    password: Text = Field(max_length=MOST_PASSWORD, repr=False)
    new_password: Text = Field(repr=False)


class LoginRoutes:
    """Routes around a session.

    Args:
        people: the sessions.
        hashing: of passwords.
    """

    def __init__(self, people: People, hashing: Hashing) -> None:
        self._people = people
        self._hashing = hashing

    def routes(self) -> Sequence[Route]:
        """All of them; they answer with a cookie, so they stand apart from other routes for people."""
        return [
            Route(method, PREFIX + path, handler, needs_token=False)
            for method, path, handler in (
                ("POST", "login", self._log_in),
                ("POST", "logout", self._log_out),
                ("GET", "me", self._tell),
                ("POST", "me/password", self._change_password),
            )
        ]

    async def _log_in(self, request: web.Request) -> web.StreamResponse:
        body = _Login(**await read_json(request))
        return await self._people.begin(await self._people.log_in(request, body.name, body.password))

    async def _log_out(self, request: web.Request) -> web.StreamResponse:
        return await self._people.end(request, await self._people.session(request))

    async def _tell(self, request: web.Request) -> web.StreamResponse:
        return reply(self._people.told(await self._people.session(request)))

    async def _change_password(self, request: web.Request) -> web.StreamResponse:
        session = await self._people.session(request)
        body = _NewPassword(**await read_json(request))
        account = await self._people.log_in(request, session.account.name, body.password)
        new = await self._hashing.new_password(body.new_password)
        await self._people.change_password(account, new)
        return await self._people.begin(account)
