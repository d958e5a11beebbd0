"""Who may look at the page: as with gRPC, whoever has a token with scope `runs`; anybody where no tokens are asked.

A browser signs in with a token, and from then on has a cookie (HttpOnly, SameSite=Strict, Secure with TLS) that stands
for it until `session_s` are over or this service starts again. The token is looked up in the tokens file at every
request: one that was taken out lets nobody in any more. An address that guesses tokens is refused for a while. A
program sends the token itself, as to gRPC.

The page changes nothing, and what it reads no other origin can: it has no cookie of ours, our JSON is not readable to
it, and where no tokens are asked on a loopback address, other names for that address are refused (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import Field

from trimtab.errors import PermissionDenied, Reason, Unauthenticated
from trimtab.types.shared import Record, Text
from trimtab_services.runtime.auth import Identity, TokenTable, check_scope
from trimtab_services.runtime.config import is_loopback
from trimtab_services.runtime.http import Route
from trimtab_services.runtime.json_body import read_json
from trimtab_services.runtime.state import Runtime
from trimtab_services.runtime.web import SessionCookie, reply
from trimtab_services.runtime.web.logins import LoginLimit, address_of
from trimtab_services.trainer.config import TrainerServiceConfig

__all__ = ["PREFIX", "Handler", "Visitors"]

PREFIX = "/runs/api/"
_SCOPE = "runs"
_MOST_TOKEN = 4096

Handler = Callable[[web.Request], Awaitable[object]]
"""Answers a request with what becomes the JSON body, or with a response of its own."""


@dataclass(frozen=True, slots=True)
class _Session:
    token: str
    end_time: float


class _SignIn(Record):
    token: Text = Field(max_length=_MOST_TOKEN, repr=False)


class Visitors:
    """The sessions, in this process only.

    Args:
        runtime: the server it lives in.
    """

    def __init__(self, runtime: Runtime[TrainerServiceConfig]) -> None:
        self._runtime = runtime
        self._config = runtime.config
        self._sessions: dict[bytes, _Session] = {}
        self._limit = LoginLimit(self._config.login_tries, self._config.login_window_s)
        is_secure, session_s = self._config.has_secure_cookies, self._config.session_s
        self._cookie = SessionCookie("trimtab_runs_session", is_secure=is_secure, session_s=session_s)

    def route(self, path: str, handler: Handler, *, deadline_s: float | None = None) -> Route:
        """A route for those who may look.

        Args:
            path: below `PREFIX`.
            handler: answers.
            deadline_s: as that of a `Route`.
        """

        async def handle(request: web.Request) -> web.StreamResponse:
            self.check(request)
            answer = await handler(request)
            return answer if isinstance(answer, web.StreamResponse) else reply(answer)

        return Route("GET", PREFIX + path, handle, needs_token=False, deadline_s=deadline_s)

    def routes(self) -> list[Route]:
        """Signing in and out, and who is signed in."""
        return [
            Route("GET", f"{PREFIX}session", self._tell, needs_token=False),
            Route("POST", f"{PREFIX}session", self._sign_in, needs_token=False),
            Route("POST", f"{PREFIX}session/end", self._sign_out, needs_token=False),
        ]

    def check(self, request: web.Request) -> Identity:
        """Who asks; may be called again while an answer goes on.

        Raises:
            Unauthenticated: no session, or one that has ended, or a token that is not known any more.
            PermissionDenied: the token lacks the scope, or the host is not this machine's.
            Overloaded: the request has a token of its own, and too many from its address have failed of late.
        """
        tokens = self._runtime.tokens
        if tokens is None:
            self._refuse_foreign_host(request)
            return Identity(request.remote or "unknown")
        if authorization := request.headers.get("authorization"):
            return self._log_in(request, tokens, authorization)
        identity = tokens.identify(self._authorization_of_session(request))
        check_scope(identity, _SCOPE)
        return identity

    def _refuse_foreign_host(self, request: web.Request) -> None:
        host = request.url.host or ""
        if is_loopback(self._config.host) and not is_loopback(host):
            raise PermissionDenied(
                f"host: this service asks no tokens and answers to localhost only; it was called {host!r}. Set "
                "`tokens_file` to show the page under other names",
                field="host",
                value=host,
                limit="localhost",
            )

    def _authorization_of_session(self, request: web.Request) -> str:
        cookie = self._cookie.of(request)
        session = self._sessions.get(_digest(cookie))
        if session is None or session.end_time < time.time():
            raise Unauthenticated(
                "session: none, or it has ended; sign in",
                reason=Reason.TOKEN_UNKNOWN if cookie else Reason.TOKEN_MISSING,
                field="session",
            )
        return f"Bearer {session.token}"

    async def _tell(self, request: web.Request) -> web.StreamResponse:
        identity = self.check(request)
        return reply(_told(identity if self._runtime.tokens is not None else None))

    async def _sign_in(self, request: web.Request) -> web.StreamResponse:
        token = _SignIn(**await read_json(request)).token.strip()
        tokens = self._runtime.tokens
        if tokens is None:
            self._refuse_foreign_host(request)
            return reply(_told(None))
        identity = self._log_in(request, tokens, f"Bearer {token}")
        now = time.time()
        self._sessions = {key: one for key, one in self._sessions.items() if one.end_time >= now}
        cookie = secrets.token_urlsafe(32)
        self._sessions[_digest(cookie)] = _Session(token, now + self._config.session_s)
        response = reply(_told(identity))
        self._cookie.set(response, cookie)
        return response

    def _log_in(self, request: web.Request, tokens: TokenTable, authorization: str) -> Identity:
        """Who a token belongs to. One that opens nothing here is a failed login of the address that it comes from.

        Raises:
            Unauthenticated: there is none, or it is not known.
            PermissionDenied: it lacks the scope.
            Overloaded: too many logins from there have failed of late.
        """
        forwarded = request.headers.getall("x-forwarded-for", [])
        address = address_of(request.remote or "", forwarded, self._config.trusted_proxies)
        with self._limit.trying("", address):
            identity = tokens.identify(authorization)
            check_scope(identity, _SCOPE)
            return identity

    async def _sign_out(self, request: web.Request) -> web.StreamResponse:
        await read_json(request)  # whose content type no form of another origin can send
        self._sessions.pop(_digest(self._cookie.of(request)), None)
        response = reply({})
        self._cookie.delete(response)
        return response


def _told(identity: Identity | None) -> dict[str, Any]:
    """What a page is told at its start: who is signed in, null where no tokens are asked."""
    return {"name": None if identity is None else identity.name}


def _digest(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode(errors="replace")).digest()
