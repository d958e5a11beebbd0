"""All routes of the HTTP side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trimtab_services.labeling.config import LabelingServiceConfig
from trimtab_services.labeling.database import Database
from trimtab_services.labeling.hashing import Hashing
from trimtab_services.labeling.http.admin import AdminRoutes
from trimtab_services.labeling.http.login import LoginRoutes
from trimtab_services.labeling.http.people import People
from trimtab_services.labeling.http.review import ReviewRoutes
from trimtab_services.labeling.http.work import WorkRoutes
from trimtab_services.labeling.web import routes as page_routes
from trimtab_services.runtime.http import Route

__all__ = ["routes"]


def routes(
    config: LabelingServiceConfig, database: Database, hashing: Hashing, refused: Callable[[str], None]
) -> Sequence[Route]:
    """What the server answers over HTTP.

    Args:
        config: of the service.
        database: where everything is kept.
        hashing: of passwords.
        refused: told each refusal of a person's quota.
    """
    people = People(config, database, hashing, refused)
    return [
        *LoginRoutes(people, hashing).routes(),
        *WorkRoutes(config, database).routes(people),
        *ReviewRoutes(database).routes(people),
        *AdminRoutes(database, hashing).routes(people),
        *page_routes(),
    ]
