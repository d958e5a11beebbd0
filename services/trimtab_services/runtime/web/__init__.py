"""What the web pages of services share: how their files are served, and the files that all of them use.

A page is a folder of static files, as the browser runs them: there is no build step, and nothing comes from anywhere
else. `static/` here has what every page is made of: `dom.js` (elements out of plain calls), `announce.js` and
`notices.js` (what is told), `pages/lists.js` (tables, lists that come page by page), `base.css` and the icon.

- `assets` serves the files of several folders as those of one. All but the page itself stand below the digest of all
  of them, and are kept for ever.
- `sessions` has the cookie of a session, and answers that nobody keeps.
- `logins` bounds how often a login may fail; `config` has the keys of the configuration that go with a page.
"""

from __future__ import annotations

from trimtab_services.runtime.web.assets import page_routes
from trimtab_services.runtime.web.sessions import SessionCookie, reply

__all__ = ["SessionCookie", "page_routes", "reply"]
