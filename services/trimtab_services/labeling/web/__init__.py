"""The page for people, under `/labeling/`: static files of this package, and nothing from anywhere else.

There is no build step: `static/` holds the ES modules, the style sheet and the icon as the browser runs them. The page
speaks the HTTP API of `trimtab_services.labeling.http` like any other client.

- `assets` serves the files. All but the page itself stand below the digest of all of them, and are kept for ever.
- `instructions` turns Markdown into a tree of a few known elements, which the page builds node by node. Neither side
  ever makes markup out of text: the Content-Security-Policy refuses inline scripts and, by Trusted Types, `innerHTML`.

Rooms of `static/`: `main.js` is the router; `pages/` has a module for each page, `tasks/` one for each kind of task
and what they share, `task_state/` what a page remembers of a task (draft, lease, time), `api.js`, `store.js` and
`outbox.js` what is sent and what waits in the browser.
"""

from __future__ import annotations

from trimtab_services.labeling.web.assets import routes
from trimtab_services.labeling.web.instructions import instructions_tree

__all__ = ["instructions_tree", "routes"]
