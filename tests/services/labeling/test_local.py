"""Labeling beside the other services of `trimtab up`, where it is asked for."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
from click.testing import CliRunner

from trimtab.cli import trimtab
from trimtab.local import LocalServices, read_endpoints

NOTHING = {"weights": 0, "generation": 0, "reward": 0, "reference": 0, "trainer": 0}


def wait_ready(url: str) -> None:
    give_up = time.monotonic() + 30
    while not httpx.get(url, trust_env=False).json()["ready"]:
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_up_starts_labeling_where_it_is_asked_for_and_its_data_stays(tmp_path: Path) -> None:
    def call(*arguments: str) -> str:
        words = ["labeling", *arguments, "--dir", str(tmp_path)]
        return CliRunner().invoke(trimtab, words, catch_exceptions=False).output

    with LocalServices(tmp_path, replicas={**NOTHING, "labeling": 1}):
        (replica,) = read_endpoints(tmp_path)["labeling"]
        wait_ready(f"http://{replica['http']}/health")
        assert httpx.get(f"http://{replica['http']}/labeling/api/me", trust_env=False).status_code == 401
        assert call("create", "p", "--kind", "compare") == "project p: compare, 1 label a task\n"
    assert (tmp_path / "labeling.sqlite").exists()
    with LocalServices(tmp_path, replicas={**NOTHING, "labeling": 1}):
        assert json.loads(call("list", "--json"))["name"] == "p"
