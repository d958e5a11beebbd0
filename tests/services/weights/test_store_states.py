"""The store under any order of publications, prunes, moves and crashes: what it acknowledged is there, and is right."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trimtab.v1 import weights_pb2 as pb
from trimtab.weights import TensorData, weights_digest
from trimtab.weights.chains import Chains
from trimtab.weights.manifest import tensor_digest
from trimtab.weights.publication import _draft, _file_entries, _Published
from trimtab_services.weights.files import LocalFiles
from trimtab_services.weights.store import Store

from .test_crash import Crash, CrashingFiles

CHANNELS = ("policy/latest", "policy/serving")


class StoreMachine(RuleBasedStateMachine):
    """A store and what must be true of it.

    Attributes:
        known: digest of the tensors of each acknowledged version that is not pruned.
        maybe: versions that a crash left in doubt: committed or not, but never half.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.store = self.opened(LocalFiles(self.root))
        self.rng = np.random.default_rng(0)
        self.array = self.rng.integers(0, 2**16, size=4000, dtype=np.uint16)
        self.known: dict[int, str] = {}
        self.highest = 0
        self.channels: dict[str, int] = {}
        self.base: _Published | None = None
        self.published = 0

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.root)

    def opened(self, files: LocalFiles) -> Store:
        return Store(str(self.root), files=files, blob_grace_s=0)

    def crashing(self, at: int | None, work: Callable[[], None]) -> bool:
        """Does something with a store whose process dies at its n-th write; tells whether it died, and starts anew."""
        if at is None:
            work()
            return False
        self.store.close()
        crashed = False
        try:
            self.store = self.opened(CrashingFiles(self.root, at))
            work()
        except Crash:
            crashed = True
        self.store.close()
        self.store = self.opened(LocalFiles(self.root))
        return crashed

    def tensors(self) -> list[TensorData]:
        norm = self.array[:3].copy()
        return [
            TensorData("norm", "BF16", norm.shape, memoryview(norm.tobytes())),
            TensorData("weight", "BF16", self.array.shape, memoryview(self.array.tobytes())),
        ]

    @initialize()
    def first(self) -> None:
        self.publish(channels=1, density=1.0, from_base=False, crash_at=None)

    @rule(
        channels=st.integers(1, 2),
        density=st.sampled_from([0.0, 0.01, 1.0]),
        from_base=st.booleans(),
        crash_at=st.none() | st.integers(1, 12),
    )
    def publish(self, channels: int, density: float, from_base: bool, crash_at: int | None) -> None:
        self.array = self.array + (self.rng.random(self.array.shape) < density).astype(np.uint16)
        tensors = self.tensors()
        has_base = from_base and self.base is not None and self.base.manifest.version in self.known
        draft = _draft(tensors, self.base if has_base else None)
        manifest = pb.Manifest(run="r", tensors=draft.entries, files=_file_entries({"a": b"a"}, draft.blobs))
        manifest.weights_digest = weights_digest(manifest.tensors)
        self.published += 1
        request = pb.PublishRequest(
            manifest=manifest,
            channels=CHANNELS[:channels],
            expected_previous_version=-1,
            publish_id=f"p{self.published}",
        )

        def commit() -> None:
            for digest in self.store.find_missing(draft.blobs):
                upload = self.store.files.upload()
                for part in draft.blobs[digest]:
                    upload.write(bytes(part))
                self.store.commit_blob(upload, digest)
            self.acknowledge(self.store.publish(request), request, tensors)

        if self.crashing(crash_at, commit):
            commit()  # a retry makes the version once, or finds it made

    def acknowledge(self, manifest: pb.Manifest, request: pb.PublishRequest, tensors: list[TensorData]) -> None:
        assert manifest.version > self.highest or manifest.version in self.known
        self.highest = max(self.highest, manifest.version)
        self.known[manifest.version] = tensor_digest(tensors[1])
        self.channels |= dict.fromkeys(request.channels, manifest.version)
        named = {tensor.name: tensor for tensor in tensors}
        self.base = _Published(manifest, named, {entry.name: entry for entry in manifest.tensors}, 0)

    @rule(keep_last=st.integers(1, 4), crash_at=st.none() | st.integers(1, 20))
    def prune(self, keep_last: int, crash_at: int | None) -> None:
        request = pb.PruneRequest(keep_last=keep_last)
        told = set(self.store.prune(pb.PruneRequest(keep_last=keep_last, dry_run=True)).removed_versions)
        newest = set(sorted(self.known)[-keep_last:])
        assert not told & (newest | set(self.channels.values()))
        if self.crashing(crash_at, lambda: self.removed(set(self.store.prune(request).removed_versions), told)):
            left = {line.version for line in self.store.versions(pb.ListVersionsRequest(page_size=1000)).versions}
            assert left in (set(self.known), set(self.known) - told)  # all of it, or none
            self.known = {version: self.known[version] for version in left}

    def removed(self, versions: set[int], told: set[int]) -> None:
        assert versions == told
        for version in versions:
            del self.known[version]

    @precondition(lambda self: len(self.known) > 1)
    @rule(data=st.data(), crash_at=st.none() | st.integers(1, 4))
    def roll_back(self, data: st.DataObject, crash_at: int | None) -> None:
        version = data.draw(st.sampled_from(sorted(self.known)))
        request = pb.SetChannelRequest(channel=CHANNELS[0], version=version, expected_previous_version=-1)
        before = self.channels[CHANNELS[0]]
        if self.crashing(crash_at, lambda: self.moved(self.store.set_channel(request).version)):
            now = self.store.channel_version(CHANNELS[0])
            assert now in (before, version)
            self.moved(now)

    def moved(self, version: int) -> None:
        self.channels[CHANNELS[0]] = version

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = self.opened(LocalFiles(self.root))

    @invariant()
    def every_version_comes_back(self) -> None:
        lines = self.store.versions(pb.ListVersionsRequest(page_size=1000)).versions
        assert {line.version for line in lines} == set(self.known)
        for version, digest in self.known.items():
            manifest = self.store.manifest(version, None)
            chains = Chains(lambda number: self.store.manifest(number, None), lambda name, wanted: None)
            for entry in manifest.tensors:
                data = chains.recipe(version, entry).made(self.part)
                tensor = TensorData(entry.name, entry.dtype, tuple(entry.shape), data)
                assert tensor_digest(tensor) == entry.digest
            assert manifest.tensors[1].digest == digest

    @invariant()
    def channels_point_where_they_were_moved(self) -> None:
        assert {channel.name: channel.version for channel in self.store.channels("")} == self.channels

    def part(self, entry: pb.TensorEntry) -> memoryview:
        blob = self.store.open_blob(entry.blob_digest)
        assert blob is not None
        try:
            return memoryview(b"".join(blob.chunks(entry.blob_offset_bytes, entry.blob_length_bytes)))
        finally:
            blob.close()


StoreMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestStore = StoreMachine.TestCase
