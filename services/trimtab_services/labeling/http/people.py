"""Who asks over HTTP: cookie, CSRF token and role, checked around every handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from trimtab.errors import PermissionDenied, Reason, Unauthenticated
from trimtab_services.labeling import accounts, sessions
from trimtab_services.labeling.accounts import Account, NewPassword, Role
from trimtab_services.labeling.audit import account_actor
from trimtab_services.labeling.config import LabelingServiceConfig
from trimtab_services.labeling.database import Database
from trimtab_services.labeling.hashing import Hashing
from trimtab_services.labeling.nul import refuse_nul
from trimtab_services.labeling.sessions import Session
from trimtab_services.runtime.http import Route
from trimtab_services.runtime.quota import Quotas
from trimtab_services.runtime.web import SessionCookie, reply
from trimtab_services.runtime.web.logins import LoginLimit, address_of

__all__ = ["PREFIX", "Handler", "People", "account_json"]

PREFIX = "/labeling/api/"

Handler = Callable[[web.Request, Account], Awaitable[object]]
"""Answers a request of a person with what becomes the JSON body."""


class People:
    """Sessions of people.

    Args:
        config: of the service.
        database: where sessions are kept.
        hashing: of passwords.
        refused: told each refusal of a person's quota.
    """

    def __init__(
        self, config: LabelingServiceConfig, database: Database, hashing: Hashing, refused: Callable[[str], None]
    ) -> None:
        self._config = config
        self._database = database
        self._quotas = Quotas(config.people_quota, own=lambda account: None, refused=refused)
        self._limit = LoginLimit(config.login_tries, config.login_window_s)
        self._hashing = hashing
        is_secure, session_s = config.has_secure_cookies, config.session_s
        self._cookie = SessionCookie("trimtab_session", is_secure=is_secure, session_s=session_s)

    def route(self, method: str, path: str, handler: Handler, role: Role = Role.LABELER) -> Route:
        """A route for people with a role.

        Args:
            method: of HTTP; all but GET need the CSRF token.
            path: below `PREFIX`.
            handler: answers.
            role: least role.
        """

        async def handle(request: web.Request) -> web.StreamResponse:
            session = await self.session(request)
            for field, value in (*request.match_info.items(), *request.query.items()):
                refuse_nul(value, field)
            if not session.account.role.includes(role):
                raise PermissionDenied(
                    f"account {session.account.name!r} is a {session.account.role}; this is for {role}s",
                    field="role",
                    value=session.account.role.value,
                    limit=role.value,
                )
            return reply(await handler(request, session.account))

        return Route(method, PREFIX + path, handle, needs_token=False)

    async def session(self, request: web.Request) -> Session:
        """The session of a request.

        Raises:
            Unauthenticated: none, or one that has ended.
            PermissionDenied: no CSRF token, where one is needed.
            Overloaded: its account asked for too much of late.
        """
        cookie = self.cookie_of(request)
        session, is_old = await self._database.read(sessions.find, cookie, idle_s=self._config.session_idle_s)
        if request.method not in ("GET", "HEAD"):
            sessions.check_csrf(session, request.headers.get("x-csrf-token", ""))
        self._quotas.charge_request(session.account.name)
        if is_old:
            await self._database.change(sessions.touch, cookie)
        return session

    def cookie_of(self, request: web.Request) -> str:
        """What the session's cookie holds; empty without one."""
        return self._cookie.of(request)

    async def log_in(self, request: web.Request, name: str, password: str) -> Account:
        """The account whose password this is.

        Raises:
            Unauthenticated: no such account, another password, or it is not enabled; which of these is not told.
            Overloaded: too many failures of late, or too many others wait to log in.
        """
        forwarded = request.headers.getall("x-forwarded-for", [])
        address = address_of(request.remote or "", forwarded, self._config.trusted_proxies)
        with self._limit.trying(name, address):
            account = await self._hashing.password_matches(name, password)
            if account is None:
                raise Unauthenticated(
                    "login: no enabled account has this name and password", reason=Reason.TOKEN_UNKNOWN, field="login"
                )
            return account

    async def begin(self, account: Account) -> web.Response:
        """Begins a session; the answer sets its cookie."""
        cookie, session = await self._database.change(sessions.begin, account, ends_after_s=self._config.session_s)
        response = reply(self.told(session))
        self._cookie.set(response, cookie)
        return response

    async def end(self, request: web.Request, session: Session) -> web.Response:
        """Ends a session; the answer deletes its cookie."""
        await self._database.change(sessions.end, self.cookie_of(request), session)
        response = reply({})
        self._cookie.delete(response)
        return response

    async def change_password(self, account: Account, password: NewPassword) -> None:
        """Sets a new password, which ends all sessions of the account."""
        await self._database.change(accounts.update, account_actor(account.name), account.name, password=password)

    def told(self, session: Session) -> dict[str, Any]:
        """What a page is told of its session; `idle_ms` is how long it lasts without a request."""
        return {
            "account": account_json(session.account),
            "csrf_token": session.csrf_token,
            "idle_ms": round(1000 * self._config.session_idle_s),
        }


def account_json(account: Account) -> dict[str, Any]:
    """An account as the page gets it."""
    return {
        "name": account.name,
        "role": account.role.value,
        "group": account.group,
        "enabled": account.enabled,
    }
