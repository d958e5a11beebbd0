from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from browser import chromium

from ..people import Service
from .browsers import OTHER_NAME, Window


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium(f"--host-resolver-rules=MAP {OTHER_NAME} 127.0.0.1") as running:
        yield running


@pytest.fixture
def window(browser: Any, service: Service) -> Iterator[Callable[..., Window]]:
    """Opens windows of people who are signed in; each must have had no fault at the end."""
    opened: list[Window] = []

    def open_one(name: str = "ann", **options: Any) -> Window:
        opened.append(Window(browser, service, **options))
        opened[-1].sign_in(name)
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()
