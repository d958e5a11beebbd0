"""What a request to the store must say, checked before anything is touched, and what makes two of them the same."""

from __future__ import annotations

import hashlib

from trimtab.errors import FailedPrecondition, InvalidRequest, Reason, VersionConflict
from trimtab.v1 import weights_pb2
from trimtab.weights.manifest import check_channel, check_manifest
from trimtab_services.weights.state import StoreState

__all__ = [
    "base_missing",
    "check_bases",
    "check_chain",
    "check_expected",
    "check_least",
    "check_publish",
    "invalid",
    "request_digest",
]

_MOST_TEXT = 200
_MOST_CHAIN = 64


def check_publish(request: weights_pb2.PublishRequest) -> None:
    """Checks a publication by itself, whatever the store holds.

    Raises:
        InvalidRequest: a field is missing, too long or out of bounds, or the manifest breaks a rule.
    """
    if not request.publish_id or len(request.publish_id) > _MOST_TEXT:
        raise invalid("publish_id", request.publish_id, f"1..{_MOST_TEXT} characters")
    if not request.channels:
        raise InvalidRequest("channels: must not be empty", reason=Reason.FIELD_MISSING, field="channels")
    for index, channel in enumerate(request.channels):
        check_channel(f"channels[{index}]", channel)
    check_least("expected_previous_version", request.expected_previous_version, -1)
    manifest = request.manifest
    if manifest.version or manifest.HasField("create_time"):
        raise invalid("manifest.version", manifest.version, "0, and no create_time: the store gives both")
    if manifest.chain_length:
        raise invalid("manifest.chain_length", manifest.chain_length, "0: the store counts")
    for name in ("run", "stage", "tokenizer_digest", "chat_template_digest"):
        value = getattr(manifest, name)
        if len(value) > _MOST_TEXT:
            raise invalid(f"manifest.{name}", value, f"at most {_MOST_TEXT} characters")
    check_least("manifest.step", manifest.step, 0)
    check_manifest(manifest)


def request_digest(request: weights_pb2.PublishRequest) -> str:
    """SHA-256 of what a publication says, which a renewed lease or another encoding of its bytes does not change."""
    content = weights_pb2.PublishRequest()
    content.CopyFrom(request)
    content.lease_id = ""
    for entry in content.manifest.tensors:
        entry.CopyFrom(
            weights_pb2.TensorEntry(name=entry.name, dtype=entry.dtype, shape=entry.shape, digest=entry.digest)
        )
    return hashlib.sha256(content.SerializeToString(deterministic=True)).hexdigest()


def check_expected(state: StoreState, channel: str, expected: int) -> None:
    """Checks that a channel points to the expected version; -1 expects nothing.

    Raises:
        VersionConflict: it points elsewhere, or does not exist.
    """
    found = state.channel_version(channel)
    if expected not in (-1, found):
        points = f"points to version {found}" if found else "does not exist"
        raise VersionConflict(
            f"expected_previous_version: {expected}, but channel {channel!r} {points}",
            field="expected_previous_version",
            value=expected,
            limit=found,
            metadata={"channel": channel, "version": str(found)},
        )


def check_bases(state: StoreState, manifest: weights_pb2.Manifest) -> None:
    """Checks that the versions are there that a manifest is encoded against: one may be pruned while it is verified.

    Raises:
        FailedPrecondition: BASE_MISSING.
    """
    for index, entry in enumerate(manifest.tensors):
        if entry.base_version and entry.base_version not in state.versions:
            raise base_missing(index, entry, "it does not exist")


def check_chain(manifest: weights_pb2.Manifest) -> None:
    """Checks how many differences lie between a version and whole bytes.

    Raises:
        FailedPrecondition: BASE_MISSING: too many; the version is to be published whole.
    """
    if manifest.chain_length > _MOST_CHAIN:
        raise FailedPrecondition(
            f"manifest.tensors: {manifest.chain_length} differences lie between this version and whole tensors; "
            f"allowed: {_MOST_CHAIN}; publish it whole",
            reason=Reason.BASE_MISSING,
            field="manifest.tensors",
            value=manifest.chain_length,
            limit=_MOST_CHAIN,
        )


def base_missing(index: int, entry: weights_pb2.TensorEntry, why: str) -> FailedPrecondition:
    """The error of a tensor that is encoded against what the store does not have.

    Args:
        index: of the entry in its manifest.
        entry: of the tensor.
        why: what is wrong with its base.
    """
    field = f"manifest.tensors[{index}].base_version"
    return FailedPrecondition(
        f"{field}: {entry.name!r} cannot be built on version {entry.base_version}: {why}; publish it whole",
        reason=Reason.BASE_MISSING,
        field=field,
        value=entry.base_version,
        limit="a version of the store with base_digest",
    )


def check_least(field: str, value: int, least: int) -> None:
    """Raises InvalidRequest for a number below the least that is allowed."""
    if value < least:
        raise invalid(field, value, f"at least {least}")


def invalid(field: str, value: object, limit: str) -> InvalidRequest:
    """The error of a field whose value is not allowed."""
    return InvalidRequest(f"{field}: {value!r}; allowed: {limit}", field=field, value=value, limit=limit)
