"""The log of a run over gRPC and on the command line, and runs that are deleted; those that need no process are of the
store alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from running import FREE_PORTS, RunningServer, client, wait_serving
from trimtab import Client
from trimtab.cli.runs import runs
from trimtab.errors import FailedPrecondition, InvalidRequest, NotFound, Reason, Unavailable
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer import main
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.trainer.events import EventStore
from trimtab_services.trainer.run_log import MOST_PIECE_BYTES

SPEC = yaml.safe_dump(
    {
        "name": "x",
        "directory": "unused",
        "model": "miniature",
        "miniature": {},
        "stages": ["pretrain"],
        "tensorboard": False,
        "pretrain": {"checkpoint_every": 1},
    }
)


@contextmanager
def trainer_service(directory: Path, port: int = 0) -> Iterator[tuple[RunningServer, Client]]:
    config = TrainerServiceConfig(directory=directory, drain_s=5.0, **{**FREE_PORTS, "grpc_port": port})
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


def add_run(directory: Path, name: str, log: bytes = b"") -> Path:
    """A run whose process is elsewhere; its log."""
    store = EventStore(directory / "events.sqlite")
    store.create_run(name, "x: 1", directory / name)
    store.close()
    (directory / name).mkdir()
    path = directory / name / "run.log"
    if log:
        path.write_bytes(log)
    return path


def end(directory: Path, name: str) -> None:
    store = EventStore(directory / "events.sqlite")
    store.set_state(name, pb.RUN_STATE_STOPPED)
    store.close()


def pieces(service: Client, name: str, offset: int = 0, *, follow: bool = False) -> Iterator[pb.WatchRunLogResponse]:
    request = pb.WatchRunLogRequest(name=name, offset_bytes=offset, follow=follow)
    return service.watch_run_log(request, timeout_s=240)


def text(service: Client, name: str, offset: int = 0, *, follow: bool = False) -> bytes:
    return b"".join(piece.data for piece in pieces(service, name, offset, follow=follow))


def cli(service: Client, *arguments: str, **options: object) -> Result:
    return CliRunner().invoke(runs, [*arguments, "--target", service.target], **options)


def test_a_log_is_sent_in_pieces_from_any_byte_on(service: Client, directory: Path) -> None:
    log = b"".join(b"line %d \xc3\xa9\n" % number for number in range(60_000))
    add_run(directory, "long", log)
    sent = list(pieces(service, "long"))
    assert len(sent) == -(-len(log) // MOST_PIECE_BYTES) and sent[1].offset_bytes == MOST_PIECE_BYTES
    assert b"".join(piece.data for piece in sent) == log
    assert text(service, "long", 700_001) == log[700_001:]
    assert text(service, "long", len(log)) == b""
    assert cli(service, "logs", "long").stdout_bytes == log


@pytest.mark.parametrize("offset", [-1, 6])
def test_a_byte_outside_the_log_is_named(service: Client, directory: Path, offset: int) -> None:
    if not (directory / "short").exists():
        add_run(directory, "short", b"12345")
    with pytest.raises(
        InvalidRequest, match=rf"offset_bytes: {offset} is not in 0\.\.5, the size of the log"
    ) as caught:
        text(service, "short", offset)
    assert (caught.value.field, caught.value.limit) == ("offset_bytes", "5")


def test_an_unknown_run_has_no_log(service: Client) -> None:
    with pytest.raises(NotFound, match="no run 'nobody'"):
        text(service, "nobody")
    assert cli(service, "logs", "nobody").exit_code != 0


def test_following_goes_on_until_the_run_has_ended(service: Client, directory: Path) -> None:
    log = add_run(directory, "growing")
    assert text(service, "growing") == b""  # no log yet

    def grow() -> None:
        for number in range(4):
            time.sleep(0.4)
            with log.open("ab") as file:
                file.write(b"line %d\n" % number)
        end(directory, "growing")

    growing = threading.Thread(target=grow)
    growing.start()
    began = time.monotonic()
    assert text(service, "growing", follow=True) == b"line 0\nline 1\nline 2\nline 3\n"
    assert time.monotonic() - began > 1.5
    growing.join()


def test_the_command_follows_over_a_restart_of_the_service(tmp_path: Path) -> None:
    directory, told = tmp_path / "runs", list[bytes]()
    with trainer_service(directory) as (server, service):
        port = server.server.runtime.ports.grpc
        log = add_run(directory, "outliving", b"before\n")
        store = EventStore(directory / "events.sqlite")
        store.set_state("outliving", pb.RUN_STATE_RUNNING)

        def follow() -> None:
            told.append(cli(service, "logs", "outliving", "--follow").stdout_bytes)

        following = threading.Thread(target=follow)
        following.start()
        seen = pieces(service, "outliving", follow=True)
        assert next(seen).data == b"before\n"
        server.run(server.server.drain())
        with pytest.raises(Unavailable, match="watch on from byte 7 of the log") as caught:
            list(seen)
        assert caught.value.reason is Reason.DRAINING
        store.set_state("outliving", pb.RUN_STATE_STOPPED)
        store.close()
    with log.open("ab") as file:
        file.write(b"after\n")
    with trainer_service(directory, port):
        following.join(30)
    assert told == [b"before\nafter\n"]


def test_a_run_that_has_not_ended_is_not_deleted(service: Client, directory: Path) -> None:
    add_run(directory, "busy", b"12345")
    with pytest.raises(
        FailedPrecondition, match="'busy' is STARTING; only one that has ended can be deleted"
    ) as caught:
        service.delete_run(pb.DeleteRunRequest(name="busy"))
    assert caught.value.reason is Reason.RUN_STATE and (directory / "busy" / "run.log").exists()
    refused = cli(service, "delete", "busy", "--force")
    assert refused.exit_code != 0 and service.get_run(pb.GetRunRequest(name="busy")).run.state == pb.RUN_STATE_STARTING


def test_a_name_is_needed(service: Client) -> None:
    with pytest.raises(InvalidRequest, match="name: must not be empty") as caught:
        service.delete_run(pb.DeleteRunRequest())
    assert caught.value.reason is Reason.FIELD_MISSING


def test_deleting_asks_first_and_says_how_much_was_freed(service: Client, directory: Path) -> None:
    add_run(directory, "old", b"x" * 3_000_000)
    end(directory, "old")
    kept = cli(service, "delete", "old", input="n\n")
    assert kept.exit_code == 1 and (directory / "old").exists()
    gone = cli(service, "delete", "old", input="y\n")
    assert (
        gone.exit_code == 0
        and "old: deleted; freed 2.86" in gone.stdout
        and "MiB on the trainer's volume" in gone.stdout
    )
    assert not (directory / "old").exists()
    with pytest.raises(NotFound):
        service.get_run(pb.GetRunRequest(name="old"))
    again = cli(service, "delete", "old", "--force")
    assert (again.exit_code, again.stdout) == (0, "there is no run old; nothing was deleted\n")
    assert service.delete_run(pb.DeleteRunRequest(name="old")) == pb.DeleteRunResponse()


def test_the_number_of_a_deleted_run_is_never_another_ones(tmp_path: Path) -> None:
    store = EventStore(tmp_path / "events.sqlite")
    first, _ = store.create_run("a", "x: 1", tmp_path / "a")
    store.append("a", pb.RunEvent(sequence=1, message=pb.Message(text="hello")))
    store.delete_run("a")
    store.delete_run("a")
    second, is_new = store.create_run("a", "x: 1", tmp_path / "a")
    assert is_new and second.number > first.number and not store.events("a", 0)
    store.close()


@pytest.mark.timeout(600)
def test_a_real_run_has_its_log_and_goes_with_all_of_it(service: Client, directory: Path) -> None:
    service.start_run(pb.StartRunRequest(name="real", spec_yaml=SPEC), timeout_s=120)
    following: list[bytes] = []
    thread = threading.Thread(target=lambda: following.append(text(service, "real", follow=True)))
    thread.start()
    for reply in service.watch_run(pb.WatchRunRequest(name="real"), timeout_s=240):
        if reply.event.HasField("step_done"):
            break
    service.stop_run(pb.StopRunRequest(name="real"))
    thread.join(240)
    assert following == [(directory / "real" / "run.log").read_bytes()]
    assert b"stopped; go on with `trimtab runs resume real`" in following[0]
    gone = service.delete_run(pb.DeleteRunRequest(name="real"))
    assert gone.deleted and gone.freed_bytes > 10_000 and not gone.freed_claim_bytes and not gone.left
    assert not (directory / "real").exists()
    assert "real" not in [run.name for run in service.list_runs(pb.ListRunsRequest()).runs]
    service.start_run(pb.StartRunRequest(name="real", spec_yaml=SPEC), timeout_s=120)  # a new one, from its beginning
    events = service.watch_run(pb.WatchRunRequest(name="real"), timeout_s=240)
    assert next(events).event.sequence == 1
    service.stop_run(pb.StopRunRequest(name="real"))
    assert [reply.event for reply in events][-1].run_ended.state == pb.RUN_STATE_STOPPED
