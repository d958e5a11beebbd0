"""Channels, leases, watches, lists and retention over real gRPC."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab.client import Client
from trimtab.errors import InvalidRequest, LeaseHeld, NotFound, Reason, TrimtabError, Unavailable, VersionConflict
from trimtab.v1 import weights_pb2 as pb
from trimtab.weights import BlobClient, fetch_version, publish_version
from trimtab_services.runtime.state import State

from .conftest import RunningStore, make_tensors, running


def _publish(client: Client, seed: int = 0, channel: str = "policy/latest", **options: Any) -> int:
    tensors = make_tensors(seed)
    return publish_version(client, tensors, {}, channels=[channel], **options).version


def _lease(client: Client, prefix: str, ttl_ms: int = 60_000, lease_id: str = "", holder: str = "run-a") -> pb.Lease:
    request = pb.AcquireLeaseRequest(channel_prefix=prefix, holder=holder, ttl_ms=ttl_ms, lease_id=lease_id)
    return client.acquire_lease(request).lease


def test_lease_keeps_others_out(client: Client) -> None:
    lease = _lease(client, "policy/")
    with pytest.raises(LeaseHeld, match="run-a") as caught:
        _publish(client)
    assert (caught.value.reason, caught.value.metadata["holder"]) == (Reason.LEASE_HELD, "run-a")
    for overlapping in ("", "pol", "policy/latest"):
        with pytest.raises(LeaseHeld):
            _lease(client, overlapping, holder="run-b")
    assert _publish(client, lease_id=lease.lease_id) == 1
    with pytest.raises(LeaseHeld):
        client.set_channel(pb.SetChannelRequest(channel="policy/x", version=1, expected_previous_version=-1))
    with pytest.raises(InvalidRequest, match="covers"):
        _publish(client, 1, channel="reward/latest", lease_id=lease.lease_id)
    renewed = _lease(client, "policy/", lease_id=lease.lease_id)
    assert renewed.lease_id == lease.lease_id
    client.release_lease(pb.ReleaseLeaseRequest(lease_id=lease.lease_id))
    client.release_lease(pb.ReleaseLeaseRequest(lease_id=lease.lease_id))
    assert _publish(client, 1) == 2


def test_lease_ends_and_is_lost(client: Client) -> None:
    lease = _lease(client, "policy/", ttl_ms=1000)
    time.sleep(1.1)
    with pytest.raises(LeaseHeld) as caught:
        _publish(client, lease_id=lease.lease_id)
    assert caught.value.reason is Reason.LEASE_LOST
    with pytest.raises(LeaseHeld) as caught:
        _lease(client, "policy/", lease_id=lease.lease_id)
    assert caught.value.reason is Reason.LEASE_LOST
    assert _lease(client, "policy/", holder="run-b").holder == "run-b"


@pytest.mark.parametrize("ttl_ms", [0, 999, 600_001])
def test_lease_time_has_bounds(client: Client, ttl_ms: int) -> None:
    with pytest.raises(InvalidRequest, match="ttl_ms"):
        _lease(client, "", ttl_ms=ttl_ms)


def test_set_channel_promotes_and_rolls_back(client: Client) -> None:
    first, second = _publish(client), _publish(client, 1)

    def point(version: int, expected: int) -> pb.Channel:
        request = pb.SetChannelRequest(channel="policy/serving", version=version, expected_previous_version=expected)
        return client.set_channel(request).channel

    assert (point(second, 0).version, point(first, second).generation) == (second, 2)
    with pytest.raises(VersionConflict):
        point(second, second)
    with pytest.raises(NotFound):
        point(99, -1)
    channels = client.list_channels(pb.ListChannelsRequest(prefix="policy/")).channels
    assert [(c.name, c.version) for c in channels] == [("policy/latest", 2), ("policy/serving", 1)]


def test_versions_are_listed_in_pages(client: Client) -> None:
    for step in range(5):
        _publish(client, run="a" if step % 2 else "b", step=step)
    page = client.list_versions(pb.ListVersionsRequest(page_size=2))
    assert [line.version for line in page.versions] == [5, 4]
    assert list(page.versions[0].channels) == ["policy/latest"]
    page = client.list_versions(pb.ListVersionsRequest(page_size=10, page_token=page.next_page_token))
    assert ([line.version for line in page.versions], page.next_page_token) == ([3, 2, 1], "")
    assert [line.version for line in client.list_versions(pb.ListVersionsRequest(run="a")).versions] == [4, 2]
    with pytest.raises(InvalidRequest):
        client.list_versions(pb.ListVersionsRequest(page_token="x"))


def test_watch_tells_moves_and_gives_signs_of_life(client: Client) -> None:
    watch = client.watch(pb.WatchRequest(channel="policy/latest"))
    assert next(watch).version == 0  # a sign of life, since the channel does not exist yet
    _publish(client)
    assert _next_other(watch, 0) == 1
    _publish(client, 1)
    assert _next_other(watch, 1) == 2
    assert next(watch).version == 2
    late = client.watch(pb.WatchRequest(channel="policy/latest", after_version=1))
    assert next(late).version == 2


def _next_other(watch: Iterator[pb.WatchResponse], version: int) -> int:
    return next(message.version for message in watch if message.version != version)


def test_watch_never_loses_the_newest(client: Client, service: RunningStore) -> None:
    seen: list[int] = []

    def follow() -> None:
        with Client(service.target) as own:
            for message in own.watch(pb.WatchRequest(channel="policy/latest")):
                seen.append(message.version)
                if message.version == 12:
                    return

    threads = [threading.Thread(target=follow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for seed in range(12):
        _publish(client, seed)
    for thread in threads:
        thread.join(10)
    assert seen.count(12) == 4


def test_watch_ends_with_the_drain(tmp_path: Path) -> None:
    with running(store=str(tmp_path / "store"), sign_of_life_s=0.1) as service:
        client = Client(service.target)
        watch = client.watch(pb.WatchRequest(channel="c"))
        next(watch)
        started = time.monotonic()
        service.run(service.server.runtime.set_state(State.SERVICE_STATE_DRAINING))
        with pytest.raises(Unavailable) as caught:
            list(watch)
    assert caught.value.reason is Reason.DRAINING
    assert time.monotonic() - started < 5
    client.close()


def test_prune_keeps_what_is_needed(tmp_path: Path) -> None:
    with running(store=str(tmp_path / "store"), blob_grace_s=0) as service, Client(service.target) as client:
        for seed in range(6):
            _publish(client, seed)
        client.pin(pb.PinRequest(version=2, pinned=True))
        client.set_channel(pb.SetChannelRequest(channel="serving", version=3, expected_previous_version=0))
        told = client.prune(pb.PruneRequest(keep_last=2, dry_run=True))
        assert len(client.list_versions(pb.ListVersionsRequest()).versions) == 6
        done = client.prune(pb.PruneRequest(keep_last=2))
        assert done == told and list(done.removed_versions) == [1, 4] and done.removed_bytes > 0
        for version in (2, 3, 5, 6):
            fetch_version(client, version=version)
        with pytest.raises(NotFound):
            fetch_version(client, version=4)
        with pytest.raises(NotFound):
            client.pin(pb.PinRequest(version=4, pinned=True))
        with pytest.raises(InvalidRequest):
            client.prune(pb.PruneRequest(keep_last=0))
        client.pin(pb.PinRequest(version=2, pinned=False))
        assert list(client.prune(pb.PruneRequest(keep_last=2)).removed_versions) == [2]
        assert _publish(client, 1) == 7  # its blob was pruned, so it is uploaded again
        fetch_version(client, version=7)


def test_what_is_on_its_way_is_never_pruned(client: Client, service: RunningStore, tmp_path: Path) -> None:
    for seed in range(3):
        _publish(client, seed)
    uploaded = hashlib.sha256(b"uploaded").hexdigest()
    with BlobClient(service.http_url + "/blobs/", timeout_s=3) as blobs:
        blobs.put(uploaded, [memoryview(b"uploaded")])
    told_of = client.get_manifest(pb.GetManifestRequest(version=1)).manifest.tensors[0].blob_digest
    assert not client.find_missing_blobs(pb.FindMissingBlobsRequest(digests=[told_of])).missing
    gone = client.get_manifest(pb.GetManifestRequest(version=2)).manifest.tensors[0].blob_digest
    done = client.prune(pb.PruneRequest(keep_last=1))
    assert list(done.removed_versions) == [1, 2] and done.removed_bytes > 0
    left = {path.name for path in (tmp_path / "store" / "blobs").glob("??/*")}
    assert {uploaded, told_of} <= left and gone not in left
    fetch_version(client, version=3)


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_restart_keeps_numbers_channels_leases_and_publications(kind: str, tmp_path: Path) -> None:
    store = str(tmp_path / "store") if kind == "local" else f"memory://{tmp_path.name}"
    with running(store=store, blob_grace_s=0) as service, Client(service.target) as client:
        for seed in range(3):
            _publish(client, seed, publish_id=f"p{seed}")
        client.prune(pb.PruneRequest(keep_last=1))
        lease = _lease(client, "run-7/")
    with running(store=store) as service, Client(service.target) as client:
        assert _publish(client, 2, publish_id="p2") == 3
        assert _publish(client, 3) == 4
        with pytest.raises(LeaseHeld):
            _publish(client, channel="run-7/x")
        assert _publish(client, channel="run-7/x", lease_id=lease.lease_id) == 5


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_second_writer_is_refused(kind: str, tmp_path: Path) -> None:
    store = str(tmp_path / "store") if kind == "local" else f"memory://{tmp_path.name}"
    with running(store=store):
        with pytest.raises(TrimtabError, match=f"process {os.getpid()} on host"):
            RunningStore(store=store)
