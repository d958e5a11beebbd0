"""Commands that list and ask, for people and for machines, against real services."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from running import FREE_PORTS, RunningServer, client, running, wait_serving
from trimtab.cli import trimtab
from trimtab.cli.connect import client_of
from trimtab.cli.display import RunDisplay
from trimtab.errors import ConfigError
from trimtab.local import read_wanted
from trimtab.v1 import trainer_pb2, weights_pb2
from trimtab.weights import TensorData, publish_version
from trimtab_services.trainer import main as trainer_main
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.trainer.events import EventStore
from trimtab_services.weights import main as weights_main
from trimtab_services.weights.config import WeightsServiceConfig

COUNT = 53
"""More than a page of a list."""


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(trimtab, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def json_lines(*arguments: object) -> list[Any]:
    return [json.loads(line) for line in call(*arguments).stdout.splitlines()]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = str(tmp_path_factory.mktemp("weights") / "store")
    server = RunningServer(
        WeightsServiceConfig(store=store, **FREE_PORTS), "weights", weights_main.SERVICE, weights_main.build
    )
    wait_serving(server)
    with client(server) as connected:
        for step in range(COUNT):
            tensor = TensorData.from_array("weight", np.full(2, step, np.float32))
            publish_version(connected, [tensor], {}, channels=["policy/latest"], run="one", stage="ppo", step=step)
        connected.pin(weights_pb2.PinRequest(version=3, pinned=True))
    yield server.target
    server.stop()


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("trainer")
    store = EventStore(directory / "events.sqlite")
    for number in range(COUNT):
        store.create_run(f"run-{number}", "x: 1", directory / f"run-{number}")
        store.set_state(f"run-{number}", trainer_pb2.RUN_STATE_FAILED, error="a reason")
    store.close()
    config = TrainerServiceConfig(directory=directory, **FREE_PORTS)
    server = RunningServer(config, "trainer", "trimtab.v1.TrainerService", trainer_main.build)
    wait_serving(server)
    yield server.target
    server.stop()


def test_every_version_is_listed(weights: str) -> None:
    rows = json_lines("weights", "list", "--target", weights, "--json")
    assert [row["version"] for row in rows] == list(range(COUNT, 0, -1))
    assert [row["version"] for row in rows if row["pinned"]] == [3]
    first = rows[0]
    assert (first["run"], first["stage"], first["step"], first["weights_bytes"]) == ("one", "ppo", COUNT - 1, 8)
    assert first["channels"] == ["policy/latest"] and len(first["weights_digest"]) == 64 and first["create_time"]
    table = call("weights", "list", "--target", weights).stdout.splitlines()
    assert len(table) == COUNT + 1 and table[0].split()[:4] == ["version", "run", "stage", "step"]
    assert json_lines("weights", "list", "--target", weights, "--json", "--run", "nobody") == []


def test_a_limited_list_says_that_there_are_more(weights: str) -> None:
    limited = call("weights", "list", "--target", weights, "--limit", 2, "--json")
    assert [json.loads(line)["version"] for line in limited.stdout.splitlines()] == [COUNT, COUNT - 1]
    assert "there are more than these 2" in limited.stderr
    assert call("weights", "list", "--target", weights, "--limit", COUNT).stderr == ""


def test_every_run_is_listed(trainer: str) -> None:
    rows = json_lines("runs", "list", "--target", trainer, "--json")
    assert [row["name"] for row in rows] == [f"run-{number}" for number in reversed(range(COUNT))]
    assert (rows[0]["state"], rows[0]["error"], rows[0]["step"], rows[0]["total_steps"]) == ("FAILED", "a reason", 0, 0)
    assert "0/0" in call("runs", "list", "--target", trainer, "--limit", 1).stdout


def test_logprobs(llama_folder: Path) -> None:
    with running("reference", model_folder=llama_folder) as server:
        (row,) = json_lines("logprobs", "--target", server.target, "--json", 5, 6, 7)
        lines = call("logprobs", "--target", server.target, 5, 6, 7).stdout.splitlines()
    assert (row["token_ids"], row["version"]) == ([6, 7], 0)
    assert lines == [f"{token}\t{value:.6f}" for token, value in zip([6, 7], row["logprobs"], strict=True)]


def test_scale(tmp_path: Path) -> None:
    (tmp_path / "endpoints.json").write_text("{}")
    assert json_lines("scale", "generation=2", "reward=0", "--dir", tmp_path, "--json") == [
        {"generation": 2, "reward": 0}
    ]
    assert read_wanted(tmp_path) == {"generation": 2, "reward": 0}
    assert call("scale", "reward=3", "--dir", tmp_path).stdout == "reward: 3 wanted\n"
    assert read_wanted(tmp_path) == {"generation": 2, "reward": 3}


def test_a_token_leaves_this_host_in_plaintext_only_when_told_to(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    target = ("--target", "trimtab.invalid:50051", "--token-file", tmp_path / "token", "--timeout", 1)
    with pytest.raises(ConfigError, match="plaintext.*--insecure"):
        call("runs", "list", *target)
    nothing = {"tls": False, "ca_file": None, "certificate_file": None, "key_file": None}
    there = {"target": "trimtab.invalid:50051", "directory": tmp_path, "timeout_s": 1.0}
    with client_of("trainer", **there, **nothing, token_file=tmp_path / "token", insecure=True) as connected:
        assert connected.insecure and connected.token is not None
    assert "--insecure" in call("weights", "list", "--help").stdout


def test_where_nobody_watches_a_stage_begins_with_a_line() -> None:
    written = io.StringIO()
    display = RunDisplay(Console(file=written))
    for step in (0, 7):
        display.show(
            trainer_pb2.RunEvent(stage="sft", step=step, stage_started=trainer_pb2.StageStarted(total_steps=9))
        )
    assert written.getvalue() == "sft: begins\nsft: goes on after step 7\n"
