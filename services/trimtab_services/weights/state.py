"""What a store knows besides bytes: its versions, channels, pins and leases. All of it is one small file.

The file `state.json` is replaced whole by an atomic write, which is the moment a publication happens: blobs and the
manifest are on disk before it, and without it nobody sees them. A crash between any two writes therefore leaves either
the state before or the state after.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from trimtab.v1 import weights_pb2

__all__ = [
    "BLOBS",
    "MANIFESTS",
    "ChannelRow",
    "LeaseRow",
    "StoreState",
    "VersionRow",
    "blob_path",
    "manifest_path",
    "summary",
]

BLOBS = "blobs"
MANIFESTS = "manifests"


def blob_path(digest: str) -> str:
    """Where a blob lies in the store."""
    return f"{BLOBS}/{digest[:2]}/{digest}"


def manifest_path(version: int) -> str:
    """Where a version's manifest lies in the store."""
    return f"{MANIFESTS}/{version:012d}.pb"


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VersionRow(_Row):
    """One committed version: what lists show, and what is needed to trust and find its manifest.

    Attributes:
        parent_version, run, stage, step, weights_digest: as in its manifest.
        create_time_ns: when it was committed, in nanoseconds since the epoch.
        weights_bytes: decoded size of its tensors.
        publish_id: name of the publication.
        request_digest: SHA-256 of the publication's content, to tell a retry from another one of the same name.
        manifest_digest: SHA-256 of the manifest's file.
        base_versions: those that its tensors are encoded against.
        chain_length: as in its manifest.
        stored_bytes: size of its tensors as they lie in blobs; 0: committed before this was counted.
    """

    parent_version: int
    run: str
    stage: str
    step: int
    create_time_ns: int
    weights_digest: str
    weights_bytes: int
    publish_id: str
    request_digest: str
    manifest_digest: str
    base_versions: tuple[int, ...] = ()
    chain_length: int = 0
    stored_bytes: int = 0


class ChannelRow(_Row):
    """Where a channel points, and how often it has moved."""

    version: int
    generation: int


class LeaseRow(_Row):
    """A lease. Of its secret only the SHA-256 is kept.

    Attributes:
        id_digest: SHA-256 (hex) of the lease's id.
        holder: for people.
        expire_time: when it ends, in seconds since the epoch.
    """

    id_digest: str
    holder: str
    expire_time: float


class StoreState(BaseModel):
    """All of a store but the bytes.

    Attributes:
        format: of this file.
        next_version: the number that the next version gets.
        versions: by number.
        channels: by name.
        pinned: versions that are never pruned.
        leases: by channel prefix.
    """

    model_config = ConfigDict(extra="forbid")

    format: int = Field(default=1, ge=1, le=1)
    next_version: int = Field(default=1, ge=1)
    versions: dict[int, VersionRow] = Field(default_factory=dict)
    channels: dict[str, ChannelRow] = Field(default_factory=dict)
    pinned: set[int] = Field(default_factory=set)
    leases: dict[str, LeaseRow] = Field(default_factory=dict)

    def copied(self) -> StoreState:
        """A state to change while others read this one; rows are immutable and shared."""
        return StoreState.model_construct(
            format=self.format,
            next_version=self.next_version,
            versions=dict(self.versions),
            channels=dict(self.channels),
            pinned=set(self.pinned),
            leases=dict(self.leases),
        )

    def channel_version(self, channel: str) -> int:
        """The version that a channel points to; 0 while it does not exist."""
        row = self.channels.get(channel)
        return row.version if row is not None else 0

    def move_channel(self, channel: str, version: int) -> None:
        """Points a channel to a version; pointing it to where it points already is no move."""
        row = self.channels.get(channel, ChannelRow(version=0, generation=0))
        if row.version != version:
            self.channels[channel] = ChannelRow(version=version, generation=row.generation + 1)


def summary(state: StoreState, version: int) -> weights_pb2.VersionSummary:
    """One line of a list."""
    row = state.versions[version]
    line = weights_pb2.VersionSummary(
        version=version,
        parent_version=row.parent_version,
        run=row.run,
        stage=row.stage,
        step=row.step,
        weights_digest=row.weights_digest,
        weights_bytes=row.weights_bytes,
        pinned=version in state.pinned,
        channels=sorted(name for name, channel in state.channels.items() if channel.version == version),
        stored_bytes=row.stored_bytes,
        chain_length=row.chain_length,
    )
    line.create_time.FromNanoseconds(row.create_time_ns)
    return line
