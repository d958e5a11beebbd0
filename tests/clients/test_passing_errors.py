"""Item errors that pass, of a reward that another server computes: asked for again, not for ever, by every client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from running import RunningServer, running
from trimtab.cli import trimtab
from trimtab.errors import DataError, Unavailable
from trimtab.integrations.rewards import RemoteRewards

ALWAYS = 10**9


class Flaky(ThreadingHTTPServer):
    """A reward server that answers 503 to the next `shy` requests in which a text has "shy" in it."""

    def __init__(self) -> None:
        self.shy = 0
        self.refused = 0
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        queries = json.loads(self.rfile.read(int(self.headers["content-length"])))["query"]
        is_shy = any("shy" in query for query in queries) and server.shy > 0
        if is_shy:
            server.shy -= 1
            server.refused += 1
        content = json.dumps({"rewards": [float(len(query)) for query in queries]}).encode()
        self.send_response(503 if is_shy else 200)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def remote() -> Iterator[Flaky]:
    server = Flaky()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def service(remote: Flaky) -> Iterator[RunningServer]:
    url = f"http://127.0.0.1:{remote.server_address[1]}/get_reward"
    models = {"remote": {"kind": "remote", "url": url, "timeout_s": 5.0}}
    with running("reward", models=models, max_items_per_request=8) as server:
        yield server


@pytest.fixture(autouse=True)
def at_rest(remote: Flaky) -> None:
    remote.shy = remote.refused = 0


def score(file: Path, service: RunningServer, *options: object) -> Result:
    arguments = ["score", str(file), "--target", service.target, *map(str, options)]
    return CliRunner().invoke(trimtab, arguments, catch_exceptions=False)


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(result: Result) -> list[Any]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("batch", [1, 8])
def test_the_command_asks_again_for_rows_whose_error_passes(
    service: RunningServer, remote: Flaky, tmp_path: Path, batch: int
) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "answers": ["bb", "shy"]},
        {"prompt": "a", "chosen": "bbb", "rejected": "bbbb"},
    ]
    remote.shy = 3
    found = read_rows(score(write_rows(tmp_path / "rows.jsonl", *rows), service, "--batch", batch))
    assert remote.refused == 3
    assert (found[0]["reward"], found[1]["rewards"]) == (2.0, [3.0, 4.0])
    assert (found[2]["reward_chosen"], found[2]["reward_rejected"]) == (4.0, 5.0)


def test_the_command_does_not_ask_for_ever(service: RunningServer, remote: Flaky, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "shy"})
    remote.shy = ALWAYS
    began = time.monotonic()
    with pytest.raises(DataError, match=rf"{file}:2: completion: .*answered 503"):
        score(file, service, "--batch", 1, "--patience", 1)
    assert 1 < time.monotonic() - began < 20
    found = read_rows(score(file, service, "--batch", 1, "--patience", 1, "--on-error", "write"))
    assert found[0]["reward"] == 2.0 and found[1]["error"]["reason"] == "UNREACHABLE"


def test_an_error_that_stays_is_not_waited_for(service: RunningServer, remote: Flaky, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", {"prompt": "a", "answers": ["shy", ""]})
    remote.shy = ALWAYS
    (found,) = read_rows(score(file, service, "--on-error", "write"))
    assert (found["error"]["reason"], found["error"]["field"]) == ("FIELD_INVALID", "answers[1]")


def test_a_row_of_more_answers_than_a_request_takes_is_that_rows_error(service: RunningServer, tmp_path: Path) -> None:
    small = {"prompt": "a", "answers": ["b", "bb"]}
    rows = [small, small, {"prompt": "a", "answers": ["b"] * 9}, small, {"prompt": "a", "completion": "b"}]
    file = write_rows(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(DataError, match=rf"^{file}:3: answers: 9 items are in the request; allowed: 8"):
        score(file, service)
    found = read_rows(score(file, service, "--on-error", "write"))
    assert found[2]["error"] == {
        "reason": "TOO_MANY_ITEMS",
        "message": "answers: 9 items are in the request; allowed: 8",
        "field": "answers",
        "value": "9",
        "limit": "8",
    }
    assert [row["rewards"] for row in (found[0], found[1], found[3])] == [[2.0, 3.0]] * 3 and found[4]["reward"] == 2.0


def test_a_batch_larger_than_a_request_takes_is_sent_in_parts(service: RunningServer, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b" * (index + 1)} for index in range(50)]
    found = read_rows(score(write_rows(tmp_path / "rows.jsonl", *rows), service, "--batch", 50))
    assert [row["reward"] for row in found] == [float(index + 2) for index in range(50)]


def test_a_function_of_rewards_asks_again_within_its_deadline(service: RunningServer, remote: Flaky) -> None:
    prompts, completions, names = ["a", "a", "a"], ["b", "shy", "bb"], ["x[0]", "x[1]", "x[2]"]
    remote.shy = 3
    rewards = RemoteRewards(service.target, timeout_s=30, batch=2)
    assert rewards.of_pairs(prompts, completions, names) == [2.0, 4.0, 3.0]
    assert remote.refused == 3
    remote.shy = ALWAYS
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"^x\[\d\].*answered 503"):
        RemoteRewards(service.target, timeout_s=2).of_pairs(prompts, completions, names)
    assert 0.5 < time.monotonic() - began < 10
