"""The page for runs, under `/runs/`: what the runs do, live, for people. It reads and changes nothing.

- `routes` is the list of what is answered, and the words of the API.
- `access` says who may look: whoever has a token with scope `runs`, signed in for a while.
- `digest` is what the page shows of a run's events, kept up with them; `curves` bounds what it keeps of the steps.
- `live` sends events as they come; `answers` says how runs and events look as JSON.
- `samples` reads what a run's folder has for people.

`static/` holds the ES modules and the style sheet as the browser runs them, beside those that all pages share
(`trimtab_services.runtime.web`): `main.js` is the router, `pages/` has a module for each page, `live.js` follows a run
and begins again where it was, `chart.js` draws. Which plots there are is told by the service, from the table that the
report is drawn by (`trimtab.run_plots`). No text is ever read as markup.
"""

from __future__ import annotations

from trimtab_services.trainer.web.routes import web_routes

__all__ = ["web_routes"]
