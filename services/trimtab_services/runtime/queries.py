"""Numbers in paths and queries."""

from __future__ import annotations

from aiohttp import web

from trimtab.errors import InvalidRequest
from trimtab.types.shared import INT64_END

__all__ = ["limit_of", "number_of", "path_number"]

MOST_ROWS, USUAL_ROWS = 1000, 50


def number_of(request: web.Request, name: str) -> int | None:
    """A number of the query; None where it is not there.

    Raises:
        InvalidRequest: it is no whole number of 64 bits.
    """
    text = request.query.get(name)
    return None if text is None else _number(name, text)


def limit_of(request: web.Request) -> int:
    """The most rows of a page, `limit` of the query.

    Raises:
        InvalidRequest: it is not in 1..1000.
    """
    limit = number_of(request, "limit")
    if limit is None:
        return USUAL_ROWS
    if not 1 <= limit <= MOST_ROWS:
        raise InvalidRequest(f"limit: {limit} is not in 1..{MOST_ROWS}", field="limit", value=limit, limit=MOST_ROWS)
    return limit


def path_number(request: web.Request, name: str) -> int:
    """A number of the path.

    Raises:
        InvalidRequest: it is no whole number of 64 bits.
    """
    return _number(name, request.match_info[name])


def _number(name: str, text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 19 or int(text) >= INT64_END:
        raise InvalidRequest(f"{name}: {text!r:.40} is no whole number below 2**63", field=name, value=text)
    return int(text)
