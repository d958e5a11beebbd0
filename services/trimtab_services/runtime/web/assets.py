"""Serves the files of a page with headers that let nothing else in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from aiohttp import web

from trimtab_services.runtime.http import Route

__all__ = ["page_routes"]

_SHARED = Path(__file__).parent / "static"
_INDEX = "index.html"
_WORKER = "worker.js"
_DIGEST_MARK = "DIGEST"
"""Stands in the page and its worker where the digest of all files goes."""
_FILES_MARK = '["FILES"]'
"""Stands in the worker where the names of all other files go."""

_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
)
_WORKER_POLICY = "trusted-types worker"
"""One policy of that name may be made, once: to register a worker takes a trusted address."""
_NO_WORKER_POLICY = "trusted-types 'none'"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
"""Of a page's files, by their suffix; a folder may have others, which are not served."""


def page_routes(page: str, folder: Path) -> Sequence[Route]:
    """A page and its files, for anybody: they hold no data. Served whatever state the service is in.

    A folder with a `worker.js` has a service worker, which stands beside the page, because it works for what is below
    its own address. It is told the digest and the names of all other files.

    Args:
        page: path that it stands under, such as `/labeling/`.
        folder: has its `index.html` and what is its own; a file of the shared ones' name takes the place of that.
    """
    files = _files(_SHARED) | _files(folder)
    digest = _digest(files).encode()
    index = files.pop(_INDEX).replace(_DIGEST_MARK.encode(), digest)
    worker = files.pop(_WORKER, None)
    headers = _headers(has_worker=worker is not None)

    def kept(name: str, content: bytes, cache_control: str) -> web.Response:
        content_type = f"{_TYPES[Path(name).suffix]}; charset=utf-8"
        return web.Response(
            body=content, headers=headers | {"Cache-Control": cache_control, "Content-Type": content_type}
        )

    async def show_page(request: web.Request) -> web.StreamResponse:
        return kept(_INDEX, index, "no-cache")

    async def to_page(request: web.Request) -> web.StreamResponse:
        raise web.HTTPPermanentRedirect(page)

    async def show_file(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in files:
            raise web.HTTPNotFound(headers=headers)
        return kept(name, files[name], "public, max-age=31536000, immutable")

    routes = [
        Route("GET", page, show_page, needs_token=False, is_work=False),
        Route("GET", page.rstrip("/"), to_page, needs_token=False, is_work=False),
        Route("GET", f"{page}assets/{digest.decode()}/{{name:.+}}", show_file, needs_token=False, is_work=False),
    ]
    if worker is not None:
        names = json.dumps(list(files)).encode()
        told = worker.replace(_DIGEST_MARK.encode(), digest).replace(_FILES_MARK.encode(), names)

        async def show_worker(request: web.Request) -> web.StreamResponse:
            return kept(_WORKER, told, "no-cache")

        routes.append(Route("GET", f"{page}{_WORKER}", show_worker, needs_token=False, is_work=False))
    return routes


def _files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in _TYPES]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _digest(files: Mapping[str, bytes]) -> str:
    """Of names and bytes: modules import one another by relative paths, so that they change their address together."""
    sha256 = hashlib.sha256()
    for name, content in files.items():
        sha256.update(f"{name}\0{len(content)}\0".encode() + content)
    return sha256.hexdigest()[:32]


def _headers(*, has_worker: bool) -> dict[str, str]:
    types = _WORKER_POLICY if has_worker else _NO_WORKER_POLICY
    return {"Content-Security-Policy": "; ".join((*_POLICY, types)), **_HEADERS}
