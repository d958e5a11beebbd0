"""Whole bytes of tensors that the store has as differences: made once to check a publication, kept for the newest few.

They are the base of the next publication, and a reader without a base takes each tensor by its own digest instead of a
chain of differences. All of it can be made again, so it lies on this host's disk, is removed at the next start and is
written without flushing.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from trimtab.errors import CorruptData, NotFound
from trimtab.v1 import weights_pb2
from trimtab.weights.chains import Chains
from trimtab.weights.manifest import decoded_bytes
from trimtab.weights.threads import over_tensors
from trimtab_services.weights.files import Files
from trimtab_services.weights.reading import OpenBlob, open_blob, open_file
from trimtab_services.weights.requests import base_missing
from trimtab_services.weights.state import blob_path

__all__ = ["DecodedTensors"]

_log = logging.getLogger(__name__)

_FOLDER = "decoded"
_PARTIAL = ".part"
_KEPT_VERSIONS = 3
"""Versions whose differences are kept decoded: the newest, and those that slow readers may still be reading."""


class DecodedTensors:
    """Decoded tensors by digest.

    Args:
        files: the store's files.
        manifest_of: returns the manifest of a version; NotFound where there is none.
    """

    def __init__(self, files: Files, manifest_of: Callable[[int], weights_pb2.Manifest]) -> None:
        local = files.local_path(_FOLDER)
        self._folder = local if local is not None else Path(tempfile.mkdtemp(prefix="trimtab-decoded-"))
        self._files = files
        self._manifest_of = manifest_of
        self._kept: dict[int, list[weights_pb2.TensorEntry]] = {}
        self._wholes: dict[str, weights_pb2.TensorEntry] = {}
        self._fresh: set[str] = set()
        """Decoded for a publication that is not committed yet."""
        self._lock = threading.Lock()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, mode=0o700)

    def close(self) -> None:
        """Removes all of them."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def open(self, digest: str) -> OpenBlob | None:
        """Opens a tensor of the newest versions by its own digest; None where it is not to be had."""
        entry = self._wholes.get(digest)
        if entry is None:
            return open_file(self._folder / digest)
        path, start = blob_path(entry.blob_digest), entry.blob_offset_bytes
        return open_blob(self._files, path, start=start, length=entry.blob_length_bytes)

    def has_all(self, manifest: weights_pb2.Manifest) -> bool:
        """Whether every tensor of a version can be opened."""
        with self._lock:
            is_kept = manifest.version in self._kept
        return is_kept and all((self._folder / entry.digest).is_file() for entry in _differences(manifest))

    def check(self, manifest: weights_pb2.Manifest, number: int, *, share: float) -> None:
        """Decodes every difference of a version that is to be published, and keeps what has the right digest.

        Args:
            manifest: its form was checked already.
            number: above that of every version that it may build on.
            share: of the cores, to decode them.

        Raises:
            FailedPrecondition: BASE_MISSING: a base is not in the store, or has other bytes.
            CorruptData: what comes out has another digest than the entry says.
        """
        own = ""  # what is to be checked is never at hand
        chains = Chains(self._manifest_of, lambda name, digest: self._at_hand(digest) if digest != own else None)
        with self._lock:
            checked = {entry.SerializeToString() for kept in self._kept.values() for entry in kept}
        finding = threading.Lock()

        def check(place: tuple[int, weights_pb2.TensorEntry]) -> None:
            nonlocal own
            index, entry = place
            try:
                with finding:  # a recipe maps the base; were all made at first, all bases would be open at once
                    own = entry.digest
                    chains.check_base(number, entry)
                    recipe = chains.recipe(number, entry)
                data = recipe.made(self._part)
            except (CorruptData, NotFound) as error:
                raise base_missing(index, entry, error.message) from error
            self._keep_checked(index, entry, data)

        to_check = [
            (index, entry)
            for index, entry in enumerate(manifest.tensors)
            if entry.encoding == weights_pb2.ENCODING_DELTA and entry.SerializeToString() not in checked
        ]
        over_tensors(check, to_check, lambda place: decoded_bytes(place[1]), share=share, name="check")

    def _keep_checked(self, index: int, entry: weights_pb2.TensorEntry, data: memoryview) -> None:
        found = hashlib.sha256(data).hexdigest()
        if found != entry.digest:
            raise CorruptData(
                f"manifest.tensors[{index}].digest: the difference of {entry.name!r} to version "
                f"{entry.base_version} gives bytes with SHA-256 {found}, not {entry.digest}",
                field=f"manifest.tensors[{index}].digest",
                value=found,
                limit=entry.digest,
            )
        with self._lock:
            self._fresh.add(entry.digest)
        self._write(entry.digest, data)

    def forget(self, manifest: weights_pb2.Manifest) -> None:
        """Notes that a publication was not committed: what was decoded for it may go."""
        with self._lock:
            self._fresh -= {entry.digest for entry in _differences(manifest)}

    def keep(self, manifest: weights_pb2.Manifest) -> None:
        """Notes a committed version, and lets go of all that the newest few do not have."""
        with self._lock:
            self._kept[manifest.version] = list(manifest.tensors)
            for version in sorted(self._kept)[:-_KEPT_VERSIONS]:
                del self._kept[version]
            entries = [entry for kept in self._kept.values() for entry in kept]
            self._wholes = {entry.digest: entry for entry in entries if entry.encoding == weights_pb2.ENCODING_RAW}
            digests = {entry.digest for entry in entries}
            self._fresh -= digests
            for path in self._folder.iterdir():
                if path.name not in digests | self._fresh and path.suffix != _PARTIAL:
                    path.unlink(missing_ok=True)

    def _at_hand(self, digest: str) -> memoryview | None:
        try:
            with (self._folder / digest).open("rb") as file:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError:
            return None

    def _part(self, entry: weights_pb2.TensorEntry) -> memoryview:
        chunks = self._files.chunks(blob_path(entry.blob_digest), entry.blob_offset_bytes, entry.blob_length_bytes)
        return memoryview(b"".join(chunks))

    def _write(self, digest: str, data: memoryview) -> None:
        partial = self._folder / f"{uuid.uuid4().hex}{_PARTIAL}"
        try:
            partial.write_bytes(data)
            partial.replace(self._folder / digest)
        except OSError as error:  # a full disk costs speed, not the publication
            partial.unlink(missing_ok=True)
            _log.warning("a decoded tensor is not kept", extra={"digest": digest, "error": str(error)})


def _differences(manifest: weights_pb2.Manifest) -> list[weights_pb2.TensorEntry]:
    return [entry for entry in manifest.tensors if entry.encoding == weights_pb2.ENCODING_DELTA]
