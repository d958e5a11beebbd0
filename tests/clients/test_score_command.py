"""`trimtab score` against real reward services: every form of row, errors, overload, kills of either side."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pty
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from processes import ServiceProcess, serving
from running import running
from trimtab import ChatMessage, Client, ScoreItem, ScoreRequest
from trimtab.cli import trimtab
from trimtab.errors import ConfigError, DataError, NotFound, Unavailable

COMMAND = [sys.executable, "-m", "trimtab", "score"]


@pytest.fixture(scope="module")
def target(reward_folder: Path) -> Iterator[str]:
    with running("reward", model_folder=reward_folder, deterministic=True) as server:
        yield server.target


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, reward_folder: Path) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("service")
    with serving("reward", folder, model_folder=str(reward_folder), deterministic=True) as process:
        wait_serving(process)
        yield process


def wait_serving(process: ServiceProcess) -> None:
    with process.client() as client:
        give_up = time.monotonic() + 60
        while client.info().state != "SERVING":
            assert time.monotonic() < give_up, process.log()
            time.sleep(0.05)


def score(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(trimtab, ["score", *map(str, arguments)], input=stdin, catch_exceptions=False)


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def pairs(count: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"What is {index}?", "completion": "It is a number. " * (index % 5 + 1)} for index in range(count)
    ]


def rewards(target: str, *items: ScoreItem) -> list[float]:
    with Client(target, timeout_s=30) as client:
        return [one.reward for one in client.score(ScoreRequest(items=items)).scores]


def test_every_form_of_row_keeps_its_fields_and_its_place(target: str, tmp_path: Path) -> None:
    conversation = [{"role": "user", "content": "Hello?"}]
    reply = {"role": "assistant", "content": "Hello."}
    rows: list[dict[str, Any]] = [
        {"id": 7, "prompt": "a question", "completion": "an answer", "x": {"y": None}},
        {"messages": [*conversation, reply], "é": "ü"},
        {"prompt": "a question", "chosen": "good", "rejected": "bad"},
        {"prompt": "a question", "answers": ["one", "two", "three"]},
        {"prompt": conversation, "completion": "Hello."},
    ]
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode() + b"\n\n"))
    found = read_rows(score(file, "--target", target, "--batch", 2).stdout)
    assert [{key: one[key] for key in row} for row, one in zip(rows, found, strict=True)] == rows
    assert [list(one)[: len(row)] for row, one in zip(rows, found, strict=True)] == [list(row) for row in rows]
    assert all(one["reward_version"] == 0 for one in found)
    texts = ["an answer", "good", "bad", "one", "two", "three"]
    expected = rewards(target, *(ScoreItem(prompt="a question", completion=text) for text in texts))
    assert len(set(expected)) == len(texts)
    assert found[0]["reward"] == expected[0]
    assert [found[2]["reward_chosen"], found[2]["reward_rejected"], *found[3]["rewards"]] == expected[1:]
    spoken = (ChatMessage(role="user", content="Hello?"), ChatMessage(role="assistant", content="Hello."))
    assert found[1]["reward"] == found[4]["reward"] == rewards(target, ScoreItem(messages=spoken))[0]


def test_standard_input_and_a_single_pair(target: str) -> None:
    row = {"prompt": "a", "completion": "b"}
    (piped,) = read_rows(score("-", "--target", target, stdin=json.dumps(row) + "\n").stdout)
    (single,) = read_rows(score("--prompt", "a", "--completion", "b", "--target", target).stdout)
    assert piped == single == {**row, "reward": single["reward"], "reward_model": "reward", "reward_version": 0}
    assert score("--prompt", "a", "--target", target).exit_code == 2
    assert score("--resume", "-", "--target", target).exit_code == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a JSON object"),
        ("[1]", "a JSON object is expected, found list"),
        ('{"prompt": "a", "prompt": "b", "completion": "c"}', "the key 'prompt' is there twice"),
        ('{"prompt": "a"}', "there is nothing to score"),
        ('{"prompt": "a", "completion": "b", "answers": ["c"]}', "it has completion and answers"),
        ('{"prompt": "a", "chosen": "b"}', "rejected: must be a text; found NoneType"),
        ('{"prompt": 3, "completion": "b"}', "prompt: must be a text or a list of messages; found int"),
        ('{"prompt": "a", "answers": []}', "answers: must be a list of texts"),
        ('{"prompt": "a", "completion": "b", "reward": 1}', "reward: the row has this field already"),
    ],
)
def test_a_bad_row_is_named_or_left_out(target: str, tmp_path: Path, line: str, reason: str) -> None:
    good = json.dumps({"prompt": "a", "completion": "b"})
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(DataError) as caught:
        score(file, "--target", target)
    assert caught.value.message.startswith(f"{file}:2: ") and reason in caught.value.message
    tolerant = score(file, "--target", target, "--skip-bad-rows", 1)
    assert tolerant.exit_code == 0 and len(read_rows(tolerant.stdout)) == 2
    assert f"{file}:2: " in tolerant.stderr and "left out" in tolerant.stderr


def test_a_refused_row_ends_the_command_or_is_written_with_its_error(target: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = pairs(3)
    rows[1]["completion"] = "much too long " * 300
    rows.append({"prompt": "a", "chosen": "b", "rejected": ""})
    file, output = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "scored.jsonl"
    with pytest.raises(DataError, match=rf"{file}:2: completion: \d+ tokens; allowed: 256"):
        score(file, "--target", target, "--output", output)
    assert [row["prompt"] for row in read_rows(output.read_text())] == [rows[0]["prompt"]]

    written = score(file, "--target", target, "--on-error", "write")
    found = read_rows(written.stdout)
    assert ["reward" in row for row in found] == [True, False, True, False]
    assert (found[1]["error"]["reason"], found[1]["error"]["limit"]) == ("SEQUENCE_TOO_LONG", "256")
    assert (found[3]["error"]["reason"], found[3]["error"]["field"]) == ("FIELD_INVALID", "rejected")
    assert "reward_chosen" not in found[3] and "2 of 4 rows were refused" in written.stderr

    cut = score(write_rows(file, rows[:3]), "--target", target, "--truncate", "left")
    assert all("reward" in row for row in read_rows(cut.stdout)) and "1 texts were too long and were cut" in cut.stderr


def test_what_concerns_no_single_row_always_fails(target: str, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", pairs(2))
    with pytest.raises(NotFound, match="nobody"):
        score(file, "--target", target, "--model", "nobody", "--on-error", "write")


def test_a_service_that_stays_away_is_given_up(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", pairs(300))
    with running("reward", serving=False, weights={"address": f"127.0.0.1:{free_port()}", "channel": "c"}) as server:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="nothing was answered for 1 s"):
            score(file, "--target", server.target, "--patience", 1)
        assert time.monotonic() - began > 1


def test_an_address_where_nobody_is_is_told_at_once(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", pairs(300))
    with pytest.raises(Unavailable, match="cannot be reached"):
        score(file, "--target", f"127.0.0.1:{free_port()}")


def test_a_full_service_is_waited_for(reward_folder: Path, tmp_path: Path) -> None:
    rows = pairs(400)
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with running("reward", model_folder=reward_folder, max_queue_tokens=400, max_batch_tokens=256) as server:
        found = score(file, "--target", server.target, "--batch", 4, "--in-flight", 64)
        metrics = urllib.request.urlopen(server.metrics_url, timeout=10).read().decode()
    (dropped,) = re.findall(r'trimtab_dropped_items_total\{[^}]*cause="queue_full"[^}]*\} ([\d.]+)', metrics)
    assert float(dropped) > 0
    assert [row["completion"] for row in read_rows(found.stdout)] == [row["completion"] for row in rows]


def test_an_output_is_never_overwritten_nor_mixed(target: str, tmp_path: Path) -> None:
    file, output = write_rows(tmp_path / "rows.jsonl", pairs(3)), tmp_path / "scored.jsonl"
    arguments = (file, "--target", target, "--output", output)
    assert score(*arguments, "--resume").exit_code == 0  # nothing to go on with: it begins
    whole = output.read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        score(*arguments)
    with pytest.raises(ConfigError, match="is the input"):
        score(output, "--target", target, "--output", output, "--resume")
    with pytest.raises(ConfigError, match="gz"):
        score(file, "--target", target, "--output", tmp_path / "scored.jsonl.gz")
    other = write_rows(tmp_path / "other.jsonl", list(reversed(pairs(3))))
    short = write_rows(tmp_path / "short.jsonl", pairs(2))
    for wrong, said in ((other, "scored.jsonl:3 was not made of .*other.jsonl:3"), (short, "fewer rows")):
        with pytest.raises(ConfigError, match=said):
            score(wrong, "--target", target, "--output", output, "--resume")
    assert output.read_bytes() == whole
    assert score(*arguments, "--resume").exit_code == 0 and output.read_bytes() == whole


def test_killed_anywhere_and_resumed_the_output_is_the_same(service: ServiceProcess, tmp_path: Path) -> None:
    rows: list[Any] = pairs(400)
    rows[200] = {"prompt": "a", "completion": ""}
    file = write_rows(tmp_path / "rows.jsonl", rows)
    file.write_text(file.read_text().replace("\n", "\nnot a row\n", 1))
    undisturbed, output = tmp_path / "undisturbed.jsonl", tmp_path / "scored.jsonl"
    command = [*COMMAND, str(file), "--target", service.target, "--batch", "3"]
    command += ["--on-error", "write", "--skip-bad-rows", "1"]
    subprocess.run([*command, "--output", str(undisturbed)], check=True, timeout=120, capture_output=True)
    assert len(undisturbed.read_bytes().splitlines()) == len(rows)

    draw = random.Random(0)
    kills = 0
    for torn in (1, 0, 40):
        at = (output.stat().st_size if output.exists() else 0) + draw.randrange(1, undisturbed.stat().st_size // 5)
        process = subprocess.Popen([*command, "--output", str(output), "--resume"], stderr=subprocess.PIPE)
        wait_for(lambda: process.poll() is not None or (output.exists() and output.stat().st_size >= at))  # noqa: B023
        kills += process.poll() is None
        process.kill()
        process.communicate(timeout=30)
        os.truncate(output, output.stat().st_size - torn)  # as if the kill had fallen within a write
    assert kills == 3
    subprocess.run([*command, "--output", str(output), "--resume"], check=True, timeout=120, capture_output=True)
    assert output.read_bytes() == undisturbed.read_bytes()


def test_a_service_that_is_killed_and_comes_back_is_waited_for(reward_folder: Path, tmp_path: Path) -> None:
    settings = {"model_folder": str(reward_folder), "deterministic": True, "grpc_port": free_port()}
    file, output = write_rows(tmp_path / "rows.jsonl", pairs(300)), tmp_path / "scored.jsonl"
    with serving("reward", tmp_path / "first", **settings) as first:
        wait_serving(first)
        command = [*COMMAND, str(file), "--target", first.target, "--batch", "4", "--output", str(output)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        wait_for(lambda: output.exists() and output.stat().st_size > 0)
        first.kill()
        assert len(output.read_bytes().splitlines()) < 300
    with serving("reward", tmp_path / "second", **settings) as second:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
        found = read_rows(output.read_text())
        assert [row["prompt"] for row in found] == [row["prompt"] for row in pairs(300)]
        again = [ScoreItem(prompt=row["prompt"], completion=row["completion"]) for row in found]
        assert [row["reward"] for row in found] == rewards(second.target, *again)


def test_a_service_that_stands_still_stops_the_reading(service: ServiceProcess) -> None:
    row = (json.dumps({"prompt": "a", "completion": "b", "kept": "x" * 10_000}) + "\n").encode()
    command = [*COMMAND, "-", "--target", service.target, "--batch", "10", "--in-flight", "3"]
    os.kill(service.pid, signal.SIGSTOP)
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        taken, taken_at = 0, time.monotonic()
        while time.monotonic() - taken_at < 3:
            with contextlib.suppress(BlockingIOError):
                taken += os.write(process.stdin.fileno(), row[taken % len(row) :])
                taken_at = time.monotonic()
            assert taken < 100 * len(row), "rows are read without bound"
            time.sleep(0.001)
    finally:
        os.kill(service.pid, signal.SIGCONT)
    assert taken > 30 * len(row)  # three requests of ten
    os.set_blocking(process.stdin.fileno(), True)
    out, _ = process.communicate(row[taken % len(row) :], timeout=60)
    assert process.returncode == 0 and len(out.splitlines()) == taken // len(row) + 1


def test_a_result_does_not_wait_for_more_input(target: str) -> None:
    command = [*COMMAND, "-", "--target", target, "--batch", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        for row in pairs(2):
            process.stdin.write(json.dumps(row).encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["completion"] == pairs(1)[0]["completion"]
        process.stdin.close()
        assert len(process.stdout.readlines()) == 1


def test_ctrl_c_ends_it_while_it_waits_for_input(target: str) -> None:
    command = ["env", "--default-signal=INT", *COMMAND, "-", "--target", target, "--batch", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        for row in pairs(2):
            process.stdin.write(json.dumps(row).encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read().strip() == b""


def test_a_terminal_sees_a_bar_and_the_rows_go_elsewhere(target: str, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", pairs(200))
    ours, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    command = [*COMMAND, str(file), "--target", target, "--batch", "5"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=its, env=environment)
    os.close(its)
    assert process.stdout is not None
    lines = process.stdout.readlines()
    shown = b""
    with contextlib.suppress(OSError):  # what a terminal reads at its end
        while piece := os.read(ours, 4096):
            shown += piece
    assert process.wait(30) == 0 and len(lines) == 200
    assert b"200 rows" in shown and b"rows/s" in shown and b"0:00:00" in shown


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.001)


def test_a_file_has_one_model(reward_folder: Path, tmp_path: Path) -> None:
    file, output = write_rows(tmp_path / "rows.jsonl", pairs(6)), tmp_path / "scored.jsonl"
    declared = {name: {"kind": "model", "model_folder": str(reward_folder)} for name in "ab"}
    with running("reward", models=declared) as server:
        score(file, "--target", server.target, "--output", output, "--model", "b")
        lines = output.read_bytes().splitlines(keepends=True)
        assert [json.loads(line)["reward_model"] for line in lines] == ["b"] * 6
        output.write_bytes(b"".join(lines[:3]))
        with pytest.raises(ConfigError, match="its rows were scored by 'b'; this is 'a'"):
            score(file, "--target", server.target, "--output", output, "--resume")
        score(file, "--target", server.target, "--output", output, "--resume", "--model", "b")
        assert output.read_bytes() == b"".join(lines)
