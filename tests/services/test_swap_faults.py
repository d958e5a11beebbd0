"""What goes wrong between a publication and its swap: the old version serves on, says why, and the new one comes."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from links import link_to
from processes import ServiceProcess, serving
from running import RunningServer, client, running
from small_disks import small_disk
from tiny_models import make_policy, make_tokenizer
from trimtab.client import Client
from trimtab.errors import Overloaded
from trimtab.types import GenerateRequest, GenerationPrompt, ModelInfo, SamplingParams
from trimtab.v1 import weights_pb2 as pb
from trimtab.weights import Publication, fetch_version
from trimtab_models.versions import ModelPublisher
from trimtab_services.runtime.replica import Follower

from .weights.conftest import RunningStore
from .weights.conftest import running as running_store

CHANNEL = "policy/latest"


class Training:
    """A policy whose weights move, published as bfloat16, each time only what changed.

    Args:
        target: of the weights service.
        hidden, layers: size of the model.
    """

    def __init__(self, target: str, *, hidden: int = 32, layers: int = 2) -> None:
        tokenizer = make_tokenizer()
        self.client = Client(target, timeout_s=30)
        self.model = make_policy("llama", len(tokenizer), hidden=hidden, layers=layers)
        self._publisher = ModelPublisher(
            self.client, self.model, tokenizer, channels=["policy/training"], serving_dtype="bfloat16"
        )

    def publish(self, *, share: float = 1.0, value: float | None = None, serve: bool = True) -> Publication:
        """Publishes a version.

        Args:
            share: of each tensor's elements that change first.
            value: what they are set to; None: other ones.
            serve: whether the replicas' channel moves to it.
        """
        with torch.no_grad():
            for parameter in self.model.parameters():
                changed = torch.rand_like(parameter) < share
                moved = parameter.nan_to_num() + 0.1 * torch.randn_like(parameter)
                new = moved if value is None else torch.tensor(value)
                parameter.copy_(torch.where(changed, new, parameter))
        publication = self._publisher.publish(self._publisher.snapshot())
        if serve:
            self.point_to(publication.version)
        return publication

    def point_to(self, version: int) -> None:
        """Moves the channel that replicas follow."""
        self.client.set_channel(pb.SetChannelRequest(channel=CHANNEL, version=version, expected_previous_version=-1))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunningStore]:
    with running_store(store=str(tmp_path / "store")) as service:
        yield service


@pytest.fixture
def training(store: RunningStore) -> Training:
    return Training(store.target)


@contextmanager
def following(store: RunningStore, cache: Path) -> Iterator[tuple[RunningServer, Client]]:
    """A generation replica that serves what the channel points to."""
    source = {"address": store.target, "channel": CHANNEL}
    settings = {"weights": source, "cache_directory": cache, "dtype": "bfloat16", "slots": 2, "deterministic": True}
    with running("generation", **settings) as server, client(server) as connection:
        yield server, connection


def until(condition: Callable[[], bool], *, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def model(connection: Client) -> ModelInfo:
    return connection.info().models[0]


def until_served(connection: Client, version: int, *, within_s: float = 60.0) -> None:
    until(lambda: model(connection).served.version == version, within_s=within_s)
    until(lambda: model(connection).last_swap_error == "")


def until_refused(connection: Client, version: int) -> str:
    """Waits until a version was not served; returns why."""
    until(lambda: model(connection).last_swap_error.startswith(f"version {version}: "))
    return model(connection).last_swap_error


def tokens(connection: Client, *, version: int) -> tuple[int, ...]:
    """A completion, which depends on the weights; all of it is sampled by one version."""
    request = GenerateRequest(
        prompts=(GenerationPrompt(prompt_id="a", prompt=(5, 6), seed=1),),
        sampling=SamplingParams(max_new_tokens=24, ignore_eos=True),
    )
    (result,) = connection.generate(request)
    assert result.completion is not None
    assert [span.version for span in result.completion.version_spans] == [version]
    return result.completion.token_ids


def metric(server: RunningServer | ServiceProcess, name: str) -> float:
    """Value of a metric that this replica has once; 0 before it first counted."""
    if isinstance(server, ServiceProcess):
        text = server.metrics()
    else:
        text = urllib.request.urlopen(server.metrics_url, timeout=10).read().decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def failed_swaps(server: RunningServer | ServiceProcess) -> float:
    return metric(server, 'trimtab_swap_total{model="policy",outcome="failed"}')


def fetched_bytes(server: RunningServer) -> float:
    return metric(server, 'trimtab_fetched_bytes_total{model="policy"}')


def follower_of(server: RunningServer) -> Follower:
    """The in-process replica's follower, whose memory a test spoils."""
    run = server.server._service.background[0]  # type: ignore[union-attr]
    return run.__self__  # type: ignore[attr-defined, no-any-return]


def as_a_new_replica(store: RunningStore, folder: Path, *, version: int) -> tuple[int, ...]:
    """The completion of a replica that has nothing at hand."""
    with following(store, folder / "empty-cache") as (_, connection):
        return tokens(connection, version=version)


def test_a_bad_chunk(store: RunningStore, training: Training, tmp_path: Path) -> None:
    training.publish()
    with following(store, tmp_path / "cache") as (server, connection):
        old = tokens(connection, version=1)
        publication = training.publish(share=0.02, serve=False)
        delta = next(e for e in publication.manifest.tensors if e.encoding == pb.ENCODING_DELTA)
        blob = tmp_path / "store" / "blobs" / delta.blob_digest[:2] / delta.blob_digest
        right = blob.read_bytes()
        blob.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
        training.point_to(2)
        while failed_swaps(server) < 2:  # it is tried again, and serves meanwhile
            assert tokens(connection, version=1) == old
        assert f"DIGEST_MISMATCH: blob {delta.blob_digest}" in until_refused(connection, 2)
        assert model(connection).channel_version == 2
        blob.write_bytes(right)
        until_served(connection, 2)
        assert tokens(connection, version=2) != old


def test_a_wrong_base(store: RunningStore, training: Training, tmp_path: Path) -> None:
    training.publish()
    with following(store, tmp_path / "cache") as (server, connection):
        held = follower_of(server)._served
        assert held is not None
        for tensor in held.tensors.values():
            tensor.data[:] = bytes(tensor.data.nbytes)
        training.publish(share=0.02)
        until_served(connection, 2)
        assert failed_swaps(server) == 0
        assert tokens(connection, version=2) == as_a_new_replica(store, tmp_path, version=2)


def test_not_finite_weights(store: RunningStore, training: Training, tmp_path: Path) -> None:
    training.publish()
    with following(store, tmp_path / "cache") as (server, connection):
        old = tokens(connection, version=1)
        training.publish(share=0.01, value=float("nan"))
        assert "NOT_FINITE: tensor " in until_refused(connection, 2)
        assert tokens(connection, version=1) == old and failed_swaps(server) >= 1
        training.publish()
        until_served(connection, 3)


def test_the_disk_of_the_replica_is_full(store: RunningStore, tmp_path: Path) -> None:
    training = Training(store.target, hidden=128)
    training.publish()
    with small_disk(tmp_path / "disk", mebibytes=8) as disk:
        cache = disk.folder / "cache"
        with following(store, cache) as (server, connection):
            old = tokens(connection, version=1)
            disk.fill(leave_bytes=64 * 1024)
            training.publish(share=0.02)
            why = until_refused(connection, 2)
            assert "No space left on device" in why and f"bytes for the cache in {cache}" in why
            assert tokens(connection, version=1) == old and failed_swaps(server) >= 1
            disk.make_space()
            until_served(connection, 2)


def test_the_disk_of_a_new_replica_is_full(store: RunningStore, tmp_path: Path) -> None:
    """The first version is written as a model folder, too."""
    training = Training(store.target, hidden=128)
    dense = training.publish().dense_bytes
    with small_disk(tmp_path / "disk", mebibytes=8) as disk:
        disk.fill(leave_bytes=dense + dense // 2)
        settings = {"weights": {"address": store.target, "channel": CHANNEL}, "cache_directory": disk.folder / "cache"}
        with running("generation", serving=False, **settings) as server, client(server) as connection:
            until(lambda: "No space left on device" in connection.info().state_reason)
            assert f"bytes for the cache in {disk.folder / 'cache'}" in connection.info().state_reason
            disk.make_space()
            until_served(connection, 1)
            assert failed_swaps(server) >= 1


@pytest.mark.parametrize("leave_bytes", [0, 64 * 1024], ids=["nothing fits", "the blobs fit and the manifest does not"])
def test_the_disk_of_the_store_is_full(tmp_path: Path, leave_bytes: int) -> None:
    with small_disk(tmp_path / "disk", mebibytes=4) as disk, running_store(store=str(disk.folder / "store")) as store:
        training = Training(store.target)
        training.publish()
        disk.fill(leave_bytes=leave_bytes)
        with pytest.raises(Overloaded) as caught:
            training.publish()
        assert leave_bytes or "the store's disk is full" in caught.value.message
        assert list((disk.folder / "store" / "tmp").iterdir()) == []
        newest = pb.GetManifestRequest(channel="policy/training")
        assert training.client.get_manifest(newest).manifest.version == 1
        assert [row.version for row in training.client.list_versions(pb.ListVersionsRequest()).versions] == [1]
        disk.make_space()
        version = training.publish().version
        assert fetch_version(training.client, version=version, cache=tmp_path / "cache").version == version


def test_a_roll_back_reads_nothing(store: RunningStore, tmp_path: Path) -> None:
    """Nor does the way forward again; and what follows is read as differences, from wherever the replica stands."""
    training = Training(store.target, hidden=128)
    dense = training.publish().dense_bytes
    with following(store, tmp_path / "cache") as (server, connection):
        answers: dict[int, tuple[int, ...]] = {}
        for version in range(2, 6):
            training.publish(share=0.02)
            until_served(connection, version)
            answers[version] = tokens(connection, version=version)
        read = fetched_bytes(server)
        for version in (4, 5, 4):
            training.point_to(version)
            until_served(connection, version)
            assert tokens(connection, version=version) == answers[version]
        assert fetched_bytes(server) == read
        training.publish(share=0.02)
        until_served(connection, 6)
        assert 0 < fetched_bytes(server) - read < 0.1 * dense
        assert tokens(connection, version=6) == as_a_new_replica(store, tmp_path, version=6)


def test_a_roll_back_does_not_trust_what_somebody_wrote_to(
    store: RunningStore, training: Training, tmp_path: Path
) -> None:
    training.publish()
    with following(store, tmp_path / "cache") as (server, connection):
        first = tokens(connection, version=1)
        training.publish(share=0.02)
        until_served(connection, 2)
        held = follower_of(server)._previous
        assert held is not None
        for tensor in held.tensors.values():
            tensor.data[:] = bytes(tensor.data.nbytes)
        training.point_to(1)
        until_served(connection, 1)
        assert tokens(connection, version=1) == first


@pytest.mark.parametrize("moment", ["fetching", "staging"])
def test_a_replica_that_is_killed_on_the_way(store: RunningStore, tmp_path: Path, moment: str) -> None:
    training = Training(store.target, hidden=256, layers=4)
    training.publish()
    cache = tmp_path / "cache"
    source = {"address": store.target, "channel": CHANNEL}
    settings = {"weights": source, "cache_directory": str(cache), "dtype": "bfloat16", "slots": 2}
    runtime = store.server.runtime
    ports = runtime.ports
    with (
        link_to(ports.http) as link,
        serving("generation", tmp_path / "replica", deterministic=True, **settings) as replica,
    ):
        with replica.client() as connection:
            until_served(connection, 1)
        runtime.ports = replace(ports, http=link.port)
        publication = training.publish(share=0.02, serve=False)
        (digest,) = {e.blob_digest for e in publication.manifest.tensors if e.encoding == pb.ENCODING_DELTA}
        blob = cache / "blobs" / digest[:2] / digest
        if moment == "fetching":
            link.most_bytes = publication.payload_bytes // 2
        training.point_to(2)
        reached = f"{digest}.*.part" if moment == "fetching" else digest
        until(lambda: any(path.stat().st_size for path in blob.parent.glob(reached)))
        replica.kill()
        assert blob.exists() == (moment == "staging")
        runtime.ports = ports
    with serving("generation", tmp_path / "replica", deterministic=True, **settings) as replica:
        with replica.client() as connection:
            until_served(connection, 2)
            assert failed_swaps(replica) == 0
            assert tokens(connection, version=2) == as_a_new_replica(store, tmp_path, version=2)


def test_a_new_replica_serves_differences_to_a_version_with_equal_tensors(store: RunningStore, tmp_path: Path) -> None:
    """The norms of a new model are all ones: one digest, and still a tensor each."""
    training = Training(store.target)
    training.publish(share=0.0)
    with torch.no_grad():
        training.model.lm_head.weight[0] += 1.0
    training.publish(share=0.0)
    as_a_new_replica(store, tmp_path, version=2)
