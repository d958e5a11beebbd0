"""The SDK on the oldest protobuf and gRPC that `pyproject.toml` allows, against a real server."""

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
        assert error.field == "items[0].token_ids[1]", error.field
    else:
        raise AssertionError("a token id out of range was taken")
print(google.protobuf.__version__)
"""


@pytest.mark.slow  # it installs packages; `make oldest-protobuf` runs it
@pytest.mark.timeout(600)
def test_calls_and_typed_errors(tmp_path: Path, reward_folder: Path) -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = [m for line in wanted if (m := re.match(r"(protobuf|grpcio[a-z-]*)>=([\d.]+)", line))]
    lowest = {m[1]: m[2] + ".0" * (2 - m[2].count(".")) for m in found}
    install = [sys.executable, "-m", "pip", "install", "-q", "--target", str(tmp_path)]
    exact = [f"{name}=={version}" for name, version in lowest.items()]
    done = subprocess.run([*install, *exact], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "clients" / "python")])}
    with running("reward", model_folder=reward_folder) as server:
        told = subprocess.run(
            [sys.executable, "-c", CALLS, server.target], capture_output=True, text=True, timeout=60, env=environment
        )
    assert told.stdout.strip() == lowest["protobuf"], told.stderr
