"""A store in S3: the real service and client, the real s3fs, and moto's server in a process of its own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

from running import FREE_PORTS
from trimtab.client import Client
from trimtab.errors import ConfigError, DeadlineExceeded, LeaseHeld, NotFound, Unavailable
from trimtab.v1 import weights_pb2 as pb
from trimtab_services.weights.opening import open_files
from trimtab_services.weights.remote import PART_BYTES
from trimtab_services.weights.store import Store

from .conftest import running
from .s3 import S3, check, publish, serve_process

PART = 6 * 1024**2
"""Bytes of a part in tests: more than S3's least, 5 MiB."""


def test_publish_fetch_range_channels_leases_prune_and_restart(s3: S3) -> None:
    store = s3.store()
    content = bytes(range(200))
    digest = hashlib.sha256(content).hexdigest()
    with running(store=store, blob_grace_s=0) as service, Client(service.target, timeout_s=20) as client:
        for seed in range(3):
            assert publish(client, seed, publish_id=f"p{seed}") == seed + 1
        check(client, 3, 2)
        lease = client.acquire_lease(pb.AcquireLeaseRequest(channel_prefix="run/", holder="h", ttl_ms=60_000)).lease
        with pytest.raises(LeaseHeld):
            publish(client, channels=["run/x"])
        client.set_channel(pb.SetChannelRequest(channel="policy/serving", version=2, expected_previous_version=-1))
        url = f"{service.http_url}/blobs/{digest}"
        assert httpx.put(url, content=content).status_code == 201
        assert httpx.put(url, content=content).status_code == 200
        part = httpx.get(url, headers={"Range": "bytes=50-59"})
        assert (part.status_code, part.content) == (206, content[50:60])
        assert httpx.get(url, headers={"Range": "bytes=200-"}).status_code == 416
        assert httpx.get(f"{service.http_url}/blobs/{'0' * 64}").status_code == 404
        pruned = client.prune(pb.PruneRequest(keep_last=1))
        assert list(pruned.removed_versions) == [1]  # 2 is served, 3 is the newest
        assert httpx.get(url).status_code == 404
    with running(store=store) as service, Client(service.target, timeout_s=20) as client:
        check(client, 2, 1)
        assert publish(client, 2, publish_id="p2") == 3  # a retry after the restart
        assert publish(client, 3) == 4
        assert {c.name: c.version for c in client.list_channels(pb.ListChannelsRequest()).channels} == {
            "policy/latest": 4,
            "policy/serving": 2,
        }
        assert publish(client, channels=["run/x"], lease_id=lease.lease_id) == 5
    assert not s3.leftovers(store)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "FSSPEC_S3_ENDPOINT_URL"])
def test_the_endpoint_comes_from_the_environment(s3: S3, name: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "AWS_ENDPOINT_URL_S3"} | {name: s3.url}
    process, addresses = serve_process(tmp_path, s3.store(), environment)
    try:
        with Client(addresses["grpc"], timeout_s=20) as client:
            assert publish(client) == 1
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_what_is_wrong_with_a_store_is_one_line(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="store: s3://not-there/x: no such bucket: not-there"):
        open_files("s3://not-there/x")
    assert not s3.outside.exists("not-there")  # nobody made it
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**FREE_PORTS, "store": "s3://somewhere/x"}))
    command = [sys.executable, "-m", "trimtab", "serve", "weights", "--config", str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "store: s3://somewhere/x: " in line and "Could not connect to the endpoint URL" in line


@pytest.mark.parametrize("path", ["manifests/", "state.json"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("times", [1, 100])
def test_a_write_that_fails_half_way_is_done_once(s3: S3, path: str, when: str, times: int) -> None:
    store = s3.store()
    with running(store=store) as service, Client(service.target, timeout_s=60) as client:
        assert publish(client) == 1
        s3.fail("PUT", path, when=when, times=times)
        # Where boto does not give up, it finds what it has written itself.
        with suppress(Unavailable, DeadlineExceeded):
            publish(client, 1, publish_id="p", timeout_s=5)
        s3.heal()
        retried = publish(client, 1, publish_id="p")
        assert retried == publish(client, 1, publish_id="p") > 1
        newest = publish(client, 2)
        assert newest == retried + 1
        check(client, newest, 2)
        check(client, retried, 1)
        assert len(client.list_versions(pb.ListVersionsRequest()).versions) == 3
    with running(store=store) as service, Client(service.target) as client:
        check(client, retried, 1)


def test_a_blob_that_fails_half_way_leaves_nothing(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab_services.weights.remote.PART_BYTES", PART)
    store = s3.store()
    content = np.random.default_rng(0).bytes(2 * PART + 1000)
    digest = hashlib.sha256(content).hexdigest()
    with running(store=store) as service:
        url = f"{service.http_url}/blobs/{digest}"
        assert httpx.put(url, content=content[:-1] + b"x", timeout=60).status_code == 422
        assert not s3.leftovers(store) and httpx.head(url).status_code == 404
        for method, part in (("PUT", "/tmp/"), ("PUT", "/blobs/")):  # a part of it; its move into place
            s3.fail(method, part)
            failed = httpx.put(url, content=content, timeout=120)
            assert (failed.status_code, failed.json()["reason"]) == (503, "UNREACHABLE")
            s3.heal()
            assert not s3.leftovers(store) and httpx.head(url).status_code == 404
        assert httpx.put(url, content=content, timeout=60).status_code == 201
        assert httpx.get(url, timeout=60).content == content
        assert httpx.get(url, headers={"Range": f"bytes={PART - 5}-{PART + 4}"}).content == content[PART - 5 : PART + 5]
    assert not s3.leftovers(store)


def test_large_blobs_go_in_parts_and_hold_little_memory(s3: S3) -> None:
    store = s3.store()
    files = open_files(store)
    piece, pieces = bytes(1024**2), 5 * PART_BYTES // 1024**2 + 3
    tracemalloc.start()
    upload = files.upload()
    for _ in range(pieces):
        upload.write(piece)
    upload.commit("blobs/large")
    upload.discard()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert files.size("blobs/large") == pieces * len(piece)
    assert most < 5 * PART_BYTES
    assert not s3.leftovers(store)


def test_what_a_killed_process_left_is_removed_at_the_next_start(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab_services.weights.remote.PART_BYTES", PART)
    store = s3.store()
    upload = open_files(store).upload()
    upload.write(bytes(PART))
    upload._file.closed = True  # type: ignore[attr-defined]  # nobody closes it any more
    s3.outside.pipe_file(store.removeprefix("s3://") + "/tmp/finished", b"x")
    assert len(s3.leftovers(store)) == 2
    Store(store).close()
    assert not s3.leftovers(store)


def test_what_another_process_does_is_seen_at_once(s3: S3) -> None:
    store = s3.store()
    root = store.removeprefix("s3://")
    files = open_files(store)
    files.write("blobs/aa/one", b"1")
    assert files.list("blobs") == ["blobs/aa/one"] and files.size("blobs/aa/two") is None
    s3.outside.pipe_file(f"{root}/blobs/aa/two", b"22")
    assert files.size("blobs/aa/two") == 2 and files.read("blobs/aa/two") == b"22"
    assert files.list("blobs") == ["blobs/aa/one", "blobs/aa/two"]
    s3.outside.pipe_file(f"{root}/blobs/aa/two", b"4444")
    assert files.size("blobs/aa/two") == 4 and b"".join(files.chunks("blobs/aa/two", 0, 9)) == b"4444"
    s3.outside.rm_file(f"{root}/blobs/aa/one")
    s3.outside.touch(f"{root}/blobs/")  # the mark of an empty folder that consoles make
    assert files.list("blobs") == ["blobs/aa/two"] and files.size("blobs/aa/one") is None
    with pytest.raises(NotFound):
        files.read("blobs/aa/one")
    with pytest.raises(NotFound):
        list(files.chunks("blobs/aa/one", 0, 1))
    assert list(files.chunks("blobs/aa/two", 4, 3)) == []


def test_age_is_by_the_clock_of_the_store(s3: S3) -> None:
    files = open_files(s3.store())
    s3.set_clock_ahead(7200)
    files.write("a", b"1")
    time.sleep(1.1)
    assert 1 <= files.age_s("a", time.time()) < 30
    with pytest.raises(NotFound):
        files.age_s("b", time.time())


def test_blobs_keep_their_grace_whatever_the_clocks_say(s3: S3) -> None:
    s3.set_clock_ahead(-7200)  # by our clock every blob is two hours old
    blob = hashlib.sha256(b"fresh").hexdigest()
    with running(store=s3.store(), blob_grace_s=600) as service, Client(service.target, timeout_s=20) as client:
        assert httpx.put(f"{service.http_url}/blobs/{blob}", content=b"fresh").status_code == 201
        assert client.prune(pb.PruneRequest(keep_last=1)).removed_bytes == 0
        assert httpx.head(f"{service.http_url}/blobs/{blob}").status_code == 200


def test_read_replicas_see_what_the_writer_commits(s3: S3) -> None:
    store = s3.store()
    with (
        running(store=store) as writer,
        running(store=store, read_only=True, refresh_s=0.1) as one,
        running(store=store, read_only=True, refresh_s=0.1) as another,
        Client(writer.target, timeout_s=20) as writing,
    ):
        for seed in range(3):
            version = publish(writing, seed)
            for reader in (one, another):
                with Client(reader.target, timeout_s=20) as reading:
                    for reply in reading.watch(pb.WatchRequest(channel="policy/latest"), timeout_s=20):
                        if reply.version == version:
                            break
                    check(reading, version, seed)


def test_many_threads_at_once(s3: S3) -> None:
    count = 24
    with running(store=s3.store()) as service:

        def work(seed: int) -> tuple[int, int]:
            with Client(service.target, timeout_s=60) as client:
                version = publish(client, seed, channels=[f"c{seed}"], timeout_s=60)
                check(client, version, seed)
                return version, seed

        with ThreadPoolExecutor(count) as pool:
            done = list(pool.map(work, range(count)))
        assert sorted(version for version, _ in done) == list(range(1, count + 1))


def test_a_store_that_is_away_is_unavailable_and_then_goes_on(s3: S3) -> None:
    with running(store=s3.store()) as service, Client(service.target, timeout_s=60) as client:
        version = publish(client)
        s3.fail("GET", "manifests/")
        with pytest.raises(Unavailable, match="manifests/.*internal error"):
            client.get_manifest(pb.GetManifestRequest(version=version), timeout_s=20)
        s3.heal()
        check(client, version, 0)
