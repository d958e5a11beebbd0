"""The protos keep to buf's rules: STANDARD and COMMENTS."""

import subprocess
import sys
from pathlib import Path

import pytest


def test_buf_lint() -> None:
    buf = Path(sys.executable).parent / "buf"
    if not buf.exists():
        pytest.skip("buf is not installed; it is in the dependency group `dev`")
    root = Path(__file__).parents[2]
    done = subprocess.run([buf, "lint", "protos"], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
