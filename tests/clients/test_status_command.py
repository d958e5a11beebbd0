"""`trimtab status` on this machine: a token that services refuse is an error, a service that is away is a row."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from running import FREE_PORTS, RunningServer
from trimtab_services.weights.config import WeightsServiceConfig
from trimtab_services.weights.main import SERVICE, build


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Endpoints of a weights service that asks for a token, and of a reward service that is not there."""
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({"right": {"name": "a", "scopes": ["weights.read"]}}))
    settings: dict[str, Any] = {**FREE_PORTS, "store": str(tmp_path / "store"), "tokens_file": tokens}
    server = RunningServer(WeightsServiceConfig(**settings), "weights", SERVICE, build)
    endpoints = {"weights": [{"grpc": server.target}], "reward": [{"grpc": "127.0.0.1:1"}]}
    (tmp_path / "endpoints.json").write_text(json.dumps(endpoints))
    yield tmp_path
    server.stop()


@pytest.mark.parametrize(("token", "code", "state"), [("right", 0, "SERVING"), ("wrong", 1, "REFUSED")])
def test_a_refused_token_ends_with_an_error(directory: Path, token: str, code: int, state: str) -> None:
    (directory / "token").write_text(token)
    options = ["--dir", directory, "--json", "--token-file", directory / "token"]
    done = subprocess.run([sys.executable, "-m", "trimtab", "status", *options], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    rows = {row["service"]: row for row in json.loads(done.stdout)["replicas"]}
    assert rows["weights"]["state"] == state and rows["reward"]["state"] == "UNREACHABLE"
    assert bool(rows["weights"]["note"]) == (state == "REFUSED")
