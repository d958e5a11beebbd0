"""Every error of Trimtab, and the one table that joins reason, gRPC code and exception.

Servers raise these exceptions, the runtime turns them into a gRPC status with `google.rpc.ErrorInfo`
(`to_status`), and clients get the same exception back (`from_rpc_error`). The tree:

    TrimtabError
    ├── InvalidRequest          a field of a request is wrong; sending it again cannot help
    │   └── SequenceTooLong     more tokens than the model or the service takes
    ├── FailedPrecondition      the state of the service forbids it now
    │   ├── VersionUnavailable  the replica does not serve the model version that was asked for
    │   ├── VersionConflict     compare-and-swap on a channel failed: somebody published in between
    │   ├── LeaseHeld           another writer holds the lease
    │   └── Mismatch            two parts disagree (tokenizer, limits, log-probs) and must not work together
    ├── NotFound                no such version, channel, blob, model or run
    ├── Overloaded              the queue is full; `retry_after_s` says when to come back
    ├── Unavailable             draining, waiting for a version, or not reachable
    ├── DeadlineExceeded        the deadline passed, or the work could not have met it
    ├── Cancelled               the caller went away or the run was stopped
    ├── Unauthenticated         no token, or one that is not known
    ├── PermissionDenied        the token lacks the scope
    ├── CorruptData             bytes do not have the digest that names them
    ├── Unsupported             the service, or the engine behind it, cannot do this
    ├── InternalError           a fault of the service itself; its log has the trace
    ├── ConfigError             a configuration file, option or run spec is wrong (local, never crosses the wire)
    ├── DataError               a dataset file or row is wrong (local)
    ├── ModelFolderError        a model folder cannot be used (local)
    └── TrainingDiverged        a loss, gradient or reward is not finite, or KL passed its bound (local)
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar, Self

import grpc

__all__ = [
    "DOMAIN",
    "REASONS",
    "Cancelled",
    "ConfigError",
    "CorruptData",
    "DataError",
    "DeadlineExceeded",
    "FailedPrecondition",
    "InternalError",
    "InvalidRequest",
    "LeaseHeld",
    "Mismatch",
    "ModelFolderError",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "Reason",
    "SequenceTooLong",
    "TrainingDiverged",
    "TrimtabError",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "VersionConflict",
    "VersionUnavailable",
]

DOMAIN = "trimtab"
"""`google.rpc.ErrorInfo.domain` of every error that a Trimtab service returns."""


class Reason(StrEnum):
    """Why a call failed. The same names, with the prefix `REASON_`, are `trimtab.v1.Reason`."""

    FIELD_INVALID = "FIELD_INVALID"
    FIELD_MISSING = "FIELD_MISSING"
    EMPTY_PROMPT = "EMPTY_PROMPT"
    SEQUENCE_TOO_LONG = "SEQUENCE_TOO_LONG"
    TOKEN_ID_OUT_OF_RANGE = "TOKEN_ID_OUT_OF_RANGE"
    TOO_MANY_ITEMS = "TOO_MANY_ITEMS"
    DUPLICATE_ID = "DUPLICATE_ID"
    VERSION_UNAVAILABLE = "VERSION_UNAVAILABLE"
    VERSION_CONFLICT = "VERSION_CONFLICT"
    BLOB_MISSING = "BLOB_MISSING"
    LEASE_HELD = "LEASE_HELD"
    LEASE_LOST = "LEASE_LOST"
    MISMATCH = "MISMATCH"
    RUN_STATE = "RUN_STATE"
    NOT_FOUND = "NOT_FOUND"
    QUEUE_FULL = "QUEUE_FULL"
    DRAINING = "DRAINING"
    WAITING_FOR_VERSION = "WAITING_FOR_VERSION"
    UNREACHABLE = "UNREACHABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    DEADLINE_UNMEETABLE = "DEADLINE_UNMEETABLE"
    CANCELLED = "CANCELLED"
    TOKEN_MISSING = "TOKEN_MISSING"
    TOKEN_UNKNOWN = "TOKEN_UNKNOWN"
    SCOPE_MISSING = "SCOPE_MISSING"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    NOT_FINITE = "NOT_FINITE"
    UNSUPPORTED = "UNSUPPORTED"
    INTERNAL = "INTERNAL"
    BASE_MISSING = "BASE_MISSING"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"


class TrimtabError(Exception):
    """The root of the tree.

    Args:
        message: one sentence that names the field, the value and the limit.
        reason: why; each class has a default.
        field: path of the offending field or key, such as `prompts[3].token_ids`.
        value: what was found there, shortened to 200 characters.
        limit: what is allowed.
        metadata: further facts, such as `served_version`; strings only.
        retry_after_s: seconds after which a retry can succeed; None when retrying cannot help or is unknown.
    """

    default_reason: ClassVar[Reason] = Reason.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        reason: Reason | None = None,
        field: str = "",
        value: object = None,
        limit: object = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.field = field
        self.value = "" if value is None else _shown(value)
        self.limit = "" if limit is None else _shown(limit)
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s

    def at(self, field: str) -> Self:
        """The same error of another field, which its message begins with instead of its own."""
        return self.told(f"{field}: {self.message.removeprefix(f'{self.field}: ')}", field=field)

    def under(self, path: str) -> Self:
        """The same error with a path in front of its field."""
        return self.at(f"{path}.{self.field}" if self.field else path)

    def told(self, message: str, *, field: str | None = None) -> Self:
        """The same error with another message; of another field where one is given."""
        return type(self)(
            message,
            reason=self.reason,
            field=self.field if field is None else field,
            value=self.value or None,
            limit=self.limit or None,
            metadata=self.metadata,
            retry_after_s=self.retry_after_s,
        )


def _shown(value: object) -> str:
    """At most 200 characters, all of which can be sent: half a surrogate pair cannot."""
    return str(value)[:200].encode(errors="replace").decode()


class InvalidRequest(TrimtabError):
    """A field of a request is wrong; sending the same request again cannot help."""

    default_reason = Reason.FIELD_INVALID


class SequenceTooLong(InvalidRequest):
    """More tokens than the model or the service takes; `value` measured, `limit` allowed."""

    default_reason = Reason.SEQUENCE_TOO_LONG


class FailedPrecondition(TrimtabError):
    """The state of the service forbids the call now."""

    default_reason = Reason.RUN_STATE


class VersionUnavailable(FailedPrecondition):
    """The replica does not serve the version asked for; metadata `served_version` says which it serves."""

    default_reason = Reason.VERSION_UNAVAILABLE


class VersionConflict(FailedPrecondition):
    """`expected_previous_version` is not the channel's version: somebody published in between."""

    default_reason = Reason.VERSION_CONFLICT


class LeaseHeld(FailedPrecondition):
    """Another writer holds the lease; metadata `holder` names it."""

    default_reason = Reason.LEASE_HELD


class Mismatch(FailedPrecondition):
    """Two parts that must agree do not (tokenizer, limits, log-probs)."""

    default_reason = Reason.MISMATCH


class NotFound(TrimtabError):
    """No such version, channel, blob, model or run."""

    default_reason = Reason.NOT_FOUND


class Overloaded(TrimtabError):
    """The bounded queue is full; `retry_after_s` says when to come back."""

    default_reason = Reason.QUEUE_FULL


class Unavailable(TrimtabError):
    """The service drains, waits for a version, or cannot be reached."""

    default_reason = Reason.UNREACHABLE


class DeadlineExceeded(TrimtabError):
    """The deadline passed, or the work could not have met it and was refused."""

    default_reason = Reason.DEADLINE_EXCEEDED


class Cancelled(TrimtabError):
    """The caller went away, or the work was stopped on request."""

    default_reason = Reason.CANCELLED


class Unauthenticated(TrimtabError):
    """No token, or one that the service does not know."""

    default_reason = Reason.TOKEN_MISSING


class PermissionDenied(TrimtabError):
    """The token is known but lacks the scope; `limit` names the scope."""

    default_reason = Reason.SCOPE_MISSING


class CorruptData(TrimtabError):
    """Bytes do not have the digest that names them."""

    default_reason = Reason.DIGEST_MISMATCH


class Unsupported(TrimtabError):
    """The service, or the engine behind it, cannot do what was asked; the message says why."""

    default_reason = Reason.UNSUPPORTED


class InternalError(TrimtabError):
    """A fault of the service itself; its log has the trace under the same request id."""

    default_reason = Reason.INTERNAL


class ConfigError(TrimtabError):
    """A configuration file, an option or a run spec is wrong; names the key, the value and what is allowed."""

    default_reason = Reason.FIELD_INVALID


class DataError(TrimtabError):
    """A dataset file or row is wrong; the message has file, line, field and reason."""

    default_reason = Reason.FIELD_INVALID


class ModelFolderError(TrimtabError):
    """A model folder cannot be used; the message names the folder and what is missing."""

    default_reason = Reason.FIELD_INVALID


class TrainingDiverged(TrimtabError):
    """A loss, gradient, reward or KL is not finite or passed its bound; metadata `batch` is the saved batch."""

    default_reason = Reason.NOT_FINITE


REASONS: Mapping[Reason, tuple[grpc.StatusCode, type[TrimtabError]]] = {
    Reason.FIELD_INVALID: (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
    Reason.FIELD_MISSING: (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
    Reason.EMPTY_PROMPT: (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
    Reason.SEQUENCE_TOO_LONG: (grpc.StatusCode.INVALID_ARGUMENT, SequenceTooLong),
    Reason.TOKEN_ID_OUT_OF_RANGE: (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
    Reason.TOO_MANY_ITEMS: (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
    Reason.DUPLICATE_ID: (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
    Reason.VERSION_UNAVAILABLE: (grpc.StatusCode.FAILED_PRECONDITION, VersionUnavailable),
    Reason.VERSION_CONFLICT: (grpc.StatusCode.FAILED_PRECONDITION, VersionConflict),
    Reason.BLOB_MISSING: (grpc.StatusCode.FAILED_PRECONDITION, FailedPrecondition),
    Reason.BASE_MISSING: (grpc.StatusCode.FAILED_PRECONDITION, FailedPrecondition),
    Reason.LEASE_HELD: (grpc.StatusCode.FAILED_PRECONDITION, LeaseHeld),
    Reason.LEASE_LOST: (grpc.StatusCode.FAILED_PRECONDITION, LeaseHeld),
    Reason.MISMATCH: (grpc.StatusCode.FAILED_PRECONDITION, Mismatch),
    Reason.RUN_STATE: (grpc.StatusCode.FAILED_PRECONDITION, FailedPrecondition),
    Reason.NOT_FOUND: (grpc.StatusCode.NOT_FOUND, NotFound),
    Reason.QUEUE_FULL: (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
    Reason.QUOTA_EXCEEDED: (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
    Reason.DRAINING: (grpc.StatusCode.UNAVAILABLE, Unavailable),
    Reason.WAITING_FOR_VERSION: (grpc.StatusCode.UNAVAILABLE, Unavailable),
    Reason.UNREACHABLE: (grpc.StatusCode.UNAVAILABLE, Unavailable),
    Reason.DEADLINE_EXCEEDED: (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
    Reason.DEADLINE_UNMEETABLE: (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
    Reason.CANCELLED: (grpc.StatusCode.CANCELLED, Cancelled),
    Reason.TOKEN_MISSING: (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
    Reason.TOKEN_UNKNOWN: (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
    Reason.SCOPE_MISSING: (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied),
    Reason.DIGEST_MISMATCH: (grpc.StatusCode.DATA_LOSS, CorruptData),
    Reason.NOT_FINITE: (grpc.StatusCode.INTERNAL, InternalError),
    Reason.UNSUPPORTED: (grpc.StatusCode.UNIMPLEMENTED, Unsupported),
    Reason.INTERNAL: (grpc.StatusCode.INTERNAL, InternalError),
}
"""Reason -> gRPC status code and the exception a client gets. Both sides of the wire use this table only."""
