"""A store survives a crash at every write, and a killed server loses nothing that it acknowledged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab.client import Client
from trimtab.errors import FailedPrecondition, Reason, TrimtabError
from trimtab.v1 import weights_pb2 as pb
from trimtab.weights import fetch_version, publish_version, weights_digest
from trimtab.weights.manifest import manifest_blobs
from trimtab.weights.publication import _draft, _file_entries
from trimtab_services.weights.files import LocalFiles, Upload
from trimtab_services.weights.store import Store
from trimtab_services.weights.verification import verify_bytes

from .conftest import make_tensors


class Crash(BaseException):
    """The process is gone."""


class CrashingFiles(LocalFiles):
    """Local files of a process that dies before or after its n-th change of the disk, and changes nothing more."""

    def __init__(self, root: Path, crash_at: float) -> None:
        self._count = 0
        self._crash_at = crash_at
        super().__init__(root)

    def step(self) -> None:
        self._count += 1
        if self._count >= self._crash_at:
            raise Crash

    def move_into_place(self, temporary: Path, path: str) -> None:
        self.step()
        super().move_into_place(temporary, path)
        self.step()

    def remove(self, path: str) -> None:
        self.step()
        super().remove(path)
        self.step()


def _request(seed: int) -> tuple[pb.PublishRequest, dict[str, list[memoryview]]]:
    draft = _draft(sorted(make_tensors(seed), key=lambda tensor: tensor.name), None)
    blobs = draft.blobs
    manifest = pb.Manifest(tensors=draft.entries, files=_file_entries({"a": b"%d" % seed}, blobs))
    manifest.weights_digest = weights_digest(manifest.tensors)
    request = pb.PublishRequest(
        manifest=manifest, channels=["a", "b"], expected_previous_version=-1, publish_id=f"p{seed}"
    )
    return request, blobs


def _publish(store: Store, seed: int) -> int:
    request, blobs = _request(seed)
    for digest in store.find_missing(blobs):
        upload: Upload = store.files.upload()
        for part in blobs[digest]:
            upload.write(bytes(part))
        store.commit_blob(upload, digest)
    return store.publish(request).version


def _check_consistent(store: Store) -> None:
    numbers = [line.version for line in store.versions(pb.ListVersionsRequest()).versions]
    for version in numbers:
        verify_bytes(store.files, store._decoded, store.manifest(version, None), version)
    pointed = {channel.version for channel in store.channels("")}
    assert len(pointed) <= 1 and pointed <= set(numbers)  # both channels moved, or none


def _work(files: LocalFiles, acknowledged: list[int]) -> None:
    store = Store("crashing", files=files, blob_grace_s=0)
    try:
        for seed in range(3):
            acknowledged.append(_publish(store, seed))
        store.prune(pb.PruneRequest(keep_last=1))
        acknowledged.append(-1)
        _publish(store, 3)
    finally:
        store.close()  # the kernel lets go of a dead process's lock


def _outcomes(tmp_path: Path) -> Iterator[tuple[Path, list[int], bool]]:
    for crash_at in range(1, 200):
        root = tmp_path / str(crash_at)
        acknowledged: list[int] = []
        try:
            _work(CrashingFiles(root, crash_at), acknowledged)
        except Crash:
            yield root, acknowledged, True
        else:
            yield root, acknowledged, False
            return


def test_crash_at_every_write_leaves_a_consistent_store(tmp_path: Path) -> None:
    crashes = 0
    for root, acknowledged, crashed in _outcomes(tmp_path):
        crashes += crashed
        store = Store("again", files=LocalFiles(root), blob_grace_s=0)
        _check_consistent(store)
        versions = {line.version for line in store.versions(pb.ListVersionsRequest()).versions}
        kept = set(acknowledged) if -1 not in acknowledged else {max(acknowledged)}
        may_be_pruned = len(acknowledged) == 3  # the crash came during the prune
        assert kept <= versions or (may_be_pruned and max(kept) in versions)
        highest = max([0, *acknowledged])
        seeds = (highest - 1, 7) if highest else (7,)
        assert not highest or _publish(store, seeds[0]) == highest  # a retry finds the version made before
        assert _publish(store, 7) > highest
        store.prune(pb.PruneRequest(keep_last=1))
        needed = manifest_blobs(store.manifest(None, "a"))
        assert {path.rpartition("/")[2] for path in store.files.list("blobs")} == needed
        assert len(store.files.list("manifests")) == 1
        assert store.files.list("tmp") == []
        store.close()
    assert crashes > 30


def test_failed_write_of_the_state_is_not_forgotten(tmp_path: Path) -> None:
    """The state reaches the disk but its write reports an error: the retry must see what the disk says."""

    class Faulty(LocalFiles):
        fail = False

        def write(self, path: str, content: bytes) -> None:
            super().write(path, content)
            if self.fail and path == "state.json":
                self.fail = False
                raise OSError("I/O error")

    files = Faulty(tmp_path)
    store = Store("faulty", files=files)
    files.fail = True
    with pytest.raises(OSError, match="I/O error"):
        _publish(store, 0)
    assert _publish(store, 0) == 1
    assert _publish(store, 1) == 2
    _check_consistent(store)
    store.close()


def _start(directory: Path) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    ready = directory / "ready.json"
    ready.unlink(missing_ok=True)
    config = directory / "config.yaml"
    ports = {f"{name}_port": 0 for name in ("grpc", "health", "http", "metrics")}
    config.write_text(yaml.safe_dump({**ports, "store": str(directory / "store"), "ready_file": str(ready)}))
    with (directory / "log").open("ab") as log:
        command = [sys.executable, "-m", "trimtab", "serve", "weights", "--config", str(config)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ))
    give_up = time.monotonic() + 30
    while not ready.exists():
        assert process.poll() is None and time.monotonic() < give_up, (directory / "log").read_text()
        time.sleep(0.02)
    return process, json.loads(ready.read_text())


def test_killed_server_loses_nothing_acknowledged(tmp_path: Path) -> None:
    acknowledged: dict[int, int] = {}
    for life in range(2):
        process, addresses = _start(tmp_path)

        def work(life: int = life, target: str = addresses["grpc"]) -> None:
            with Client(target, timeout_s=5) as client:
                for seed in range(life * 1000, life * 1000 + 1000):
                    try:
                        tensors = make_tensors(seed)
                        version = publish_version(client, tensors, {}, channels=["c"], timeout_s=5).version
                    except TrimtabError:
                        return
                    acknowledged[version] = seed

        worker = threading.Thread(target=work)
        worker.start()
        time.sleep(1.0)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        worker.join(30)
    process, addresses = _start(tmp_path)
    try:
        with Client(addresses["grpc"]) as client:
            assert len(acknowledged) > 4
            for version, seed in acknowledged.items():
                fetched = fetch_version(client, version=version, cache=tmp_path / "cache")
                assert bytes(fetched.tensors["weight"].data) == bytes(make_tensors(seed)[0].data)
            assert publish_version(client, make_tensors(-1 % 99), {}, channels=["c"]).version > max(acknowledged)
    finally:
        process.terminate()
        assert process.wait(15) == 0


def test_a_version_that_is_committed_during_a_prune_keeps_its_blobs(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    store = Store("busy", files=files, blob_grace_s=0)
    _publish(store, 0)
    _publish(store, 1)
    again, _ = _request(0)  # the blobs of the version that the prune removes; nobody asked whether they are there
    again.publish_id = "again"
    looking, go_on = threading.Event(), threading.Event()
    size = files.size

    def slow_size(path: str) -> int | None:
        if threading.current_thread().name == "prune":
            looking.set()
            go_on.wait(10)
        return size(path)

    files.size = slow_size  # type: ignore[method-assign]
    pruning = threading.Thread(target=store.prune, args=(pb.PruneRequest(keep_last=1),), name="prune")
    pruning.start()
    assert looking.wait(10)
    outcome: list[object] = []

    def publish() -> None:
        try:
            outcome.append(store.publish(again).version)
        except FailedPrecondition as error:
            outcome.append(error.reason)

    publishing = threading.Thread(target=publish)
    publishing.start()
    publishing.join(1.0)  # held up by the prune, or through before it removes anything
    go_on.set()
    pruning.join(10)
    publishing.join(10)
    assert outcome in ([3], [Reason.BLOB_MISSING])
    _check_consistent(store)
    store.close()
