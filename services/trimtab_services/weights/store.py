"""The store: blobs by digest, immutable manifests, and one state file that says which of them count.

    blobs/ab/<SHA-256>        bytes
    manifests/<number>.pb     one trimtab.v1.Manifest each
    state.json                versions, channels, pins, leases (`state.py`)
    writer.lock               who writes (`lock.py`)
    tmp/                      uploads on their way

A publication writes blobs, then the manifest, then the state. Everything here blocks and may be called from any thread;
reading never waits for a writer.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from trimtab.errors import ConfigError, CorruptData, InvalidRequest, NotFound, Reason
from trimtab.v1 import weights_pb2
from trimtab.weights.manifest import check_channel, check_digest, manifest_blobs
from trimtab_services.weights import leases
from trimtab_services.weights.files import Files, Upload, open_files
from trimtab_services.weights.lock import WriterLock
from trimtab_services.weights.requests import check_expected, check_least, check_publish, invalid, request_digest
from trimtab_services.weights.retention import prunable_versions
from trimtab_services.weights.state import StoreState, VersionRow, summary
from trimtab_services.weights.verification import blob_path, verify_bytes

__all__ = ["Store"]

_log = logging.getLogger(__name__)

_STATE = "state.json"
_MANIFESTS = "manifests"
_BLOBS = "blobs"
_MOST_DIGESTS = 10_000
_MOST_PAGE = 1_000
_DEFAULT_PAGE = 50


class Store:
    """A store that this process writes.

    Args:
        location: folder or fsspec URL.
        blob_grace_s: seconds in which Prune leaves a blob alone that was uploaded, or asked for by a publisher.
        files: instead of what `location` opens.

    Raises:
        ConfigError: the store cannot be opened, is damaged, or has another writer.
    """

    def __init__(self, location: str, *, blob_grace_s: float = 3600.0, files: Files | None = None) -> None:
        self.location = location
        self.files = files if files is not None else open_files(location)
        self.on_move: Callable[[], object] = lambda: None
        """Called in the writing thread after channels have moved."""
        self._grace_s = blob_grace_s
        self._writing = threading.Lock()
        self._in_use: Counter[str] = Counter()
        self._asked_for: dict[str, float] = {}
        self._must_reload = False
        self._lock = WriterLock(self.files, location)
        try:
            self.files.clear_temporary()
            self._state = self._load()
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Waits for the write in progress and lets another process write."""
        with self._writing:
            self._lock.release()

    def renew_lock(self) -> None:
        """As `WriterLock.renew`."""
        self._lock.renew()

    def channel_version(self, channel: str) -> int:
        """The version that a channel points to; 0 while it does not exist. Never waits."""
        return self._state.channel_version(channel)

    def find_missing(self, digests: Iterable[str]) -> list[str]:
        """Those digests whose blobs are not there; the others are safe from Prune for the grace period.

        Raises:
            InvalidRequest: more than 10,000, or one that is no SHA-256.
        """
        digests = list(digests)
        if len(digests) > _MOST_DIGESTS:
            raise InvalidRequest(
                f"digests: {len(digests)} of them; allowed: at most {_MOST_DIGESTS}",
                field="digests",
                value=len(digests),
                limit=_MOST_DIGESTS,
            )
        for index, digest in enumerate(digests):
            check_digest(f"digests[{index}]", digest)
        with self._writing:  # a Prune that runs now ends first, one that comes later sees what was asked for
            now = time.monotonic()
            self._asked_for = {d: at for d, at in self._asked_for.items() if now - at < self._grace_s}
            self._asked_for.update(dict.fromkeys(digests, now))
        return [digest for digest in digests if self.blob_size(digest) is None]

    def blob_size(self, digest: str) -> int | None:
        """Bytes of a blob; None when it is not there."""
        return self.files.size(blob_path(digest))

    def commit_blob(self, upload: Upload, digest: str) -> None:
        """Makes an upload, whose digest was checked, visible."""
        upload.commit(blob_path(digest))

    def publish(self, request: weights_pb2.PublishRequest) -> weights_pb2.Manifest:
        """Commits a version; errors as in the proto."""
        check_publish(request)
        digest = request_digest(request)
        known = self._published_before(self._state, request.publish_id, digest)
        if known is not None:
            return known
        leases.check_lease(self._state, request.channels, request.lease_id, time.time())
        check_expected(self._state, request.channels[0], request.expected_previous_version)
        with self._using(manifest_blobs(request.manifest)):
            verify_bytes(self.files, request.manifest)
            with self._changing() as state:
                known = self._published_before(state, request.publish_id, digest)
                if known is not None:
                    return known
                leases.check_lease(state, request.channels, request.lease_id, time.time())
                check_expected(state, request.channels[0], request.expected_previous_version)
                return self._commit(state, request, digest)

    def manifest(self, version: int | None, channel: str | None) -> weights_pb2.Manifest:
        """The manifest of a version, by number or by channel.

        Raises:
            NotFound: no such version or channel.
            CorruptData: the manifest's file was damaged.
        """
        state = self._state
        if version is None:
            version = state.channel_version(channel or "")
            if not version:
                raise NotFound(f"channel: {channel!r} does not exist", field="channel", value=channel)
        return self._read_manifest(state, version)

    def versions(self, request: weights_pb2.ListVersionsRequest) -> weights_pb2.ListVersionsResponse:
        """A page of versions, newest first; errors as in the proto."""
        if not 0 <= request.page_size <= _MOST_PAGE:
            raise invalid("page_size", request.page_size, f"0..{_MOST_PAGE}")
        if request.page_token and not (request.page_token.isascii() and request.page_token.isdecimal()):
            raise invalid("page_token", request.page_token, "the next_page_token of an earlier answer")
        state = self._state
        before = int(request.page_token) if request.page_token else state.next_version
        size = request.page_size or _DEFAULT_PAGE
        wanted = (n for n in sorted(state.versions, reverse=True) if n < before)
        found = [n for n in wanted if not request.run or state.versions[n].run == request.run]
        page = found[:size]
        return weights_pb2.ListVersionsResponse(
            versions=[summary(state, version) for version in page],
            next_page_token=str(page[-1]) if len(found) > size else "",
        )

    def channels(self, prefix: str) -> list[weights_pb2.Channel]:
        """The channels whose names start with a prefix, sorted by name."""
        rows = sorted(self._state.channels.items())
        return [
            weights_pb2.Channel(name=name, version=row.version, generation=row.generation)
            for name, row in rows
            if name.startswith(prefix)
        ]

    def set_channel(self, request: weights_pb2.SetChannelRequest) -> weights_pb2.Channel:
        """Points a channel to an existing version; errors as in the proto."""
        check_channel("channel", request.channel)
        check_least("expected_previous_version", request.expected_previous_version, -1)
        with self._changing() as state:
            if request.version not in state.versions:
                raise _no_version(request.version)
            leases.check_lease(state, [request.channel], request.lease_id, time.time())
            check_expected(state, request.channel, request.expected_previous_version)
            state.move_channel(request.channel, request.version)
        row = state.channels[request.channel]
        return weights_pb2.Channel(name=request.channel, version=row.version, generation=row.generation)

    def pin(self, version: int, pinned: bool) -> None:
        """Keeps a version from being pruned, or lets it go again.

        Raises:
            NotFound: no such version.
        """
        with self._changing() as state:
            if version not in state.versions:
                raise _no_version(version)
            if pinned:
                state.pinned.add(version)
            else:
                state.pinned.discard(version)

    def acquire_lease(self, request: weights_pb2.AcquireLeaseRequest) -> weights_pb2.Lease:
        """Gives out or renews a lease; errors as in the proto."""
        with self._changing() as state:
            return leases.acquire(state, request, time.time())

    def release_lease(self, lease_id: str) -> None:
        """Ends a lease; one that has ended already is no error."""
        with self._changing() as state:
            leases.release(state, lease_id, time.time())

    def prune(self, request: weights_pb2.PruneRequest) -> weights_pb2.PruneResponse:
        """Removes old versions and every blob that no version needs and that is past its grace; errors as in the proto.

        The state goes first, so that nothing ever points to bytes that are gone.
        """
        check_least("keep_last", request.keep_last, 1)
        with self._writing:
            state = self._current().copied()
            removed = prunable_versions(state, request.keep_last, request.run)
            for version in removed:
                del state.versions[version]
            blobs = self._unneeded_blobs(state)
            if not request.dry_run:
                self._write_state(state)
                for version in removed:
                    self.files.remove(_manifest_path(version))
                for path in blobs:
                    self.files.remove(path)
                _log.info("pruned", extra={"versions": removed, "blobs": len(blobs), "bytes": sum(blobs.values())})
        return weights_pb2.PruneResponse(removed_versions=removed, removed_bytes=sum(blobs.values()))

    def _commit(self, state: StoreState, request: weights_pb2.PublishRequest, digest: str) -> weights_pb2.Manifest:
        manifest = weights_pb2.Manifest()
        manifest.CopyFrom(request.manifest)
        manifest.version = state.next_version
        manifest.parent_version = state.channel_version(request.channels[0])
        manifest.create_time.GetCurrentTime()
        content = manifest.SerializeToString(deterministic=True)
        self.files.write(_manifest_path(manifest.version), content)
        state.next_version += 1
        state.versions[manifest.version] = VersionRow(
            parent_version=manifest.parent_version,
            run=manifest.run,
            stage=manifest.stage,
            step=manifest.step,
            create_time_ns=manifest.create_time.ToNanoseconds(),
            weights_digest=manifest.weights_digest,
            weights_bytes=sum(entry.blob_length_bytes for entry in manifest.tensors),
            publish_id=request.publish_id,
            request_digest=digest,
            manifest_digest=hashlib.sha256(content).hexdigest(),
        )
        for channel in request.channels:
            state.move_channel(channel, manifest.version)
        return manifest

    def _published_before(self, state: StoreState, publish_id: str, digest: str) -> weights_pb2.Manifest | None:
        found = next((n for n, row in state.versions.items() if row.publish_id == publish_id), None)
        if found is None:
            return None
        if state.versions[found].request_digest != digest:
            raise InvalidRequest(
                f"publish_id: {publish_id!r} has made version {found} out of another request; a publication needs a "
                "name of its own",
                reason=Reason.DUPLICATE_ID,
                field="publish_id",
                value=publish_id,
            )
        return self._read_manifest(state, found)

    def _read_manifest(self, state: StoreState, version: int) -> weights_pb2.Manifest:
        row = state.versions.get(version)
        if row is None:
            raise _no_version(version)
        content = self.files.read(_manifest_path(version))
        found = hashlib.sha256(content).hexdigest()
        if found != row.manifest_digest:
            raise CorruptData(
                f"version {version}: its manifest's file has SHA-256 {found}, not {row.manifest_digest}",
                field="version",
                value=found,
                limit=row.manifest_digest,
            )
        return weights_pb2.Manifest.FromString(content)

    def _unneeded_blobs(self, state: StoreState) -> dict[str, int]:
        """Path and size of each blob that no version of the state needs, that nobody uses and whose grace is over."""
        needed: set[str] = set()
        for version in state.versions:
            needed |= manifest_blobs(self._read_manifest(state, version))
        needed |= {digest for digest, count in self._in_use.items() if count > 0}
        ticks, now = time.monotonic(), time.time()
        needed |= {digest for digest, at in self._asked_for.items() if ticks - at < self._grace_s}
        candidates = [path for path in self.files.list(_BLOBS) if path.rpartition("/")[2] not in needed]
        return {path: self.files.size(path) or 0 for path in candidates if self.files.age_s(path, now) >= self._grace_s}

    @contextmanager
    def _using(self, digests: set[str]) -> Iterator[None]:
        """Keeps blobs from being pruned while they are verified."""
        with self._writing:
            self._in_use.update(digests)
        try:
            yield
        finally:
            with self._writing:
                self._in_use.subtract(digests)
                self._in_use = +self._in_use

    @contextmanager
    def _changing(self) -> Iterator[StoreState]:
        """A copy of the state to change; it counts once it is written. An error leaves the state as it was."""
        with self._writing:
            state = self._current().copied()
            yield state
            self._write_state(state)

    def _current(self) -> StoreState:
        """The state to start a change from; the caller holds the lock."""
        if self._must_reload:  # the last write failed half-way: what is on disk decides
            self._state = self._load()
            self._must_reload = False
            self.on_move()
        return self._state

    def _write_state(self, state: StoreState) -> None:
        if state == self._state:
            return
        moved = state.channels != self._state.channels
        self._must_reload = True
        self.files.write(_STATE, state.model_dump_json().encode())
        self._must_reload = False
        self._state = state.copied()
        if moved:
            self.on_move()

    def _load(self) -> StoreState:
        """Reads the state and removes manifests of publications that were never committed."""
        manifests = {path: _version_of(path) for path in self.files.list(_MANIFESTS)}
        try:
            state = StoreState.model_validate_json(self.files.read(_STATE))
        except NotFound:
            if manifests:
                raise ConfigError(
                    f"store: {self.location} has manifests but no {_STATE}; it is damaged", field="store"
                ) from None
            state = StoreState()
            self.files.write(_STATE, state.model_dump_json().encode())
        except ValidationError as error:
            line = " ".join(str(error).split())[:300]
            raise ConfigError(f"store: {self.location}: {_STATE} is damaged: {line}", field="store") from None
        state.next_version = max([state.next_version, *(version + 1 for version in manifests.values())])
        for path, version in manifests.items():
            if version not in state.versions:
                self.files.remove(path)
        lost = sorted(set(state.versions) - set(manifests.values()))
        if lost:
            raise ConfigError(f"store: {self.location}: the manifest of version {lost[0]} is gone", field="store")
        return state


def _manifest_path(version: int) -> str:
    return f"{_MANIFESTS}/{version:012d}.pb"


def _version_of(path: str) -> int:
    stem = path.rpartition("/")[2].removesuffix(".pb")
    return int(stem) if stem.isdecimal() else 0


def _no_version(version: int) -> NotFound:
    return NotFound(f"version: {version} does not exist", field="version", value=version)
