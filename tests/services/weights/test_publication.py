"""Publish and fetch over real gRPC and HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from trimtab.client import Client
from trimtab.errors import (
    CorruptData,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Reason,
    Unauthenticated,
    VersionConflict,
)
from trimtab.v1 import weights_pb2 as pb
from trimtab.weights import BlobClient, TensorData, fetch_version, publish_version

from .conftest import RunningStore, make_tensors, running

FILES = {"config.json": b'{"a": 1}', "nested/template.jinja": b"{{ x }}", "empty.txt": b""}


def _publish(client: Client, seed: int = 0, **options: Any) -> pb.Manifest:
    return publish_version(client, make_tensors(seed), FILES, channels=["policy/latest"], **options)


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_round_trip_is_exact(kind: str, tmp_path: Path) -> None:
    store = str(tmp_path / "store") if kind == "local" else f"memory://{tmp_path.name}"
    with running(store=store) as service, Client(service.target) as client:
        manifest = _publish(client, run="r", stage="ppo", step=3, metrics={"kl": 0.5})
        fetched = fetch_version(client, channel="policy/latest", cache=tmp_path / "cache")
        again = fetch_version(client, version=1)
    assert manifest.version == fetched.version == again.version == 1
    assert fetched.files == FILES
    assert (fetched.manifest.run, fetched.manifest.step, fetched.manifest.metrics["kl"]) == ("r", 3, 0.5)
    for tensor in make_tensors():
        for version in (fetched, again):
            got = version.tensors[tensor.name]
            assert (got.dtype, got.shape, bytes(got.data)) == (tensor.dtype, tensor.shape, bytes(tensor.data))
    assert np.array_equal(fetched.tensors["weight"].array(), make_tensors()[0].array())


def test_large_tensors_fill_several_blobs(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.weights.publication.BLOB_BYTES", 4096)
    arrays = {f"t{i}": np.random.default_rng(i).normal(size=300 + 400 * (i % 3)).astype(np.float32) for i in range(9)}
    tensors = [TensorData.from_array(name, array) for name, array in arrays.items()]
    manifest = publish_version(client, tensors, {}, channels=["c"])
    assert len({entry.blob_digest for entry in manifest.tensors}) > 3
    fetched = fetch_version(client, version=1, cache=tmp_path)
    assert all(np.array_equal(fetched.tensors[name].array(), array) for name, array in arrays.items())


def test_equal_weights_upload_nothing_and_have_equal_digests(client: Client, service: RunningStore) -> None:
    first, second = _publish(client), _publish(client, step=1)
    assert (first.version, second.version, second.parent_version) == (1, 2, 1)
    assert first.weights_digest == second.weights_digest
    assert _publish(client, 1).weights_digest != first.weights_digest


def test_publish_id_makes_one_version(client: Client) -> None:
    first = _publish(client, publish_id="p1")
    assert _publish(client, publish_id="p1") == first
    with pytest.raises(InvalidRequest) as caught:
        _publish(client, seed=1, publish_id="p1")
    assert caught.value.reason is Reason.DUPLICATE_ID


def test_compare_and_swap(client: Client) -> None:
    _publish(client, expected_previous_version=0)
    with pytest.raises(VersionConflict, match="points to version 1"):
        _publish(client, 1, expected_previous_version=0)
    assert _publish(client, 1, expected_previous_version=1).version == 2


def test_missing_blob_is_named(client: Client) -> None:
    manifest = _publish(client)
    manifest.version = 0
    manifest.ClearField("create_time")
    manifest.files[0].digest = "0" * 64
    with pytest.raises(FailedPrecondition) as caught:
        client.publish(pb.PublishRequest(manifest=manifest, channels=["x"], publish_id="p"))
    assert caught.value.reason is Reason.BLOB_MISSING
    assert "0" * 64 in caught.value.message


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda m: setattr(m.tensors[0], "name", "zzz"), InvalidRequest),
        (lambda m: setattr(m.tensors[1], "name", m.tensors[0].name), InvalidRequest),
        (lambda m: m.tensors[0].shape.append(2), InvalidRequest),
        (lambda m: setattr(m.tensors[0], "dtype", "F8"), InvalidRequest),
        (lambda m: setattr(m, "weights_digest", "0" * 64), InvalidRequest),
        (lambda m: setattr(m.files[0], "path", "../x"), InvalidRequest),
        (lambda m: setattr(m.files[0], "length_bytes", 9999), InvalidRequest),
        (lambda m: m.metrics.update({"x": float("nan")}), InvalidRequest),
        (lambda m: setattr(m.tensors[-1], "blob_offset_bytes", 10**9), InvalidRequest),
        (lambda m: setattr(m.tensors[-1], "blob_offset_bytes", 2), CorruptData),
    ],
)
def test_wrong_manifests_are_refused(
    client: Client, change: Callable[[pb.Manifest], object], error: type[Exception]
) -> None:
    manifest = _publish(client)
    manifest.version = 0
    manifest.ClearField("create_time")
    change(manifest)
    with pytest.raises(error):
        client.publish(pb.PublishRequest(manifest=manifest, channels=["x"], publish_id="p"))
    assert [c.name for c in client.list_channels(pb.ListChannelsRequest()).channels] == ["policy/latest"]


def test_upload_with_other_bytes_is_refused(service: RunningStore, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"right").hexdigest()
    with BlobClient(service.http_url + "/blobs/", timeout_s=3) as blobs:
        with pytest.raises(CorruptData):
            blobs.put(digest, [memoryview(b"wrong")])
        with pytest.raises(NotFound):
            blobs.get(digest, tmp_path / "x")
        blobs.put(digest, [memoryview(b"ri"), memoryview(b"ght")])
        blobs.put(digest, [memoryview(b"right")])
        blobs.get(digest, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"right"
    assert not list((tmp_path / "store" / "tmp").iterdir())


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_range_and_head(kind: str, tmp_path: Path) -> None:
    store = str(tmp_path / "store") if kind == "local" else f"memory://{tmp_path.name}"
    content = bytes(range(200))
    digest = hashlib.sha256(content).hexdigest()
    with running(store=store) as service:
        url = f"{service.http_url}/blobs/{digest}"
        assert httpx.put(url, content=content).status_code == 201
        part = httpx.get(url, headers={"Range": "bytes=50-59"})
        assert (part.status_code, part.content) == (206, content[50:60])
        assert part.headers["content-range"] == "bytes 50-59/200"
        assert httpx.get(url, headers={"Range": "bytes=190-"}).content == content[190:]
        assert httpx.get(url, headers={"Range": "bytes=200-"}).status_code == 416
        head = httpx.head(url)
        assert (head.status_code, head.headers["content-length"]) == (200, "200")
        assert httpx.get(f"{service.http_url}/blobs/nonsense").status_code == 400
        assert httpx.get(f"{service.http_url}/blobs/{'0' * 64}").status_code == 404


def test_cached_blob_that_rotted_is_fetched_again(client: Client, tmp_path: Path) -> None:
    _publish(client)
    fetch_version(client, version=1, cache=tmp_path)
    for path in (tmp_path / "blobs").glob("??/*"):
        path.write_bytes(b"rot")
    assert fetch_version(client, version=1, cache=tmp_path).files == FILES


def test_rotten_blob_of_the_store_is_not_believed(client: Client, tmp_path: Path) -> None:
    manifest = _publish(client)
    digest = manifest.tensors[0].blob_digest
    (tmp_path / "store" / "blobs" / digest[:2] / digest).write_bytes(b"rot")
    with pytest.raises(CorruptData):
        fetch_version(client, version=1, timeout_s=3)


def test_tokens_and_scopes(tmp_path: Path, tokens_file: Path) -> None:
    with running(store=str(tmp_path / "store"), tokens_file=tokens_file) as service:
        with Client(service.target, token="writer-token") as writer:
            _publish(writer)
            assert writer.info().http_url == service.http_url
        with Client(service.target, token="reader-token") as reader:
            assert fetch_version(reader, version=1).files == FILES
            with pytest.raises(PermissionDenied):
                _publish(reader)
        with Client(service.target, token="other-token") as other, pytest.raises(PermissionDenied):
            fetch_version(other, version=1)
        with Client(service.target) as nobody, pytest.raises(Unauthenticated):
            fetch_version(nobody, version=1)
        with BlobClient(service.http_url + "/blobs/", token="reader-token") as blobs:
            with pytest.raises(PermissionDenied):
                blobs.put(hashlib.sha256(b"x").hexdigest(), [memoryview(b"x")])
