from __future__ import annotations

import pytest

from building import base_of_image, built_image


@pytest.fixture(scope="session")
def base() -> str:
    return base_of_image()


@pytest.fixture(scope="session")
def image() -> str:
    return built_image()
