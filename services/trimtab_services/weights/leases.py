"""Leases: one writer for all channels under a prefix. They are kept in the store, so they outlive a restart."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable

from trimtab.errors import InvalidRequest, LeaseHeld, Reason
from trimtab.v1 import weights_pb2
from trimtab_services.weights.state import LeaseRow, StoreState

__all__ = ["acquire", "check_lease", "now", "release"]

_LEAST_TTL_MS, _MOST_TTL_MS = 1_000, 600_000
_MOST_CHARACTERS = 200

_STARTED = time.time() - time.monotonic()


def now() -> float:
    """Seconds since the epoch as of this process's start, steady from then on: setting a clock ends no lease."""
    return _STARTED + time.monotonic()


def acquire(state: StoreState, request: weights_pb2.AcquireLeaseRequest, now: float) -> weights_pb2.Lease:
    """Adds a lease to a state, or renews one.

    Args:
        state: changed in place.
        request: as in the proto.
        now: as of `now`.

    Raises:
        InvalidRequest: no holder, or a ttl out of bounds.
        LeaseHeld: LEASE_HELD when a live lease overlaps; LEASE_LOST when the one to renew has ended.
    """
    if not request.holder or len(request.holder) > _MOST_CHARACTERS:
        raise _invalid("holder", request.holder, f"1..{_MOST_CHARACTERS} characters")
    if not _LEAST_TTL_MS <= request.ttl_ms <= _MOST_TTL_MS:
        raise _invalid("ttl_ms", request.ttl_ms, f"{_LEAST_TTL_MS}..{_MOST_TTL_MS}")
    if len(request.channel_prefix) > _MOST_CHARACTERS:
        raise _invalid("channel_prefix", request.channel_prefix, f"at most {_MOST_CHARACTERS} characters")
    _drop_ended(state, now)
    prefix, lease_id = request.channel_prefix, request.lease_id
    if lease_id:
        row = state.leases.get(prefix)
        if row is None or not _is_of(row, lease_id):
            raise _lost(f"the lease on channels {prefix!r}* has ended and cannot be renewed")
    else:
        for other, row in state.leases.items():
            if other.startswith(prefix) or prefix.startswith(other):
                raise _held(other, row)
        lease_id = secrets.token_hex(16)
    row = LeaseRow(id_digest=_digest(lease_id), holder=request.holder, expire_time=now + request.ttl_ms / 1000)
    state.leases[prefix] = row
    lease = weights_pb2.Lease(lease_id=lease_id, channel_prefix=prefix, holder=row.holder)
    lease.expire_time.FromNanoseconds(round(row.expire_time * 1e9))
    return lease


def release(state: StoreState, lease_id: str, now: float) -> None:
    """Ends a lease; one that has ended already is no error."""
    _drop_ended(state, now)
    for prefix in [prefix for prefix, row in state.leases.items() if _is_of(row, lease_id)]:
        del state.leases[prefix]


def check_lease(state: StoreState, channels: Iterable[str], lease_id: str, now: float) -> None:
    """Checks that a caller may write some channels.

    Raises:
        LeaseHeld: LEASE_HELD when another's lease covers one; LEASE_LOST when the caller's own has ended.
        InvalidRequest: the caller's lease is alive but does not cover the channel.
    """
    live = {prefix: row for prefix, row in state.leases.items() if row.expire_time > now}
    for channel in channels:
        covering = next(((prefix, row) for prefix, row in live.items() if channel.startswith(prefix)), None)
        if covering is not None and not (lease_id and _is_of(covering[1], lease_id)):
            raise _held(*covering)
        if covering is None and lease_id:
            own = next((prefix for prefix, row in live.items() if _is_of(row, lease_id)), None)
            if own is None:
                raise _lost(f"the lease on channel {channel!r} has ended; take it again before writing")
            raise _invalid("lease_id", "(secret)", f"a lease that covers {channel!r}; this one covers {own!r}*")


def _drop_ended(state: StoreState, now: float) -> None:
    for prefix in [prefix for prefix, row in state.leases.items() if row.expire_time <= now]:
        del state.leases[prefix]


def _digest(lease_id: str) -> str:
    return hashlib.sha256(lease_id.encode()).hexdigest()


def _is_of(row: LeaseRow, lease_id: str) -> bool:
    return hmac.compare_digest(row.id_digest, _digest(lease_id))


def _held(prefix: str, row: LeaseRow) -> LeaseHeld:
    return LeaseHeld(
        f"{row.holder!r} holds the lease on channels {prefix!r}*; wait until it ends or is released",
        field="lease_id",
        limit=row.holder,
        metadata={"holder": row.holder, "channel_prefix": prefix},
    )


def _lost(message: str) -> LeaseHeld:
    return LeaseHeld(message, reason=Reason.LEASE_LOST, field="lease_id")


def _invalid(field: str, value: object, limit: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {value!r}; allowed: {limit}", field=field, value=value, limit=limit)
