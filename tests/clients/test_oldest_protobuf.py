"""The SDK on the oldest protobuf that `pyproject.toml` allows, against a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from running import running

ROOT = Path(__file__).parents[2]
CALLS = """
import sys
import google.protobuf
from trimtab import Client, ScoreItem, ScoreRequest
from trimtab.errors import InvalidRequest

with Client(sys.argv[1], timeout_s=30) as client:
    assert client.info().state == "SERVING"
    assert len(client.score(ScoreRequest(items=(ScoreItem(token_ids=(5, 6)),))).scores) == 1
    try:
        client.score(ScoreRequest(items=(ScoreItem(token_ids=(5, 10**6)),)))
    except InvalidRequest as error:
        assert error.field == "items[0].token_ids", error.field
    else:
        raise AssertionError("a token id out of range was taken")
print(google.protobuf.__version__)
"""


@pytest.mark.slow
def test_calls_and_typed_errors(tmp_path: Path, reward_folder: Path) -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lowest = next(m[1] for line in wanted if (m := re.match(r"protobuf>=([\d.]+)", line)))
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path)]
    done = subprocess.run([*install, f"protobuf=={lowest}"], capture_output=True, text=True, timeout=170)
    if done.returncode:
        pytest.skip(f"protobuf {lowest} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "clients" / "python")])}
    with running("reward", model_folder=reward_folder) as server:
        told = subprocess.run(
            [sys.executable, "-c", CALLS, server.target], capture_output=True, text=True, timeout=60, env=environment
        )
    assert told.stdout.strip() == lowest, told.stderr
