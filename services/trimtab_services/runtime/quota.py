"""How much each caller may ask for: requests and tokens a second, by a token bucket for each caller's name.

A bucket holds what `burst_s` seconds at the quota's rate bring, and starts full. It is kept as the moment at which it
will be full again (the theoretical arrival time of the generic cell rate algorithm, ITU-T I.371): a charge moves that
moment on by amount / rate, and is refused while more than `burst_s` would be missing. A charge that is larger than the
whole bucket goes through when the bucket is full and leaves it in debt: nothing is refused for ever, and the rate holds
on average. A full bucket says nothing, so it is forgotten.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

from trimtab.errors import Overloaded, Reason

__all__ = ["Quota", "Quotas"]

_LEAST_SWEEP = 1024
_MOST_BUCKETS = 100_000
"""Most callers remembered. Beyond it those nearest to a full bucket are forgiven the rest."""

_ROUNDING_S = 1e-6
"""A caller that waits exactly as long as it was told is let through."""


class Quota(BaseModel):
    """What one caller may ask for. Burst and rates are each caller's own, on each replica."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    requests_per_s: float | None = Field(
        default=None,
        gt=0,
        description="Calls a second, and items of a stream beyond its first. Unset: any number.",
    )
    tokens_per_s: float | None = Field(default=None, gt=0, description="Tokens a second. Unset: any number.")
    burst_s: float = Field(
        default=10.0, gt=0, le=86400, description="What so many seconds bring may be used at once after a pause."
    )

    def overridden_by(self, own: Quota) -> Quota:
        """This quota with the keys that `own` sets, also those that it sets to null."""
        return self.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})


class Quotas:
    """The buckets of a server. Not thread-safe: charged in the event loop.

    Args:
        default: quota of a caller that has none of its own; None: no limit.
        own: quota of a caller's own by its name, laid over the default; None: none.
        refused: told the resource (`requests`, `tokens`) of each refusal.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        default: Quota | None,
        own: Callable[[str], Quota | None],
        refused: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._default = default
        self._own = own
        self._refused = refused
        self._clock = clock
        self._full_at: dict[tuple[str, str], float] = {}
        self._sweep_at = _LEAST_SWEEP

    def charge_request(self, caller: str) -> None:
        """Takes one request off a caller's quota.

        Raises:
            Overloaded: there is none left; `retry_after_s` is when there is.
        """
        quota = self._quota_of(caller)
        if quota is not None and quota.requests_per_s is not None:
            self._charge("requests", caller, 1, quota.requests_per_s, quota.burst_s)

    def charge_tokens(self, caller: str, tokens: int) -> None:
        """Takes tokens off a caller's quota, all or none; negative ones are given back.

        Raises:
            Overloaded: there are too few left; `retry_after_s` is when there are enough.
        """
        quota = self._quota_of(caller)
        if quota is not None and quota.tokens_per_s is not None:
            self._charge("tokens", caller, tokens, quota.tokens_per_s, quota.burst_s)

    def __len__(self) -> int:
        """Buckets kept."""
        return len(self._full_at)

    def _quota_of(self, caller: str) -> Quota | None:
        own = self._own(caller)
        if own is None or self._default is None:
            return own or self._default
        return self._default.overridden_by(own)

    def _charge(self, resource: str, caller: str, amount: int, rate: float, burst_s: float) -> None:
        now = self._clock()
        key = (resource, caller)
        full_at = max(now, self._full_at.get(key, now))
        cost_s = amount / rate
        wait_s = min(full_at + cost_s - burst_s, full_at) - now
        if wait_s > _ROUNDING_S and amount > 0:
            self._refused(resource)
            raise Overloaded(
                f"quota of {caller!r}: {amount} {resource} now would be more than {rate:g} {resource} a second with "
                f"bursts of {rate * burst_s:g}; come back in {wait_s:.3f} s",
                reason=Reason.QUOTA_EXCEEDED,
                field=f"quota.{resource}_per_s",
                value=amount,
                limit=f"{rate:g}",
                retry_after_s=wait_s,
            )
        self._full_at[key] = full_at + cost_s
        if len(self._full_at) >= self._sweep_at:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Drops full buckets; of too many others the fullest."""
        busy = [(full_at, key) for key, full_at in self._full_at.items() if full_at > now]
        if len(busy) > _MOST_BUCKETS // 2:
            busy = heapq.nlargest(_MOST_BUCKETS // 2, busy)
        self._full_at = {key: full_at for full_at, key in busy}
        self._sweep_at = min(_MOST_BUCKETS, max(_LEAST_SWEEP, 2 * len(busy)))
