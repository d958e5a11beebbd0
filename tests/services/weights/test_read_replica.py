"""Services that share a store with the one that writes it: they see all of it, soon, and change nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.client import Client
from trimtab.errors import NotFound, TrimtabError, Unsupported
from trimtab.v1 import weights_pb2 as pb
from trimtab.weights import BlobClient, Publisher, fetch_version, publish_version

from .conftest import RunningStore, make_tensors, running

CHANNEL = "policy/latest"


@pytest.fixture(params=["local", "memory"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Client, Client, RunningStore]]:
    """A writer's client, a reader's client and the reader."""
    store = str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}"
    with (
        running(store=store) as writer,
        running(store=store, read_only=True, refresh_s=0.1) as reader,
        Client(writer.target) as writing,
        Client(reader.target) as reading,
    ):
        yield writing, reading, reader


def _wait_for(reading: Client, version: int) -> None:
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        channels = reading.list_channels(pb.ListChannelsRequest()).channels
        if any(channel.version == version for channel in channels):
            return
        time.sleep(0.02)
    raise AssertionError(f"version {version} was not seen")


def test_what_is_committed_is_seen_and_read(pair: tuple[Client, Client, RunningStore], tmp_path: Path) -> None:
    writing, reading, _ = pair
    with pytest.raises(NotFound):
        fetch_version(reading, channel=CHANNEL)
    publisher = Publisher(writing)
    for seed in range(3):
        manifest = publisher.publish(make_tensors(seed), {"a": b"b"}, channels=[CHANNEL]).manifest
        _wait_for(reading, manifest.version)
        fetched = fetch_version(reading, channel=CHANNEL, cache=tmp_path / "cache")
        assert fetched.manifest == manifest
        assert bytes(fetched.tensors["weight"].data) == bytes(make_tensors(seed)[0].data)
    assert len(reading.list_versions(pb.ListVersionsRequest()).versions) == 3


def test_a_watch_is_told(pair: tuple[Client, Client, RunningStore]) -> None:
    writing, reading, _ = pair
    told: list[int] = []

    def watch() -> None:
        for reply in reading.watch(pb.WatchRequest(channel=CHANNEL), timeout_s=20):
            told.append(reply.version)
            if reply.version == 2:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    for seed in range(2):
        publish_version(writing, make_tensors(seed), {}, channels=[CHANNEL])
        _wait_for(reading, seed + 1)
    watcher.join(15)
    assert not watcher.is_alive() and told[-1] == 2


def test_every_change_is_refused(pair: tuple[Client, Client, RunningStore]) -> None:
    writing, reading, reader = pair
    publish_version(writing, make_tensors(0), {}, channels=[CHANNEL])
    _wait_for(reading, 1)
    with pytest.raises(Unsupported, match="read_only; publish at the one that writes"):
        publish_version(reading, make_tensors(1), {}, channels=[CHANNEL])
    changes = [
        lambda: reading.set_channel(pb.SetChannelRequest(channel="x", version=1)),
        lambda: reading.pin(pb.PinRequest(version=1, pinned=True)),
        lambda: reading.prune(pb.PruneRequest(keep_last=1)),
        lambda: reading.acquire_lease(pb.AcquireLeaseRequest(holder="me", ttl_ms=1000)),
        lambda: reading.release_lease(pb.ReleaseLeaseRequest(lease_id="x")),
    ]
    for change in changes:
        with pytest.raises(Unsupported):
            change()
    with BlobClient(reader.http_url + "/blobs/", timeout_s=3) as blobs, pytest.raises(TrimtabError, match="read_only"):
        blobs.put("0" * 64, [memoryview(b"x")])
