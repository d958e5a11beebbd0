"""A store that is copied while a run publishes to it, in the order that docs/operate.md gives, and opened elsewhere."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

from trimtab.client import Client
from trimtab.v1 import weights_pb2 as pb
from trimtab.weights import Publisher, fetch_version

from .conftest import make_tensors, running

CHANNEL = "policy/latest"
PARTS = ("state.json", "manifests", "blobs")
"""What a back-up holds, in this order: what counts first, then what it points to."""


def test_a_copy_made_under_publications_is_whole(tmp_path: Path) -> None:
    store, copy, archive = tmp_path / "store", tmp_path / "copy", tmp_path / "store.tar"
    copy.mkdir()
    enough = threading.Event()
    published = []

    def publish(target: str) -> None:
        with Client(target, timeout_s=20) as client:
            publisher = Publisher(client)
            while not enough.is_set():
                files = {"config.json": b"{}"}
                published.append(
                    publisher.publish(make_tensors(len(published)), files, channels=[CHANNEL]).manifest.version
                )

    with running(store=str(store)) as service:
        publishing = threading.Thread(target=publish, args=(service.target,))
        publishing.start()
        wait_for(published, 10)
        before = published[-1]
        for part in PARTS:  # a large store takes tar so long that versions come while it reads
            subprocess.run(["tar", "-C", store, "-rf", archive, part], check=True, timeout=60)
            wait_for(published, len(published) + 2)
        enough.set()
        publishing.join(30)
    subprocess.run(["tar", "-C", copy, "-xf", archive], check=True, timeout=60)
    with running(store=str(copy)) as restored, Client(restored.target, timeout_s=20) as client:
        versions = sorted(row.version for row in client.list_versions(pb.ListVersionsRequest(page_size=1000)).versions)
        assert versions == list(range(1, versions[-1] + 1)) and versions[-1] >= before
        for version in versions:
            tensors = fetch_version(client, version=version, cache=tmp_path / "cache").tensors  # compares each digest
            assert tensors["step"].array() == version - 1
        assert client.list_channels(pb.ListChannelsRequest()).channels[0].version == versions[-1]
        following = Publisher(client).publish(make_tensors(0), {"config.json": b"{}"}, channels=[CHANNEL])
        assert following.manifest.version > versions[-1]


def wait_for(published: list[int], count: int) -> None:
    deadline = time.monotonic() + 30
    while len(published) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
