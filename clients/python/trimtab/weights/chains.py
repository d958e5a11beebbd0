"""How the bytes of a tensor come about: whole bytes of some version, and the differences since.

The store walks these chains to check what is published, a reader to rebuild it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trimtab.errors import CorruptData
from trimtab.v1 import weights_pb2
from trimtab.weights.delta import decode_delta
from trimtab.weights.manifest import DTYPE_BYTES

__all__ = ["Chains", "Recipe"]

Entry = weights_pb2.TensorEntry


@dataclass(frozen=True)
class Recipe:
    """How to make the bytes of a tensor.

    Attributes:
        entry: of the tensor wanted.
        start: whole bytes that are at hand, or the entry of whole bytes to read.
        deltas: entries of the differences to apply to them, in turn.
    """

    entry: Entry
    start: memoryview | Entry
    deltas: tuple[Entry, ...] = ()

    @property
    def is_stored_whole(self) -> bool:
        """Whether a blob holds the bytes as they are."""
        return not self.deltas and isinstance(self.start, Entry)

    @property
    def whole_blob(self) -> str:
        """Digest of the blob with the whole bytes to read; empty where they are at hand."""
        return self.start.blob_digest if isinstance(self.start, Entry) else ""

    def bytes_to_read(self) -> int:
        """Bytes that must be read from blobs."""
        whole = self.start.blob_length_bytes if isinstance(self.start, Entry) else 0
        return whole + sum(delta.blob_length_bytes for delta in self.deltas)

    def made(self, part: Callable[[Entry], memoryview]) -> memoryview:
        """The bytes of the tensor; its digest is for the caller to compare.

        Args:
            part: reads the bytes of an entry as they are stored.

        Raises:
            CorruptData: a difference is damaged.
        """
        data = part(self.start) if isinstance(self.start, Entry) else self.start
        for delta in self.deltas:
            data = memoryview(decode_delta(part(delta), data, DTYPE_BYTES[delta.dtype]))
        return data


class Chains:
    """Finds the recipes of tensors.

    Args:
        earlier: returns the manifest of a version.
        at_hand: returns the bytes of a tensor, by the name and digest of the entry given, where they need not be made.
    """

    def __init__(
        self, earlier: Callable[[int], weights_pb2.Manifest], at_hand: Callable[[str, str], memoryview | None]
    ) -> None:
        self._earlier = earlier
        self._at_hand = at_hand
        self._entries: dict[int, dict[str, Entry]] = {}

    def recipe(self, version: int, entry: Entry) -> Recipe:
        """How to make the bytes of a tensor, from the nearest whole bytes on.

        Args:
            version: that the entry belongs to, for messages.
            entry: of the tensor wanted.

        Raises:
            CorruptData: an earlier version does not have the bytes that the chain goes through.
        """
        deltas: list[Entry] = []
        step: Entry | None = entry
        digest, holder = entry.digest, version
        while (held := self._at_hand(entry.name, digest)) is None:
            step = step if step is not None else self._entry(holder, entry, digest)
            if step.encoding == weights_pb2.ENCODING_RAW:
                return Recipe(entry, step, tuple(reversed(deltas)))
            if not 0 < step.base_version < holder:
                raise _broken(
                    step, f"version {holder} is encoded against version {step.base_version}, not an earlier one"
                )
            deltas.append(step)
            digest, holder, step = step.base_digest, step.base_version, None
        return Recipe(entry, held, tuple(reversed(deltas)))

    def check_base(self, version: int, entry: Entry) -> None:
        """Checks that the version which a difference is encoded against has the tensor, whatever is at hand.

        Args:
            version: that the entry belongs to.
            entry: of a difference.

        Raises:
            CorruptData: it has not, or it is no earlier version.
        """
        if not 0 < entry.base_version < version:
            raise _broken(entry, f"version {version} is encoded against version {entry.base_version}, not one before")
        self._entry(entry.base_version, entry, entry.base_digest)

    def _entry(self, version: int, wanted: Entry, digest: str) -> Entry:
        """The entry of a tensor in an earlier version."""
        if version not in self._entries:
            self._entries[version] = {entry.name: entry for entry in self._earlier(version).tensors}
        entry = self._entries[version].get(wanted.name)
        if entry is None or entry.digest != digest or entry.dtype != wanted.dtype or entry.shape != wanted.shape:
            found = entry.digest if entry is not None else "none"
            raise _broken(wanted, f"it is encoded against {digest} of version {version}, which has {found}")
        return entry


def _broken(entry: Entry, what: str) -> CorruptData:
    return CorruptData(f"tensor {entry.name!r}: {what}", field=entry.name, value=entry.digest)
