"""Versions that are sent as what changed since the last one: exact, small, readable from wherever a reader stands."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from trimtab.client import Client
from trimtab.errors import CorruptData, FailedPrecondition, InvalidRequest, Reason
from trimtab.v1 import weights_pb2 as pb
from trimtab.weights import FetchedVersion, Publication, Publisher, TensorData, fetch_version, weights_digest

from .conftest import RunningStore, running

CHANNEL = "policy/latest"
RAW, DELTA = pb.ENCODING_RAW, pb.ENCODING_DELTA


class Training:
    """Weights that move: most elements of two tensors stay as they are in a step, one tensor never moves."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self.arrays = {
            "embed": self._rng.integers(0, 2**16, size=(400, 100), dtype=np.uint16),
            "frozen": self._rng.integers(0, 2**16, size=5000, dtype=np.uint16),
            "layer.weight": self._rng.integers(0, 2**16, size=(300, 90), dtype=np.uint16),
            "norm": self._rng.integers(0, 2**16, size=3, dtype=np.uint16),
        }

    def step(self, density: float = 0.02) -> None:
        for name in ("embed", "layer.weight", "norm"):
            array = self.arrays[name]
            self.arrays[name] = array + (self._rng.random(array.shape) < density).astype(np.uint16)

    def tensors(self) -> list[TensorData]:
        return [
            TensorData(name, "BF16", array.shape, memoryview(array.tobytes())) for name, array in self.arrays.items()
        ]

    def is_equal(self, fetched: FetchedVersion) -> bool:
        return all(np.array_equal(fetched.tensors[name].array(), array) for name, array in self.arrays.items())

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


@pytest.fixture
def training() -> Training:
    return Training()


def _publish(publisher: Publisher, training: Training, **options: object) -> Publication:
    return publisher.publish(training.tensors(), {"config.json": b"{}"}, channels=[CHANNEL], **options)  # type: ignore[arg-type]


def _encodings(publication: Publication) -> set[int]:
    return {entry.encoding for entry in publication.manifest.tensors}


def _versions(publisher: Publisher, training: Training, count: int) -> Iterator[Publication]:
    for number in range(count):
        if number:
            training.step()
        yield _publish(publisher, training)


def test_a_model_of_more_tensors_than_files_may_be_open(client: Client) -> None:
    """The store maps the base of a difference while it checks it, and lets it go."""
    arrays = {f"expert.{n}": np.arange(64, dtype=np.uint16) + n for n in range(400)}
    publisher = Publisher(client)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 100, hard))
    try:
        for number in range(4):
            tensors = [TensorData(name, "BF16", one.shape, memoryview(one.tobytes())) for name, one in arrays.items()]
            publication = publisher.publish(tensors, {}, channels=[CHANNEL])
            assert _encodings(publication) == ({DELTA} if number else {RAW})
            for one in arrays.values():
                one[number] += 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_only_what_changed_is_sent_and_every_version_comes_back(
    client: Client, training: Training, tmp_path: Path
) -> None:
    publisher = Publisher(client)
    held = None
    for number, publication in enumerate(_versions(publisher, training, 5)):
        held = fetch_version(client, channel=CHANNEL, cache=tmp_path, base=held)
        assert held.version == publication.manifest.version and training.is_equal(held)
        assert publication.dense_bytes == training.nbytes
        share = publication.payload_bytes / training.nbytes
        assert share < 0.05 if number else share >= 1
        assert held.fetched_bytes == publication.payload_bytes
    assert held is not None and held.weights_digest == weights_digest(held.manifest.tensors)


def test_a_reader_that_comes_late_reads_each_tensor_once(client: Client, training: Training, tmp_path: Path) -> None:
    *_, last = _versions(Publisher(client), training, 4)
    fetched = fetch_version(client, version=last.manifest.version, cache=tmp_path)
    assert training.is_equal(fetched)
    assert training.nbytes <= fetched.fetched_bytes < 1.2 * training.nbytes


def test_a_reader_that_missed_versions_reads_the_differences_between(
    client: Client, training: Training, tmp_path: Path
) -> None:
    publications = list(_versions(Publisher(client), training, 2))
    held = fetch_version(client, channel=CHANNEL, cache=tmp_path)
    publisher = Publisher(client)
    publications += _versions(publisher, training, 4)
    now = fetch_version(client, channel=CHANNEL, cache=tmp_path / "other", base=held)
    assert training.is_equal(now) and now.version == 6


def test_a_new_life_of_the_store_reads_the_chain(training: Training, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    with running(store=store) as service, Client(service.target) as client:
        *_, last = _versions(Publisher(client), training, 4)
        expected = dict(training.arrays)
    with running(store=store) as service, Client(service.target) as client:
        reply = client.get_manifest(pb.GetManifestRequest(channel=CHANNEL))
        assert not reply.decoded
        fetched = fetch_version(client, channel=CHANNEL)
        assert all(np.array_equal(fetched.tensors[name].array(), array) for name, array in expected.items())
        assert fetched.fetched_bytes > training.nbytes
        assert fetched.manifest == last.manifest


def test_a_chain_has_an_end(client: Client, training: Training) -> None:
    publications = list(_versions(Publisher(client, max_chain=3), training, 9))
    whole = [publication.manifest.version for publication in publications if _encodings(publication) == {RAW}]
    assert whole == [1, 5, 9]


def test_differences_that_add_up_to_a_model_end_the_chain(client: Client, training: Training) -> None:
    publisher = Publisher(client, max_chain=100)
    shares = []
    for number in range(8):
        if number:
            training.step(density=1.0)
            for name in ("embed", "layer.weight"):  # half of the bits are noise: a difference of about half the size
                noise = np.random.default_rng(number).integers(0, 256, training.arrays[name].shape)
                training.arrays[name] = training.arrays[name] ^ noise.astype(np.uint16)
        publication = _publish(publisher, training)
        shares.append(publication.payload_bytes / training.nbytes)
    assert max(shares) < 1.01
    assert sum(share > 0.9 for share in shares) in (4, 8)


def test_noise_is_sent_whole(client: Client, training: Training) -> None:
    publisher = Publisher(client)
    _publish(publisher, training)
    rng = np.random.default_rng(5)
    training.arrays = {name: rng.integers(0, 2**16, a.shape, dtype=np.uint16) for name, a in training.arrays.items()}
    publication = _publish(publisher, training)
    assert _encodings(publication) == {RAW} and publication.payload_bytes == training.nbytes


def test_a_tensor_of_another_shape_or_name_is_sent_whole(client: Client, training: Training) -> None:
    publisher = Publisher(client)
    _publish(publisher, training)
    training.arrays["embed"] = np.vstack([training.arrays["embed"], training.arrays["embed"][:1]])
    training.arrays["new"] = training.arrays.pop("norm")
    _publish(publisher, training)
    assert training.is_equal(fetch_version(client, channel=CHANNEL))


def test_a_base_that_was_pruned_is_not_built_on(service: RunningStore, training: Training) -> None:
    with Client(service.target) as client:
        publisher = Publisher(client)
        _publish(publisher, training)
        Publisher(client).publish(Training().tensors()[:1], {}, channels=[CHANNEL])
        assert list(client.prune(pb.PruneRequest(keep_last=1)).removed_versions) == [1]
        training.step()
        publication = _publish(publisher, training)
        assert _encodings(publication) == {RAW}
        assert training.is_equal(fetch_version(client, channel=CHANNEL))


def test_prune_keeps_what_a_chain_needs(client: Client, training: Training, tmp_path: Path) -> None:
    publisher = Publisher(client, max_chain=3)
    list(_versions(publisher, training, 7))  # 1 and 5 are whole
    assert list(client.prune(pb.PruneRequest(keep_last=1)).removed_versions) == [1, 2, 3, 4]
    assert training.is_equal(fetch_version(client, channel=CHANNEL, cache=tmp_path))
    shutil.rmtree(tmp_path / "store" / "decoded")
    assert training.is_equal(fetch_version(client, channel=CHANNEL))


def test_a_publication_made_again_after_a_crash_is_the_same_version(client: Client, training: Training) -> None:
    publisher = Publisher(client)
    _publish(publisher, training)
    training.step()
    first = _publish(publisher, training, publish_id="iteration-1")
    again = _publish(Publisher(client), training, publish_id="iteration-1")  # a new life has no base: all is whole
    assert again.manifest == first.manifest and _encodings(first) == {RAW, DELTA}
    training.step()
    third = _publish(publisher, training)
    assert third.manifest.version == 3 and training.is_equal(fetch_version(client, version=3))


def test_a_wrong_difference_never_becomes_a_version(client: Client, training: Training) -> None:
    publisher = Publisher(client)
    _publish(publisher, training)
    training.step()
    manifest = _publish(publisher, training).manifest
    manifest.version = manifest.chain_length = 0
    manifest.ClearField("create_time")
    delta = next(entry for entry in manifest.tensors if entry.encoding == DELTA)

    def refused(**changes: object) -> Exception:
        wrong = pb.Manifest()
        wrong.CopyFrom(manifest)
        entry = next(entry for entry in wrong.tensors if entry.name == delta.name)
        for field, value in changes.items():
            if field == "shape":
                entry.shape[:] = value  # type: ignore[assignment]
            else:
                setattr(entry, field, value)
        wrong.weights_digest = weights_digest(wrong.tensors)
        with pytest.raises((CorruptData, InvalidRequest, FailedPrecondition)) as caught:
            request = pb.PublishRequest(manifest=wrong, channels=[CHANNEL], publish_id=str(changes))
            request.expected_previous_version = -1
            client.publish(request)
        return caught.value

    assert isinstance(refused(digest="0" * 64), CorruptData)
    moved = _publish(
        publisher, training
    ).manifest  # has the same bytes, but the digest below is that of another version
    assert moved.weights_digest == manifest.weights_digest
    other_bases = client.get_manifest(pb.GetManifestRequest(version=2)).manifest.tensors
    at_hand = next(entry.digest for entry in other_bases if entry.name == delta.name)
    assert refused(base_digest=at_hand).reason is Reason.BASE_MISSING  # type: ignore[attr-defined]
    assert refused(shape=[2**40, 2**40]).reason is Reason.BASE_MISSING  # type: ignore[attr-defined]
    assert refused(base_version=77).reason is Reason.BASE_MISSING  # type: ignore[attr-defined]
    assert refused(base_digest="0" * 64).reason is Reason.BASE_MISSING  # type: ignore[attr-defined]
    assert refused(base_version=0).reason is Reason.FIELD_INVALID  # type: ignore[attr-defined]
    assert refused(encoding=RAW).reason is Reason.FIELD_INVALID  # type: ignore[attr-defined]
    assert refused(encoding=9).reason is Reason.FIELD_INVALID  # type: ignore[attr-defined]
    assert refused(blob_length_bytes=10**6).reason is Reason.FIELD_INVALID  # type: ignore[attr-defined]
    other = next(e for e in manifest.tensors if e.encoding == DELTA and e.name != delta.name)
    cut = refused(blob_offset_bytes=other.blob_offset_bytes, blob_length_bytes=other.blob_length_bytes)
    assert cut.reason in (Reason.BASE_MISSING, Reason.DIGEST_MISMATCH)  # type: ignore[attr-defined]
    assert client.get_manifest(pb.GetManifestRequest(channel=CHANNEL)).manifest.version == 3


def test_a_base_that_somebody_wrote_to_is_not_trusted(client: Client, training: Training, tmp_path: Path) -> None:
    publisher = Publisher(client)
    _publish(publisher, training)
    held = fetch_version(client, channel=CHANNEL, cache=tmp_path)
    training.step()
    _publish(publisher, training)
    held.tensors["embed"].data[:] = bytes(held.tensors["embed"].data.nbytes)
    assert training.is_equal(fetch_version(client, channel=CHANNEL, cache=tmp_path, base=held))


def test_decoded_bytes_that_rotted_are_not_believed(client: Client, training: Training, tmp_path: Path) -> None:
    list(_versions(Publisher(client), training, 3))
    for path in (tmp_path / "store" / "decoded").iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    fetched = fetch_version(client, channel=CHANNEL, cache=tmp_path / "cache", timeout_s=30)
    assert training.is_equal(fetched)


def test_decoded_bytes_are_bounded(client: Client, training: Training, tmp_path: Path) -> None:
    list(_versions(Publisher(client), training, 8))
    held = sum(path.stat().st_size for path in (tmp_path / "store" / "decoded").iterdir())
    assert held <= 3 * training.nbytes


def test_a_chain_is_bounded_by_the_store_too(client: Client, training: Training) -> None:
    publisher = Publisher(client, max_chain=1000)
    lengths = [one.manifest.chain_length for one in _versions(publisher, training, 70)]
    assert max(lengths) <= 64 and lengths[0] == 0


def test_what_cannot_be_tidied_does_not_fail_a_publication(training: Training, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with running(store=str(store), keep_versions=2) as service, Client(service.target) as client:
        publisher = Publisher(client, max_chain=0)
        for number in range(5):
            training.step()
            _publish(publisher, training, run="r")
            if number == 1:
                (store / "manifests" / f"{1:012d}.pb").write_bytes(b"rotten")
        assert client.get_manifest(pb.GetManifestRequest(channel=CHANNEL)).manifest.version == 5
        assert training.is_equal(fetch_version(client, channel=CHANNEL))


def test_publishers_side_by_side(client: Client, tmp_path: Path) -> None:
    """Several runs publish differences at once to one store."""

    def publish(channel: str) -> tuple[str, Training]:
        own, publisher = Training(), Publisher(client, max_chain=3)
        for _ in range(12):
            own.step()
            publisher.publish(own.tensors(), {}, channels=[channel], run=channel)
        return channel, own

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(publish, [f"run-{number}/latest" for number in range(4)]))
    for channel, own in done:
        assert own.is_equal(fetch_version(client, channel=channel, cache=tmp_path / channel.replace("/", "-")))
