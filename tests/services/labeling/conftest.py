from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .people import Service, labeling
from .postgresql import PostgreSQL, postgresql


@pytest.fixture(scope="session")
def real_postgresql() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Over SQLite."""
    with labeling(f"sqlite:///{tmp_path}/labeling.sqlite") as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/labeling.sqlite"
    server: PostgreSQL = request.getfixturevalue("real_postgresql")
    return server.new_database()


@pytest.fixture
def either(database: str) -> Iterator[Service]:
    """Over SQLite, and over PostgreSQL."""
    with labeling(database) as running:
        yield running
