"""The store: blobs by digest, immutable manifests, and one state file that says which of them count.

    blobs/ab/<SHA-256>        bytes
    manifests/<number>.pb     one trimtab.v1.Manifest each
    decoded/<SHA-256>         whole bytes of the newest differences (`decoded.py`); made again when they are gone
    state.json                versions, channels, pins, leases (`state.py`)
    writer.lock               who writes (`lock.py`)
    tmp/                      uploads on their way

A publication writes blobs, then the manifest, then the state. Everything here blocks and may be called from any thread;
reading never waits for a writer.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable

from trimtab.errors import InvalidRequest, Reason, TrimtabError, Unsupported
from trimtab.v1 import weights_pb2
from trimtab.weights.manifest import check_channel, check_digest, decoded_bytes, manifest_blobs
from trimtab_services.weights import leases
from trimtab_services.weights.catalog import Catalog, no_version
from trimtab_services.weights.decoded import DecodedTensors
from trimtab_services.weights.files import Files, Upload, sizes
from trimtab_services.weights.lock import WriterLock
from trimtab_services.weights.opening import open_files
from trimtab_services.weights.reading import OpenBlob
from trimtab_services.weights.requests import (
    check_bases,
    check_chain,
    check_expected,
    check_least,
    check_publish,
    request_digest,
)
from trimtab_services.weights.retention import prunable_versions
from trimtab_services.weights.state import BLOBS, StoreState, VersionRow, blob_path, manifest_path
from trimtab_services.weights.state_file import StateFile
from trimtab_services.weights.usage import BlobUsage
from trimtab_services.weights.verification import verify_bytes

__all__ = ["Store", "writable"]

_log = logging.getLogger(__name__)

_MOST_DIGESTS = 10_000


class Store(Catalog):
    """A store that this process writes.

    Args:
        location: folder or fsspec URL.
        blob_grace_s: seconds in which Prune leaves a blob alone that was uploaded, or asked for by a publisher, and is
            part of no version yet.
        keep_versions: the newest versions of each run that a publication of the run leaves in the store, as `prune`
            would; None: all.
        files: instead of what `location` opens.

    Raises:
        ConfigError: the store cannot be opened, is damaged, or has another writer.
    """

    def __init__(
        self,
        location: str,
        *,
        blob_grace_s: float = 3600.0,
        keep_versions: int | None = None,
        files: Files | None = None,
    ) -> None:
        super().__init__(files if files is not None else open_files(location), lambda: self._file.now)
        self._grace_s = blob_grace_s
        self._keep_versions = keep_versions
        self._usage = BlobUsage(blob_grace_s)
        self._lock = WriterLock(self.files, location)
        try:
            self.files.clear_temporary()
            self._file = StateFile(self.files, location, lambda: self.on_move())
            self._decoded = DecodedTensors(self.files, lambda version: self.read_manifest(self._file.now, version))
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Waits for the write in progress and lets another process write."""
        with self._file.writing:
            self._decoded.close()
            self._lock.release()

    def renew_lock(self) -> None:
        """As `WriterLock.renew`."""
        self._lock.renew()

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
        with self._file.writing:  # a Prune that runs now ends first, one that comes later sees what was asked for
            self._usage.ask(digests)
        found = sizes(self.files, map(blob_path, digests))
        return [digest for digest in digests if found[blob_path(digest)] is None]

    def has_decoded(self, manifest: weights_pb2.Manifest) -> bool:
        """As `Catalog.has_decoded`; true for the newest versions."""
        return self._decoded.has_all(manifest)

    def open_blob(self, digest: str) -> OpenBlob | None:
        """As `Catalog.open_blob`, and tensors of the newest versions by their own digests."""
        return super().open_blob(digest) or self._decoded.open(digest)

    def commit_blob(self, upload: Upload, digest: str) -> None:
        """Makes an upload, whose digest was checked, visible."""
        upload.commit(blob_path(digest))

    def publish(self, request: weights_pb2.PublishRequest) -> weights_pb2.Manifest:
        """Commits a version; errors as in the proto."""
        check_publish(request)
        digest = request_digest(request)
        known = self._published_before(self._file.now, request.publish_id, digest)
        if known is not None:
            return known
        leases.check_lease(self._file.now, request.channels, request.lease_id, leases.now())
        check_expected(self._file.now, request.channels[0], request.expected_previous_version)
        with self._usage.using(manifest_blobs(request.manifest), after=self._file.writing):
            try:
                verify_bytes(self.files, self._decoded, request.manifest, self._file.now.next_version)
                with self._file.changing() as state:
                    known = self._published_before(state, request.publish_id, digest)
                    if known is not None:
                        return known
                    leases.check_lease(state, request.channels, request.lease_id, leases.now())
                    check_expected(state, request.channels[0], request.expected_previous_version)
                    check_bases(state, request.manifest)
                    manifest = self._commit(state, request, digest)
            except BaseException:
                self._decoded.forget(request.manifest)
                raise
        self._tidy(manifest)
        return manifest

    def set_channel(self, request: weights_pb2.SetChannelRequest) -> weights_pb2.Channel:
        """Points a channel to an existing version; errors as in the proto."""
        check_channel("channel", request.channel)
        check_least("expected_previous_version", request.expected_previous_version, -1)
        with self._file.changing() as state:
            if request.version not in state.versions:
                raise no_version(request.version)
            leases.check_lease(state, [request.channel], request.lease_id, leases.now())
            check_expected(state, request.channel, request.expected_previous_version)
            state.move_channel(request.channel, request.version)
        row = state.channels[request.channel]
        return weights_pb2.Channel(name=request.channel, version=row.version, generation=row.generation)

    def pin(self, version: int, pinned: bool) -> None:
        """Keeps a version from being pruned, or lets it go again.

        Raises:
            NotFound: no such version.
        """
        with self._file.changing() as state:
            if version not in state.versions:
                raise no_version(version)
            if pinned:
                state.pinned.add(version)
            else:
                state.pinned.discard(version)

    def acquire_lease(self, request: weights_pb2.AcquireLeaseRequest) -> weights_pb2.Lease:
        """Gives out or renews a lease; errors as in the proto."""
        with self._file.changing() as state:
            return leases.acquire(state, request, leases.now())

    def release_lease(self, lease_id: str) -> None:
        """Ends a lease; one that has ended already is no error."""
        with self._file.changing() as state:
            leases.release(state, lease_id, leases.now())

    def prune(self, request: weights_pb2.PruneRequest) -> weights_pb2.PruneResponse:
        """Removes old versions, their blobs, and every other blob that is past its grace; errors as in the proto."""
        check_least("keep_last", request.keep_last, 1)
        with self._file.writing:
            return self._prune(request, self.files.list(BLOBS))

    def _tidy(self, manifest: weights_pb2.Manifest) -> None:
        """After a commit: what is not needed any more goes. The version counts, whatever this meets."""
        try:
            self._usage.committed(manifest_blobs(manifest))
            self._decoded.keep(manifest)
            self._retain(manifest.run)
        except (TrimtabError, OSError) as error:
            _log.error("old versions are not removed", extra={"version": manifest.version, "error": str(error)})

    def _retain(self, run: str) -> None:
        """Bounds what a run leaves behind: its newest versions stay, and what these need."""
        if self._keep_versions is None or not run:
            return
        request = weights_pb2.PruneRequest(keep_last=self._keep_versions, run=run)
        with self._file.writing:
            if prunable_versions(self._file.current(), request.keep_last, run):
                is_local = self.files.local_path(BLOBS) is not None  # elsewhere listing is dear, and left to `prune`
                self._prune(request, self.files.list(BLOBS) if is_local else [])

    def _prune(self, request: weights_pb2.PruneRequest, others: Iterable[str]) -> weights_pb2.PruneResponse:
        """The state goes first, so that nothing ever points to bytes that are gone.

        Args:
            request: what to keep.
            others: paths of further blobs that may go when nobody needs them and their grace is over.
        """
        state = self._file.current().copied()
        removed = prunable_versions(state, request.keep_last, request.run)
        theirs = {blob_path(d) for version in removed for d in manifest_blobs(self.read_manifest(state, version))}
        for version in removed:
            del state.versions[version]
        blobs = self._unneeded_blobs(state, theirs, others)
        if not request.dry_run:
            self._file.write(state, always=True)
            for version in removed:
                self.files.remove(manifest_path(version))
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
        bases = sorted({entry.base_version for entry in manifest.tensors if entry.base_version})
        manifest.chain_length = max((1 + state.versions[base].chain_length for base in bases), default=0)
        check_chain(manifest)
        content = manifest.SerializeToString(deterministic=True)
        self.files.write(manifest_path(manifest.version), content)
        state.next_version += 1
        state.versions[manifest.version] = VersionRow(
            parent_version=manifest.parent_version,
            run=manifest.run,
            stage=manifest.stage,
            step=manifest.step,
            create_time_ns=manifest.create_time.ToNanoseconds(),
            weights_digest=manifest.weights_digest,
            weights_bytes=sum(decoded_bytes(entry) for entry in manifest.tensors),
            publish_id=request.publish_id,
            request_digest=digest,
            manifest_digest=hashlib.sha256(content).hexdigest(),
            base_versions=tuple(bases),
            chain_length=manifest.chain_length,
            stored_bytes=sum(entry.blob_length_bytes for entry in manifest.tensors),
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
        return self.read_manifest(state, found)

    def _unneeded_blobs(self, state: StoreState, removed: set[str], others: Iterable[str]) -> dict[str, int]:
        """Path and size of each blob that no version of the state and nobody else needs.

        Args:
            state: what is kept.
            removed: paths of the blobs of versions that are removed.
            others: paths of blobs that may be on their way to becoming a version, while they are young.
        """
        needed = self._usage.needed()
        for version in state.versions:
            needed |= manifest_blobs(self.read_manifest(state, version))
        kept = {blob_path(digest) for digest in needed}
        now = time.time()
        old = {path for path in set(others) - removed - kept if self.files.age_s(path, now) >= self._grace_s}
        return {path: self.files.size(path) or 0 for path in sorted((removed | old) - kept)}


def writable(catalog: Catalog) -> Store:
    """The store of a service that may change it.

    Raises:
        Unsupported: the service is a read replica.
    """
    if not isinstance(catalog, Store):
        raise Unsupported("this weights service is read_only; publish at the one that writes to the store")
    return catalog
