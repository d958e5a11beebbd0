"""TrainerService over gRPC, with real run processes: started once, watched without a gap, stopped, killed, resumed."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from rich.console import Console

from running import FREE_PORTS, RunningServer, client, wait_serving
from trimtab import Client
from trimtab.cli.display import RunDisplay, follow_run
from trimtab.cli.runs import runs
from trimtab.errors import FailedPrecondition, InvalidRequest, NotFound, Reason, Unavailable
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer import main
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.trainer.events import EventStore
from trimtab_services.trainer.launchers.local import is_run_process, kill
from trimtab_trainer import remote
from trimtab_trainer.context import Orders


class Seen(RunDisplay):
    """A display that remembers which events it was shown."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.sequences: list[int] = []

    def show(self, event: pb.RunEvent) -> None:
        self.sequences.append(event.sequence)
        super().show(event)


@contextmanager
def trainer_service(
    directory: Path, *, drain_s: float = 20.0, **settings: object
) -> Iterator[tuple[RunningServer, Client]]:
    config = TrainerServiceConfig(directory=directory, drain_s=drain_s, **settings, **FREE_PORTS)
    server = RunningServer(config, "trainer", "trimtab.v1.TrainerService", main.build)
    try:
        wait_serving(server)
        with client(server) as connection:
            yield server, connection
    finally:
        server.stop()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainer") / "runs"


@pytest.fixture(scope="module")
def service(directory: Path) -> Iterator[Client]:
    with trainer_service(directory) as (_, connection):
        yield connection


@pytest.fixture
def demonstrations(tmp_path: Path) -> Path:
    path = tmp_path / "demonstrations.jsonl"
    rows = [{"prompt": f"the dog {number}", "completion": "It sleeps."} for number in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sft(model: Path, demonstrations: Path, **changes: object) -> str:
    """A spec of 4 steps an epoch."""
    section = {
        "demonstrations": str(demonstrations),
        "pretraining": None,
        "rl_init": None,
        "epochs": 1,
        "batch_size": 4,
        "held_out_fraction": 0.0,
        "checkpoint_every": 1,
    }
    spec = {
        "name": "of-the-spec",
        "directory": str(demonstrations.parent / "unused"),
        "model": str(model),
        "data_directory": str(demonstrations.parent),
        "stages": ["sft"],
        "sft": {**section, **changes},
    }
    return yaml.safe_dump(spec)


def start(service: Client, name: str, spec: str) -> pb.Run:
    return service.start_run(pb.StartRunRequest(name=name, spec_yaml=spec), timeout_s=60).run


def get(service: Client, name: str) -> pb.Run:
    return service.get_run(pb.GetRunRequest(name=name)).run


def watch(service: Client, name: str, after: int = 0) -> Iterator[pb.RunEvent]:
    request = pb.WatchRunRequest(name=name, after_sequence=after)
    for response in service.watch_run(request, timeout_s=60):
        yield response.event


def wait_state(service: Client, name: str, *states: pb.RunState.ValueType) -> pb.Run:
    deadline = time.monotonic() + 60
    while (run := get(service, name)).state not in states:
        assert time.monotonic() < deadline, run
        time.sleep(0.05)
    return run


def wait_steps(service: Client, name: str, steps: int) -> list[int]:
    """Numbers of the events up to a step."""
    numbers = []
    for event in watch(service, name):
        numbers.append(event.sequence)
        if event.HasField("step_done") and event.step >= steps:
            break
    return numbers


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def process_of(directory: Path, name: str) -> int:
    """The run process, by its arguments."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if name.encode() in arguments and str(directory / name).encode() in arguments:
                return int(entry.name)
    raise AssertionError(f"no process of {name}")


def test_a_run_from_start_to_end(service: Client, llama_folder: Path, demonstrations: Path) -> None:
    spec = sft(llama_folder, demonstrations)
    run = start(service, "whole", spec)
    assert run.state in (pb.RUN_STATE_STARTING, pb.RUN_STATE_RUNNING) and run.spec_yaml == spec
    events = list(watch(service, "whole"))  # ends by itself
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [event.step for event in events if event.HasField("step_done")] == [1, 2, 3, 4]
    assert events[-1].run_ended.state == pb.RUN_STATE_SUCCEEDED
    ended = get(service, "whole")
    assert (ended.state, ended.stage, ended.step, ended.total_steps) == (pb.RUN_STATE_SUCCEEDED, "sft", 4, 4)
    assert (Path(ended.directory) / "models").is_dir() and (Path(ended.directory) / "report.html").is_file()

    assert [event.sequence for event in watch(service, "whole", after=3)] == list(range(4, len(events) + 1))
    gone = demonstrations.rename(demonstrations.with_name("gone"))
    assert start(service, "whole", spec) == ended  # a retry of StartRun is answered by the run it made, unchecked
    gone.rename(demonstrations)
    with pytest.raises(FailedPrecondition, match="another spec") as caught:
        start(service, "whole", sft(llama_folder, demonstrations, epochs=2))
    assert (caught.value.field, caught.value.value) == ("name", "whole")
    with pytest.raises(FailedPrecondition, match="nothing to resume"):
        service.resume_run(pb.ResumeRunRequest(name="whole"))
    with pytest.raises(FailedPrecondition, match="no process"):
        service.checkpoint_run(pb.CheckpointRunRequest(name="whole"))
    assert service.stop_run(pb.StopRunRequest(name="whole")).run.state == pb.RUN_STATE_SUCCEEDED


@pytest.mark.parametrize(
    ("name", "spec", "field", "words"),
    [
        ("", "x: 1", "name", "letters, digits"),
        ("a/b", "x: 1", "name", "'a/b'"),
        ("n" * 64, "x: 1", "name", "1..63"),
        ("bad", " ", "spec_yaml", "must not be empty"),
        ("bad", "stages: [", "spec_yaml", "line 1"),
        (
            "bad",
            "name: x\nsft: {epoch: 3}",
            "spec_yaml",
            "^spec_yaml: key 'directory' is missing\n(.*\n)*unknown key 'sft.epoch'",
        ),
    ],
)
def test_a_wrong_start_launches_nothing(
    service: Client, directory: Path, name: str, spec: str, field: str, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        start(service, name, spec)
    assert caught.value.field == field
    assert "bad" not in [run.name for run in service.list_runs(pb.ListRunsRequest()).runs]
    assert not (directory / "bad").exists()


def test_unknown_runs(service: Client) -> None:
    for call in (
        lambda: get(service, "nobody"),
        lambda: service.stop_run(pb.StopRunRequest(name="nobody")),
        lambda: service.resume_run(pb.ResumeRunRequest(name="nobody")),
        lambda: service.checkpoint_run(pb.CheckpointRunRequest(name="nobody")),
        lambda: list(watch(service, "nobody")),
    ):
        with pytest.raises(NotFound, match="nobody"):
            call()


def test_stopped_killed_and_resumed(service: Client, directory: Path, llama_folder: Path, demonstrations: Path) -> None:
    """One run: a stop leaves it resumable, a kill fails it within seconds, and each time it goes on."""
    start(service, "long", sft(llama_folder, demonstrations, epochs=5000))
    seen = wait_steps(service, "long", 3)
    service.stop_run(pb.StopRunRequest(name="long"))
    stopped = wait_state(service, "long", pb.RUN_STATE_STOPPED)
    assert stopped.step >= 3

    assert service.resume_run(pb.ResumeRunRequest(name="long")).run.state == pb.RUN_STATE_STARTING
    wait_steps(service, "long", stopped.step + 3)
    os.kill(process_of(directory, "long"), signal.SIGKILL)
    began = time.monotonic()
    failed = wait_state(service, "long", pb.RUN_STATE_FAILED)
    assert time.monotonic() - began < 10
    assert "exit code -9" in failed.error and "run.log" in failed.error

    service.resume_run(pb.ResumeRunRequest(name="long"))
    wait_steps(service, "long", failed.step + 3)
    with pytest.raises(FailedPrecondition, match="only one that has ended"):
        service.resume_run(pb.ResumeRunRequest(name="long"))
    service.stop_run(pb.StopRunRequest(name="long"))
    wait_state(service, "long", pb.RUN_STATE_STOPPED)
    events = list(watch(service, "long"))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert seen == list(range(1, len(seen) + 1))
    steps = [event.step for event in events if event.HasField("step_done")]
    assert sorted(set(steps)) == list(range(1, max(steps) + 1))  # no step is missing from the record


def test_a_resume_that_is_refused_says_why(
    service: Client, directory: Path, llama_folder: Path, demonstrations: Path
) -> None:
    start(service, "edited", sft(llama_folder, demonstrations, epochs=5000))
    wait_steps(service, "edited", 2)
    service.stop_run(pb.StopRunRequest(name="edited"))
    wait_state(service, "edited", pb.RUN_STATE_STOPPED)
    spec = directory / "edited" / "spec.given.yaml"
    spec.write_text(spec.read_text().replace("epochs: 5000", "epochs: 6000"))
    service.resume_run(pb.ResumeRunRequest(name="edited"))
    failed = wait_state(service, "edited", pb.RUN_STATE_FAILED)
    assert "sft.epochs" in failed.error and "6000" in failed.error


def test_the_service_comes_back_to_a_run_that_went_on(tmp_path: Path, llama_folder: Path, demonstrations: Path) -> None:
    """Runs outlive their service; a new one takes them up, with every event."""
    with trainer_service(tmp_path / "runs") as (server, service):
        port = server.server.runtime.ports.grpc
        start(service, "outliving", sft(llama_folder, demonstrations, epochs=5000))
        wait_steps(service, "outliving", 2)
        before = get(service, "outliving")
        follower = Client(service.target)
        seen = Seen(Console(file=io.StringIO()))
        following = threading.Thread(target=follow_run, args=(follower, "outliving", seen))
        following.start()
        wait_until(lambda: seen.sequences)
    assert following.is_alive()  # the drain does not look like the end of the run
    config = TrainerServiceConfig(directory=tmp_path / "runs", drain_s=5.0, **{**FREE_PORTS, "grpc_port": port})
    server = RunningServer(config, "trainer", "trimtab.v1.TrainerService", main.build)
    try:
        wait_serving(server)
        with client(server) as service:
            wait_steps(service, "outliving", before.step + 5)
            service.stop_run(pb.StopRunRequest(name="outliving"))
            wait_state(service, "outliving", pb.RUN_STATE_STOPPED)
            numbers = [event.sequence for event in watch(service, "outliving")]
            assert numbers == list(range(1, len(numbers) + 1))
            following.join(20)
            assert not following.is_alive() and seen.sequences == numbers
            follower.close()
    finally:
        server.stop()


def test_a_stop_asked_twice_still_ends_with_a_checkpoint(
    service: Client, directory: Path, llama_folder: Path, demonstrations: Path
) -> None:
    demonstrations.write_text(demonstrations.read_text() * 100)  # steps long enough for two calls
    start(service, "twice", sft(llama_folder, demonstrations, epochs=5000, batch_size=1600, checkpoint_every=10**6))
    wait_steps(service, "twice", 1)
    for _ in range(2):
        service.stop_run(pb.StopRunRequest(name="twice"))
    ended = wait_state(service, "twice", pb.RUN_STATE_STOPPED, pb.RUN_STATE_FAILED)
    assert ended.state == pb.RUN_STATE_STOPPED, ended.error
    assert list((directory / "twice" / "checkpoints" / "sft").glob("step-*"))


def test_a_run_stopped_while_it_starts_is_resumable(service: Client, llama_folder: Path, demonstrations: Path) -> None:
    start(service, "early", sft(llama_folder, demonstrations))
    service.stop_run(pb.StopRunRequest(name="early"))
    ended = wait_state(service, "early", pb.RUN_STATE_STOPPED, pb.RUN_STATE_FAILED)
    assert ended.state == pb.RUN_STATE_STOPPED, ended.error
    service.resume_run(pb.ResumeRunRequest(name="early"))
    assert list(watch(service, "early"))[-1].run_ended.state == pb.RUN_STATE_SUCCEEDED


def test_stopping_a_run_without_a_process_signals_nobody(service: Client, directory: Path) -> None:
    """Between its row and its process a run has no pid, and signalling process 0 would end this very test."""
    store = EventStore(directory / "events.sqlite")
    store.create_run("window", "x: 1", directory / "window")
    store.close()
    stopped = service.stop_run(pb.StopRunRequest(name="window")).run
    assert (stopped.state, stopped.error) == (pb.RUN_STATE_FAILED, "it was stopped before it had a process")
    assert not is_run_process(0, "window")


def test_a_checkpoint_is_written_when_asked_for(
    service: Client, directory: Path, llama_folder: Path, demonstrations: Path
) -> None:
    start(service, "asked", sft(llama_folder, demonstrations, epochs=5000, checkpoint_every=10**6))
    wait_steps(service, "asked", 2)
    service.checkpoint_run(pb.CheckpointRunRequest(name="asked"))
    wait_until(lambda: list((directory / "asked" / "checkpoints" / "sft").glob("step-*")))
    service.stop_run(pb.StopRunRequest(name="asked"))
    wait_state(service, "asked", pb.RUN_STATE_STOPPED)


def test_a_quiet_run_says_hello_now_and_then_and_not_after_every_answer(
    service: Client, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_KEEPALIVE_S", 0.3)
    store = EventStore(directory / "events.sqlite")
    store.create_run("quiet", "x: 1", directory / "quiet")
    replies: list[pb.ReportEventsResponse] = []

    class Counting(Client):
        def report_events(self, *args: object, **kwargs: object) -> Iterator[pb.ReportEventsResponse]:
            for reply in super().report_events(*args, **kwargs):
                replies.append(reply)
                yield reply

    sink = remote.RemoteSink(Counting(service.target), "quiet", directory / "quiet", Orders())
    began = time.monotonic()
    wait_until(lambda: len(replies) >= 4)
    assert time.monotonic() - began > 0.8  # three times the pause between two of them
    assert sink.close()
    store.close()


def test_a_checkpoint_order_outlives_the_stream_that_it_was_sent_on(service: Client, directory: Path) -> None:
    store = EventStore(directory / "events.sqlite")
    store.create_run("reporting", "x: 1", directory / "reporting")
    hello = pb.ReportEventsRequest(name="reporting")
    assert not next(service.report_events([hello])).checkpoint
    service.checkpoint_run(pb.CheckpointRunRequest(name="reporting"))
    for _ in range(2):  # a stream that breaks takes the order with it, or does not: nobody knows
        assert [reply.checkpoint for reply in service.report_events([hello, pb.ReportEventsRequest()])] == [True, False]
    ended = pb.RunEvent(sequence=1, run_ended=pb.RunEnded(state=pb.RUN_STATE_STOPPED))
    replies = service.report_events([hello, pb.ReportEventsRequest(event=ended)])
    assert [reply.checkpoint for reply in replies] == [True, False]
    assert store.checkpoint_order("reporting") == 0  # a run that stops writes a checkpoint
    store.close()


def test_a_drain_waits_for_a_step_longer_than_that_of_calls(
    tmp_path: Path, llama_folder: Path, demonstrations: Path
) -> None:
    with trainer_service(tmp_path / "runs", drain_s=0.01, stop_runs_on_drain=True, stop_runs_s=60.0) as (_, service):
        start(service, "slow", sft(llama_folder, demonstrations, epochs=5000))
        wait_steps(service, "slow", 2)
    with pytest.raises(AssertionError, match="no process"):
        process_of(tmp_path / "runs", "slow")
    assert json.loads((tmp_path / "runs" / "slow" / "state.json").read_text())["state"] == "STOPPED"


def test_a_watcher_is_told_of_the_drain(tmp_path: Path, llama_folder: Path, demonstrations: Path) -> None:
    """A stream that merely ended would look as if the run had ended."""
    with trainer_service(tmp_path / "runs") as (server, service):
        start(service, "watched", sft(llama_folder, demonstrations, epochs=5000))
        pid = process_of(tmp_path / "runs", "watched")
        events = watch(service, "watched")
        next(events)
        draining = threading.Thread(target=lambda: server.run(server.server.drain()))
        draining.start()
        with pytest.raises(Unavailable, match="drains; watch on after") as caught:
            list(events)
        assert caught.value.reason is Reason.DRAINING
        draining.join()
        kill(pid, "watched")


def test_a_watcher_sees_the_end_of_a_run_that_the_drain_stops(
    tmp_path: Path, llama_folder: Path, demonstrations: Path
) -> None:
    with trainer_service(tmp_path / "runs", stop_runs_on_drain=True) as (server, service):
        start(service, "last", sft(llama_folder, demonstrations, epochs=5000))
        events = watch(service, "last")
        next(events)
        draining = threading.Thread(target=lambda: server.run(server.server.drain()))
        draining.start()
        assert list(events)[-1].run_ended.state == pb.RUN_STATE_STOPPED
        draining.join()


def test_a_second_signal_ends_the_runs_at_once(tmp_path: Path, llama_folder: Path, demonstrations: Path) -> None:
    config = tmp_path / "config.yaml"
    ready = tmp_path / "ready.json"
    settings = {"directory": str(tmp_path / "runs"), "ready_file": str(ready), "stop_runs_on_drain": True}
    config.write_text(yaml.safe_dump({**FREE_PORTS, **settings}))
    server = subprocess.Popen([sys.executable, "-m", "trimtab", "serve", "trainer", "--config", str(config)])
    pid = 0
    try:
        wait_until(ready.exists)
        with Client(json.loads(ready.read_text())["grpc"], timeout_s=30) as service:
            wait_until(lambda: service.info().state == "SERVING")
            start(service, "stuck", sft(llama_folder, demonstrations, epochs=5000))
            wait_steps(service, "stuck", 1)
        pid = process_of(tmp_path / "runs", "stuck")
        os.kill(pid, signal.SIGSTOP)  # a step that takes for ever
        server.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(1.0)
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
        assert not is_run_process(pid, "stuck")
    finally:
        server.kill()
        server.wait()
        kill(pid, "stuck")


def test_a_drain_that_stops_runs_leaves_them_resumable(
    tmp_path: Path, llama_folder: Path, demonstrations: Path
) -> None:
    with trainer_service(tmp_path / "runs", stop_runs_on_drain=True) as (_, service):
        start(service, "ending", sft(llama_folder, demonstrations, epochs=5000))
        wait_steps(service, "ending", 2)
    with pytest.raises(AssertionError, match="no process"):
        process_of(tmp_path / "runs", "ending")
    assert json.loads((tmp_path / "runs" / "ending" / "state.json").read_text())["state"] == "STOPPED"
    with trainer_service(tmp_path / "runs", stop_runs_on_drain=True) as (_, service):
        stopped = wait_state(service, "ending", pb.RUN_STATE_STOPPED)
        service.resume_run(pb.ResumeRunRequest(name="ending"))
        wait_steps(service, "ending", stopped.step + 2)


def test_a_mended_spec_takes_the_name_and_a_strange_folder_is_left_alone(
    service: Client, directory: Path, llama_folder: Path, demonstrations: Path
) -> None:
    rows = demonstrations.read_text()
    demonstrations.write_text(rows + '{"prompt": ""}\n')
    spec = sft(llama_folder, demonstrations)
    start(service, "mended", spec)
    failed = wait_state(service, "mended", pb.RUN_STATE_FAILED)
    assert "demonstrations.jsonl:17" in failed.error
    start(service, "mended", sft(llama_folder, demonstrations, skip_bad_rows=1))
    events = list(watch(service, "mended"))
    assert events[0].sequence == 1 and events[-1].run_ended.state == pb.RUN_STATE_SUCCEEDED

    (directory / "strange").mkdir()
    (directory / "strange" / "state.json").write_text("mine")
    with pytest.raises(FailedPrecondition, match="not empty, and run 'strange' is not known here"):
        start(service, "strange", spec)
    assert (directory / "strange" / "state.json").read_text() == "mine"


def test_runs_are_listed_newest_first_in_pages(service: Client, llama_folder: Path, demonstrations: Path) -> None:
    for name in ("page-1", "page-2", "page-3"):
        start(service, name, sft(llama_folder, demonstrations))
    first = service.list_runs(pb.ListRunsRequest(page_size=2))
    assert [run.name for run in first.runs] == ["page-3", "page-2"] and first.next_page_token
    second = service.list_runs(pb.ListRunsRequest(page_size=2, page_token=first.next_page_token))
    assert second.runs[0].name == "page-1"
    for name in ("page-1", "page-2", "page-3"):
        wait_state(service, name, pb.RUN_STATE_SUCCEEDED)
    with pytest.raises(InvalidRequest, match="page_size: 1001"):
        service.list_runs(pb.ListRunsRequest(page_size=1001))
    with pytest.raises(InvalidRequest, match="page_token"):
        service.list_runs(pb.ListRunsRequest(page_token="x"))


@pytest.fixture
def start_by_command(service: Client, tmp_path: Path) -> Callable[[str, str], Result]:
    """`trimtab runs start` of a name and a spec."""

    def invoke(name: str, spec: str) -> Result:
        (file := tmp_path / "spec.yaml").write_text(spec)
        arguments = ["start", name, str(file), "--target", service.target]
        return CliRunner().invoke(runs, arguments, catch_exceptions=False, standalone_mode=False)

    return invoke


def test_the_command_says_that_a_run_was_started_already(
    service: Client, start_by_command: Callable[[str, str], Result], llama_folder: Path, demonstrations: Path
) -> None:
    def again() -> str:
        return start_by_command("again", sft(llama_folder, demonstrations)).output

    assert re.match(r"again: (STARTING|RUNNING), in ", again())
    assert re.match(r"again: was started already, .* nothing new is started\. (STARTING|RUNNING), in ", again())
    ended = wait_state(service, "again", pb.RUN_STATE_SUCCEEDED)
    assert "nothing new is started. SUCCEEDED, in " in (told := again()) and "another name" in told
    assert get(service, "again").create_time == ended.create_time


def test_the_exit_code_says_that_the_run_started_already_was_stopped(
    service: Client, start_by_command: Callable[[str, str], Result], llama_folder: Path, demonstrations: Path
) -> None:
    spec = sft(llama_folder, demonstrations, epochs=5000)
    assert [start_by_command("to-stop", spec).return_value for _ in range(2)] == [0, 0]
    wait_steps(service, "to-stop", 1)
    service.stop_run(pb.StopRunRequest(name="to-stop"))
    wait_state(service, "to-stop", pb.RUN_STATE_STOPPED)
    assert start_by_command("to-stop", spec).return_value == 130


def test_the_exit_code_says_that_the_run_started_already_has_failed(
    service: Client, start_by_command: Callable[[str, str], Result], llama_folder: Path, demonstrations: Path
) -> None:
    demonstrations.write_text('{"prompt": ""}\n')
    bad = sft(llama_folder, demonstrations)
    assert start_by_command("to-fail", bad).return_value == 0
    wait_state(service, "to-fail", pb.RUN_STATE_FAILED)
    assert start_by_command("to-fail", bad).return_value == 1
    demonstrations.write_text('{"prompt": "the dog", "completion": "It sleeps."}\n')
    mended = sft(llama_folder, demonstrations, batch_size=1)
    assert start_by_command("to-fail", mended).return_value == 0  # a new run in its place
    wait_state(service, "to-fail", pb.RUN_STATE_SUCCEEDED)


def test_the_command_says_which_name_and_folder_of_the_spec_are_not_used(
    service: Client,
    start_by_command: Callable[[str, str], Result],
    directory: Path,
    llama_folder: Path,
    demonstrations: Path,
) -> None:
    def told(**changes: str) -> str:
        return start_by_command("renamed", yaml.safe_dump({**spec, **changes})).stderr

    spec = yaml.safe_load(sft(llama_folder, demonstrations))
    unused = f"not used: name 'of-the-spec', directory {spec['directory']!r}; the run has those of the trainer service"
    assert unused in told()
    wait_state(service, "renamed", pb.RUN_STATE_SUCCEEDED)
    service.delete_run(pb.DeleteRunRequest(name="renamed"), timeout_s=60)
    assert told(name="renamed", directory=str(directory / "renamed")) == ""
    wait_state(service, "renamed", pb.RUN_STATE_SUCCEEDED)
