"""One writer for a store in an object store: who is refused, who is dead, and what one does that was taken for dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from trimtab.client import Client
from trimtab.errors import ConfigError, LeaseHeld, TrimtabError, Unavailable
from trimtab.v1 import weights_pb2 as pb
from trimtab_services.weights import lock as lock_module
from trimtab_services.weights.files import SharedFiles
from trimtab_services.weights.lock import WriterLock
from trimtab_services.weights.opening import open_files
from trimtab_services.weights.store import Store

from .conftest import running
from .s3 import S3, check, publish, serve_process


def shared(store: str) -> SharedFiles:
    files = open_files(store)
    assert isinstance(files, SharedFiles)
    return files


def test_a_second_writer_is_refused_while_the_first_lives_and_a_dead_one_is_followed_at_once(
    s3: S3, tmp_path: Path
) -> None:
    store = s3.store()
    process, addresses = serve_process(tmp_path, store)
    try:
        with Client(addresses["grpc"], timeout_s=20) as client:
            assert publish(client) == 1
            with pytest.raises(ConfigError, match=f"has a writer already: process {process.pid} on host"):
                Store(store)
            assert publish(client, 1) == 2  # the first is not disturbed
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    began = time.monotonic()
    with running(store=store) as service, Client(service.target, timeout_s=20) as client:
        assert time.monotonic() - began < 10
        check(client, 2, 1)
        assert publish(client, 2) == 3


def _owner(**changes: object) -> bytes:
    owner = {"host": "elsewhere", "pid": 1, "kernel": "another", "nonce": "n", "renewed": time.time_ns()}
    return json.dumps(owner | changes).encode()


def test_a_writer_elsewhere_is_dead_once_it_has_not_renewed_by_the_clock_of_the_store(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = s3.store()
    path = store.removeprefix("s3://") + "/writer.lock"
    monkeypatch.setattr(lock_module, "_EXPIRE_S", 2.0)
    for seconds_ahead in (3600, -3600):  # our own clock says nothing about it
        s3.set_clock_ahead(seconds_ahead)
        s3.outside.pipe_file(path, _owner())
        with pytest.raises(ConfigError, match="process 1 on host elsewhere"):
            WriterLock(open_files(store), store)
        time.sleep(3.1)
        WriterLock(open_files(store), store).release()
    assert s3.outside.cat_file(path) == b""  # nobody's


def test_a_process_id_counts_only_where_it_means_the_same(s3: S3) -> None:
    store = s3.store()
    path = store.removeprefix("s3://") + "/writer.lock"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(30)
    host = os.uname().nodename
    s3.outside.pipe_file(path, _owner(host=host, pid=gone.pid, kernel="of another machine of the same name"))
    with pytest.raises(ConfigError, match=f"process {gone.pid} on host"):
        WriterLock(open_files(store), store)
    s3.outside.pipe_file(path, _owner(host=host, pid=gone.pid, kernel=lock_module._kernel()))
    WriterLock(open_files(store), store).release()


@pytest.mark.parametrize("before", ["nothing", "a dead writer", "a lock that was released"])
def test_of_those_that_start_in_the_same_instant_one_wins(s3: S3, before: str) -> None:
    store = s3.store()
    path = store.removeprefix("s3://") + "/writer.lock"
    rounds, writers = 5, 6
    opened = [shared(store) for _ in range(writers)]

    def start(files: SharedFiles, together: threading.Barrier) -> WriterLock | None:
        together.wait(30)
        try:
            return WriterLock(files, store)
        except ConfigError:
            return None

    with ThreadPoolExecutor(writers) as pool:
        for _ in range(rounds):
            if before == "nothing":
                s3.outside.rm_file(path)
            else:
                s3.outside.pipe_file(path, b"" if before != "a dead writer" else _owner(pid=None))
            together = threading.Barrier(writers)
            won = [lock for lock in pool.map(start, opened, [together] * writers) if lock is not None]
            assert len(won) == 1
            won[0].renew()  # and knows it


def test_a_writer_that_was_taken_for_dead_and_wakes_up_changes_nothing(s3: S3) -> None:
    store = s3.store()
    with running(store=store) as service, Client(service.target, timeout_s=20) as client:
        assert (publish(client), publish(client, 1)) == (1, 2)
        s3.outside.rm_file(store.removeprefix("s3://") + "/writer.lock")  # as if it had been silent for too long
        with running(store=store) as successor, Client(successor.target, timeout_s=20) as its_client:
            assert publish(its_client, 2) == 3
            for seed in (3, 4):
                with pytest.raises(Unavailable, match="another process has taken the store over"):
                    publish(client, seed, timeout_s=5)
            with pytest.raises(TrimtabError, match="another process has taken the store over"):
                client.prune(pb.PruneRequest(keep_last=1))
            assert publish(its_client, 5) == 4
            for version, seed in enumerate((0, 1, 2, 5), start=1):
                check(its_client, version, seed)


def test_a_writer_that_wakes_up_with_a_channel_to_move_changes_nothing(s3: S3) -> None:
    store = s3.store()
    first = Store(store)
    first.acquire_lease(pb.AcquireLeaseRequest(channel_prefix="a/", holder="h", ttl_ms=60_000))
    s3.outside.rm_file(store.removeprefix("s3://") + "/writer.lock")
    second = Store(store)
    s3.fail("PUT", "state.json")
    with pytest.raises(Unavailable, match="internal error"):  # so that it reads the state again, which nobody changed
        first.acquire_lease(pb.AcquireLeaseRequest(channel_prefix="b/", holder="h", ttl_ms=60_000))
    s3.heal()
    second.acquire_lease(pb.AcquireLeaseRequest(channel_prefix="c/", holder="h", ttl_ms=60_000))
    with pytest.raises(Unavailable, match="another process has taken the store over"):
        first.acquire_lease(pb.AcquireLeaseRequest(channel_prefix="b/", holder="h", ttl_ms=60_000))
    first.close()
    second.close()
    third = Store(store)
    for prefix in ("a/", "c/"):
        with pytest.raises(LeaseHeld):
            third.acquire_lease(pb.AcquireLeaseRequest(channel_prefix=prefix, holder="h", ttl_ms=60_000))
    third.acquire_lease(pb.AcquireLeaseRequest(channel_prefix="b/", holder="h", ttl_ms=60_000))
    third.close()


def test_a_file_that_another_made_while_the_own_try_failed_stays(s3: S3) -> None:
    store = s3.store()
    files = open_files(store)
    s3.fail("PUT", "manifests/")
    with pytest.raises(Unavailable, match="internal error"):
        files.write("manifests/1", b"own")
    s3.heal()
    s3.outside.pipe_file(store.removeprefix("s3://") + "/manifests/1", b"the other's")
    with pytest.raises(Unavailable, match="another process has taken the store over"):
        files.write("manifests/1", b"own")
    with pytest.raises(Unavailable, match="another process has taken the store over"):
        files.remove("manifests/1")
    assert files.read("manifests/1") == b"the other's"


def test_the_writer_is_told_at_its_next_renewal(s3: S3) -> None:
    store = s3.store()
    first = Store(store)
    s3.outside.rm_file(store.removeprefix("s3://") + "/writer.lock")
    second = Store(store)
    with pytest.raises(ConfigError, match=f"has a writer already: process {os.getpid()}"):
        first.renew_lock()
    first.close()  # takes nothing away from the second
    second.renew_lock()
    second.close()


def test_a_renewal_survives_a_store_that_is_away_and_an_answer_that_got_lost(s3: S3) -> None:
    location = s3.store()
    store = Store(location)

    def renews() -> bool:
        before = open_files(location).read("writer.lock")
        store.renew_lock()
        return open_files(location).read("writer.lock") != before

    assert renews()
    s3.fail("PUT", "writer.lock")
    assert not renews()
    s3.heal()
    assert renews()
    s3.fail("PUT", "writer.lock", when="after")
    assert renews()  # unknown to the writer
    s3.heal()
    assert not renews() and renews()
    store.close()


def test_a_store_of_any_other_kind_takes_one_writer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    store = f"memory://{uuid.uuid4().hex}"
    first = Store(store)
    first.renew_lock()
    with pytest.raises(ConfigError, match=f"has a writer already: process {os.getpid()}"):
        Store(store)
    open_files(store).write("writer.lock", _owner())
    with pytest.raises(ConfigError, match="has a writer already: process 1 on host elsewhere"):
        first.renew_lock()
    first.close()
    with pytest.raises(ConfigError, match="has a writer already: process 1 on host elsewhere"):
        Store(store)
    monkeypatch.setattr(lock_module, "_EXPIRE_S", 0.0)
    Store(store).close()
    assert open_files(store).read("writer.lock") == b""


def test_a_store_without_conditional_writes_is_told_of(
    s3: S3, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = s3.store()
    files = open_files(store)
    WriterLock(files, store).release()
    assert not caplog.records
    call = files._fs.call_s3  # type: ignore[attr-defined]

    def without_conditions(method: str, **arguments: Any) -> Any:
        return call(method, **{k: v for k, v in arguments.items() if k not in ("IfMatch", "IfNoneMatch")})

    monkeypatch.setattr(files._fs, "call_s3", without_conditions)  # type: ignore[attr-defined]
    WriterLock(files, store).release()
    assert "ignores conditional writes" in caplog.text
