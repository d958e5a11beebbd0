"""What pages with sessions share: answers that nobody keeps, and the cookie that stands for a session."""

from __future__ import annotations

from aiohttp import web

__all__ = ["SessionCookie", "reply"]


def reply(body: object) -> web.Response:
    """A JSON answer that nobody keeps."""
    return web.json_response(body, headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})


class SessionCookie:
    """The cookie of one page: no script can read it, and no other site's request carries it.

    Args:
        name: of the cookie.
        is_secure: whether browsers reach the page over HTTPS, and send it over nothing else.
        session_s: seconds that it lasts.
    """

    def __init__(self, name: str, *, is_secure: bool, session_s: float) -> None:
        # the prefix __Host- keeps other hosts of the domain from setting it; browsers take it with Secure only
        self._name = f"__Host-{name}" if is_secure else name
        self._is_secure = is_secure
        self._session_s = session_s

    def of(self, request: web.Request) -> str:
        """What it holds; empty without one."""
        return request.cookies.get(self._name, "")

    def set(self, response: web.Response, value: str) -> None:
        """Has a browser keep a value."""
        response.set_cookie(
            self._name,
            value,
            max_age=int(self._session_s),
            path="/",
            httponly=True,
            secure=self._is_secure,
            samesite="Strict",
        )

    def delete(self, response: web.Response) -> None:
        """Has a browser forget it."""
        response.del_cookie(self._name, path="/", httponly=True, secure=self._is_secure, samesite="Strict")
