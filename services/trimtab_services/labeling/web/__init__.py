"""The page for people, under `/labeling/`: static files of this package, and nothing from anywhere else.

There is no build step: `static/` holds the ES modules and the style sheet as the browser runs them, beside those that
all pages share (`trimtab_services.runtime.web`). The page speaks the HTTP API of `trimtab_services.labeling.http` like
any other client.

- `instructions` turns Markdown into a tree of a few known elements, which the page builds node by node. Neither side
  ever makes markup out of text: the Content-Security-Policy refuses inline scripts and, by Trusted Types, `innerHTML`.

Rooms of `static/`: `main.js` is the router; `pages/` has a module for each page, `tasks/` one for each kind of task
and what they share, `task_state/` what a page remembers of a task (draft, lease, time), `api.js`, `store.js` and
`outbox.js` what is sent and what waits in the browser.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trimtab_services.labeling.web.instructions import instructions_tree
from trimtab_services.runtime.http import Route
from trimtab_services.runtime.web import page_routes

__all__ = ["instructions_tree", "routes"]


def routes() -> Sequence[Route]:
    """The page and its files."""
    return page_routes("/labeling/", Path(__file__).parent / "static")
