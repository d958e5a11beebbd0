"""`trimtab up` and what it is made of, with real processes: followed, restarted, drained in order, ended at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab import Client
from trimtab.errors import ConfigError
from trimtab.local import LocalServices, check_count, read_endpoints, read_wanted, request_scale
from trimtab.v1 import trainer_pb2 as pb

NO_MODELS = {"generation": 0, "reward": 0, "reference": 0}


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def pid_of(directory: Path, service: str, *, but: int = 0) -> int:
    """The service's process; 0 while it has none, or has one still."""
    return next((one["pid"] for one in read_endpoints(directory)[service] if one["pid"] != but), 0)


@pytest.fixture
def run_spec(tmp_path: Path, llama_folder: Path) -> str:
    """A run that would go on for hours."""
    demonstrations = tmp_path / "demonstrations.jsonl"
    demonstrations.write_text('{"prompt": "the dog", "completion": "It sleeps."}\n' * 16)
    section = {"pretraining": None, "rl_init": None, "epochs": 50_000, "batch_size": 4, "held_out_fraction": 0.0}
    spec = {
        "name": "of-the-spec",
        "directory": str(tmp_path / "unused"),
        "model": str(llama_folder),
        "data_directory": str(tmp_path),
        "stages": ["sft"],
        "sft": {"demonstrations": str(demonstrations), "checkpoint_every": 10**6, **section},
    }
    return yaml.safe_dump(spec)


@contextmanager
def long_step(run: int) -> Iterator[None]:
    """Holds a run's process in the middle of a step; a test that fails leaves none behind."""
    os.kill(run, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(run, signal.SIGKILL)


def start_run(directory: Path, spec: str) -> int:
    """Starts a run and waits for its first step; returns its process."""
    with Client(read_endpoints(directory)["trainer"][0]["grpc"], timeout_s=60) as client:
        client.start_run(pb.StartRunRequest(name="long", spec_yaml=spec))
        for reply in client.watch_run(pb.WatchRunRequest(name="long")):
            if reply.event.HasField("step_done"):
                break
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(directory / "runs" / "long").encode() in arguments:
                return int(entry.name)
    raise AssertionError("no process of the run")


@pytest.fixture
def up(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """`trimtab up` with weights and trainer, whose calls get half a second to end in a drain."""
    config, directory = tmp_path / "up.yaml", tmp_path / "services"
    config.write_text(yaml.safe_dump({"replicas": NO_MODELS, "trainer": {"drain_s": 0.5}}))
    process = subprocess.Popen(
        [sys.executable, "-m", "trimtab", "up", "--config", str(config), "--dir", str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until((directory / "endpoints.json").exists)
        yield process, directory
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_waits_for_a_run_however_long_its_step(up, run_spec: str) -> None:
    process, directory = up
    run = start_run(directory, run_spec)
    services = [pid_of(directory, name) for name in ("weights", "trainer")]
    with long_step(run):
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(4.0)
        assert not any(is_gone(pid) for pid in services)
        os.kill(run, signal.SIGCONT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "trainer-0: waits for its runs to finish their step and save a checkpoint, at most 6" in output
    assert json.loads((directory / "runs" / "long" / "state.json").read_text())["state"] == "STOPPED"
    assert list((directory / "runs" / "long" / "checkpoints" / "sft").glob("step-*"))
    assert all(is_gone(pid) for pid in (run, *services))


def test_a_second_ctrl_c_ends_everything_at_once(up, run_spec: str) -> None:
    process, directory = up
    run = start_run(directory, run_spec)
    services = [pid_of(directory, name) for name in ("weights", "trainer")]
    with long_step(run):
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 0
        assert all(is_gone(pid) for pid in (run, *services))


def test_a_replica_that_was_started_again_drains_in_its_turn(tmp_path: Path, run_spec: str) -> None:
    """Weights last, even where a thread that has ended by then started it."""
    services = LocalServices(tmp_path / "services", replicas=NO_MODELS)
    starting = threading.Thread(target=services.start)
    starting.start()
    starting.join()
    try:
        first = pid_of(services.directory, "weights")
        os.kill(first, signal.SIGKILL)
        second = wait_until(lambda: pid_of(services.directory, "weights", but=first))
        run = start_run(services.directory, run_spec)
        with long_step(run):
            stopping = threading.Thread(target=services.stop)
            stopping.start()
            time.sleep(2.0)
            assert stopping.is_alive() and not is_gone(second)
            with Client(read_endpoints(services.directory)["weights"][0]["grpc"]) as weights:
                assert weights.info().state == "SERVING"
            services.end_now()
            stopping.join(20)
            assert not stopping.is_alive() and is_gone(second) and is_gone(run)
    finally:
        services.end_now()
        services.stop()


def test_the_watch_outlives_whatever_goes_wrong(tmp_path: Path) -> None:
    lines: list[str] = []
    with LocalServices(tmp_path / "services", replicas=NO_MODELS | {"trainer": 0}, on_event=lines.append) as services:
        wanted = services.directory / "replicas.json"
        for content, words in (
            ('{"generation": "two"}', "generation='two': the number of replicas must be a whole number in 0..64"),
            ('{"reward": 65}', "reward=65: the number of replicas must be a whole number in 0..64"),
            ("[2]", "a JSON object is expected"),
            ("{", "no JSON"),
        ):
            wanted.write_text(content)
            wait_until(lambda words=words: any(words in line for line in lines), 10)
            with pytest.raises(ConfigError, match=words.split(":")[0]):
                request_scale(services.directory, "generation", 1)
        time.sleep(1.0)
        assert len(lines) == 4, lines  # each problem once
        wanted.write_text("{}")
        config = services.directory / "services" / "weights-0" / "config.yaml"
        config.unlink()
        config.mkdir()
        first = pid_of(services.directory, "weights")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: any("Is a directory" in line for line in lines), 10)
        config.rmdir()
        assert wait_until(lambda: pid_of(services.directory, "weights", but=first))


def test_only_failures_in_a_row_make_a_restart_wait_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    with LocalServices(tmp_path / "services", replicas=NO_MODELS | {"trainer": 0}, on_event=lines.append) as services:
        pid = 0
        for number, long_life_s in enumerate((60.0, 60.0, 0.0), 1):
            monkeypatch.setattr("trimtab.local.replica._LONG_LIFE_S", long_life_s)
            pid = wait_until(lambda before=pid: pid_of(services.directory, "weights", but=before))
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda count=number: len(lines) == count)
    assert [line.rpartition("again in ")[2] for line in lines] == ["0.5 s", "1 s", "0.5 s"], lines


@pytest.mark.parametrize("count", [-1, 65, "2", 1.5, True, None])
def test_a_count_that_is_none(tmp_path: Path, count: object) -> None:
    with pytest.raises(ConfigError, match="whole number in 0..64"):
        check_count("generation", count)
    with pytest.raises(ConfigError, match="whole number in 0..64"):
        LocalServices(tmp_path, replicas={"generation": count})  # type: ignore[dict-item]


def test_wanted_counts(tmp_path: Path) -> None:
    assert read_wanted(tmp_path) == {}
    (tmp_path / "replicas.json").write_text('{"generation": 2, "weights": 2}')
    with pytest.raises(ConfigError, match=r"replicas.json: weights=2: .* in 0..1"):
        read_wanted(tmp_path)


def test_services_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from trimtab.local import LocalServices\n"
        f"with LocalServices(Path({str(tmp_path)!r}), replicas={NO_MODELS!r}): time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_until(lambda: (tmp_path / "endpoints.json").exists())
        pids = [one["pid"] for replicas in read_endpoints(tmp_path).values() for one in replicas]
        assert len(pids) == 2 and not any(map(is_gone, pids))
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: all(map(is_gone, pids)), 30)


def test_it_tells_where_the_page_for_runs_is(up) -> None:
    process, directory = up
    line = next(line for line in process.stdout if line.startswith("runs page"))
    url = line.split()[-1]
    assert url == f"http://{read_endpoints(directory)['trainer'][0]['http']}/runs/"
    assert b"<title>Runs</title>" in urllib.request.urlopen(url, timeout=10).read()
