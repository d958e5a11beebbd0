"""The real data that some tests read, which is no part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["real"]

_FOLDER = Path(os.environ.get("TRIMTAB_DATA", Path(__file__).parents[2] / "shared" / "data"))


def real(name: str) -> Path:
    """A file of the real data, such as `eval/llmbar.jsonl`; skips the test where it is not there."""
    file = _FOLDER / name
    if not file.is_file():
        pytest.skip(f"{file} is not there; TRIMTAB_DATA names the folder of the real data")
    return file
