"""What can be read of a store: manifests, lists, channels and the bytes of blobs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from trimtab.errors import CorruptData, NotFound
from trimtab.v1 import weights_pb2
from trimtab_services.weights.files import Files
from trimtab_services.weights.reading import OpenBlob, open_blob
from trimtab_services.weights.requests import invalid
from trimtab_services.weights.state import StoreState, blob_path, manifest_path, summary

__all__ = ["Catalog", "no_version"]

_MOST_PAGE = 1_000
_DEFAULT_PAGE = 50


class Catalog:
    """A store's content. Everything blocks and may be called from any thread; nothing waits for a writer.

    Args:
        files: the store's files.
        state: returns what counts now.
    """

    def __init__(self, files: Files, state: Callable[[], StoreState]) -> None:
        self.files = files
        self._state = state
        self.on_move: Callable[[], object] = lambda: None
        """Called, in any thread, after channels have moved."""

    def channel_version(self, channel: str) -> int:
        """The version that a channel points to; 0 while it does not exist. Never waits."""
        return self._state().channel_version(channel)

    def manifest(self, version: int | None, channel: str | None) -> weights_pb2.Manifest:
        """The manifest of a version, by number or by channel.

        Raises:
            NotFound: no such version or channel.
            CorruptData: the manifest's file was damaged.
        """
        state = self._state()
        if version is None:
            version = state.channel_version(channel or "")
            if not version:
                raise NotFound(f"channel: {channel!r} does not exist", field="channel", value=channel)
        return self.read_manifest(state, version)

    def versions(self, request: weights_pb2.ListVersionsRequest) -> weights_pb2.ListVersionsResponse:
        """A page of versions, newest first; errors as in the proto."""
        if not 0 <= request.page_size <= _MOST_PAGE:
            raise invalid("page_size", request.page_size, f"0..{_MOST_PAGE}")
        if request.page_token and not (request.page_token.isascii() and request.page_token.isdecimal()):
            raise invalid("page_token", request.page_token, "the next_page_token of an earlier answer")
        state = self._state()
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
        rows = sorted(self._state().channels.items())
        return [
            weights_pb2.Channel(name=name, version=row.version, generation=row.generation)
            for name, row in rows
            if name.startswith(prefix)
        ]

    def has_decoded(self, manifest: weights_pb2.Manifest) -> bool:
        """Whether `open_blob` knows every tensor of a version by its own digest."""
        return False

    def blob_size(self, digest: str) -> int | None:
        """Bytes of a blob; None when it is not there."""
        return self.files.size(blob_path(digest))

    def open_blob(self, digest: str) -> OpenBlob | None:
        """Opens a blob for reading; None when there is none."""
        return open_blob(self.files, blob_path(digest))

    def read_manifest(self, state: StoreState, version: int) -> weights_pb2.Manifest:
        """The manifest of a version of a state; errors as `manifest`."""
        row = state.versions.get(version)
        if row is None:
            raise no_version(version)
        content = self.files.read(manifest_path(version))
        found = hashlib.sha256(content).hexdigest()
        if found != row.manifest_digest:
            raise CorruptData(
                f"version {version}: its manifest's file has SHA-256 {found}, not {row.manifest_digest}",
                field="version",
                value=found,
                limit=row.manifest_digest,
            )
        return weights_pb2.Manifest.FromString(content)


def no_version(version: int) -> NotFound:
    """The error of a version that is not there."""
    return NotFound(f"version: {version} does not exist", field="version", value=version)
