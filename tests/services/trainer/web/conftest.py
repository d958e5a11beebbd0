from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .scene import Service, furnish, trainer


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Without tokens, with runs in every state."""
    with trainer(tmp_path_factory.mktemp("scene")) as running:
        furnish(running)
        yield running


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Service]:
    """Without tokens and without runs."""
    with trainer(tmp_path) as running:
        yield running
