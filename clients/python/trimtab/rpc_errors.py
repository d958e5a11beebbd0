"""Errors across the wire: an exception to a gRPC status with details, and back to the same exception."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from trimtab.errors import (
    DOMAIN,
    REASONS,
    Cancelled,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Reason,
    TrimtabError,
    Unavailable,
    Unsupported,
)

__all__ = ["from_rpc_error", "to_status"]

_STANDARD_KEYS = frozenset({"field", "value", "limit"})


def to_status(error: TrimtabError, method: str = "") -> grpc.Status:
    """The status of an error: code by the table, ErrorInfo, and BadRequest or RetryInfo where they apply.

    Args:
        error: any error of the tree; local ones (ConfigError, ...) are INTERNAL faults of the server.
        method: full name of the method, for metadata.
    """
    reason = error.reason if isinstance(error, REASONS[error.reason][1]) else Reason.INTERNAL
    code = REASONS[reason][0]
    metadata = {"field": error.field, "value": error.value, "limit": error.limit, "method": method, **error.metadata}
    info = error_details_pb2.ErrorInfo(
        reason=reason.value, domain=DOMAIN, metadata={key: value for key, value in metadata.items() if value}
    )
    details = [_packed(info)]
    if code is grpc.StatusCode.INVALID_ARGUMENT and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    number = code_pb2.Code.Value(code.name)
    status: grpc.Status = rpc_status.to_status(status_pb2.Status(code=number, message=error.message, details=details))
    return status


def from_rpc_error(
    error: grpc.RpcError, *, target: str, method: str, timeout_s: float | None, closed: bool = False
) -> TrimtabError:
    """The exception behind a failed call.

    Args:
        error: what grpc raised, of the sync or the asyncio API.
        target: address that was called, for messages.
        method: full name of the method, for messages.
        timeout_s: the deadline it had, for messages.
        closed: whether the caller has closed the connection itself.

    Returns:
        The exception that the server raised; for failures that no server reported (no connection, deadline) one that
        names target, method and deadline.
    """
    status = rpc_status.from_call(error) if hasattr(error, "trailing_metadata") else None
    if status is not None:
        known = _from_details(status)
        if known is not None:
            return known
    code, details = error.code(), error.details() or ""
    name = method.rsplit("/", 1)[-1]
    match code:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"{target}: {name} was not done within {timeout_s:g} s"
                if timeout_s
                else f"{target}: {name}: {details}",
                field="timeout_s",
                value=timeout_s,
            )
        case grpc.StatusCode.UNAVAILABLE:
            return Unavailable(
                f"{target}: cannot be reached: {_hint(details)}{details}", reason=Reason.UNREACHABLE, field="target"
            )
        case grpc.StatusCode.CANCELLED if closed:
            return Cancelled(f"{target}: {name} was cancelled: {details}")
        case grpc.StatusCode.CANCELLED:  # gRPC's answer to the calls in flight of a server that ends
            return Unavailable(f"{target}: ended during {name}", reason=Reason.UNREACHABLE, field="target")
        case grpc.StatusCode.UNIMPLEMENTED:
            service = method.strip("/").split("/")[0]
            return Unsupported(f"{target}: this is no {service}, or an older one", field="target", value=target)
        case grpc.StatusCode.RESOURCE_EXHAUSTED | grpc.StatusCode.OUT_OF_RANGE | grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidRequest(f"{target}: {name}: {details}")
        case _:
            return InternalError(f"{target}: {name} failed with {code.name}: {details}")


def _hint(details: str) -> str:
    """What gRPC's own words about a connection that never came to be mostly mean."""
    if "failed to connect" in details and "Socket closed" in details:
        return "it closed the connection at once, as servers do that want TLS or a client's certificate: "
    if "WRONG_VERSION_NUMBER" in details:
        return "it does not speak TLS there: "
    return ""


def _from_details(status: status_pb2.Status) -> TrimtabError | None:
    info, retry_after_s = None, None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    if info is None or info.domain != DOMAIN:
        return None
    try:
        reason = Reason(info.reason)
    except ValueError:  # a newer server's reason: its code still tells the class
        code = code_pb2.Code.Name(status.code)
        reason = next((known for known, (its_code, _) in REASONS.items() if its_code.name == code), Reason.INTERNAL)
    metadata = dict(info.metadata)
    return REASONS[reason][1](
        status.message,
        reason=reason,
        field=metadata.get("field", ""),
        value=metadata.get("value"),
        limit=metadata.get("limit"),
        metadata={key: value for key, value in metadata.items() if key not in _STANDARD_KEYS},
        retry_after_s=retry_after_s,
    )


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
