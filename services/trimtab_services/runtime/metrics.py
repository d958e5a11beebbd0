"""Prometheus metrics of a server, under the names that users of TGI and TEI know, with the prefix `trimtab_`.

Each server has a registry of its own, so that several servers can live in one process.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

__all__ = ["CONTENT_TYPE", "CallerNames", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Content type of `Metrics.text`."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_PAUSES = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
_TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SCORES = (-20, -15, -10, -7.5, -5, -4, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4, 5, 7.5, 10, 15, 20)

_MOST_CALLERS = 200


class CallerNames:
    """Callers as label values, whose number is bounded: every one makes time series of its own.

    Args:
        most: names that are kept apart; those that come later share `other`.
    """

    def __init__(self, most: int = _MOST_CALLERS) -> None:
        self._most = most
        self._names: set[str] = set()

    def label(self, caller: str) -> str:
        """The caller's label; `unidentified` for one that never said who it is."""
        if not caller:
            return "unidentified"
        if caller not in self._names:
            if len(self._names) >= self._most:
                return "other"
            self._names.add(caller)
        return caller


class Metrics:
    """All metrics that services share. A service adds its own to `registry`.

    Attributes:
        registry: where they are collected.
        callers: label values of `caller`.
        requests: finished calls by `method`, gRPC `code` and `caller`.
        request_seconds: duration of calls by `method`.
        in_flight: calls being served.
        queue_size, queue_tokens: items and tokens waiting.
        queue_wait_seconds: wait of each item that was computed.
        batch_tokens, batch_items: real tokens and items of each batch.
        compute_seconds: compute time of each batch.
        computed_tokens, padding_tokens: tokens computed for items, and beside them for padding.
        generated_tokens: tokens sampled.
        scores: raw rewards by `model`. As rewards may be negative there is no sum of them: a rate of it has no meaning.
        quota_refusals: calls refused because their caller's quota is used up, by `resource`: requests, tokens.
        dropped_items: items never computed, by `cause`: the reason of a refusal in lower case (queue_full, ...), or
            deadline, cancelled, failed.
        model_version, channel_version: version served and version that the channel points to, by `model`.
        swaps: changes of version by `model` and `outcome`: ok, failed.
        swap_pause_seconds: how long each change of version took between two steps.
        fetched_bytes: bytes of weights read from the weights service, by `model`.
        state: 1 for the present state of the service, by `state`.
    """

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        ProcessCollector(registry=registry)
        self.callers = CallerNames()
        self.requests = Counter("trimtab_request", "Finished calls.", ["method", "code", "caller"], registry=registry)
        self.request_seconds = Histogram(
            "trimtab_request_duration_seconds", "Duration of calls.", ["method"], buckets=_SECONDS, registry=registry
        )
        self.in_flight = Gauge("trimtab_request_in_flight", "Calls being served.", registry=registry)
        self.queue_size = Gauge("trimtab_queue_size", "Items waiting.", registry=registry)
        self.queue_tokens = Gauge("trimtab_queue_tokens", "Tokens waiting.", registry=registry)
        self.queue_wait_seconds = Histogram(
            "trimtab_queue_wait_seconds", "Wait of each item.", buckets=_SECONDS, registry=registry
        )
        self.batch_tokens = Histogram(
            "trimtab_batch_tokens", "Tokens of each batch.", buckets=_TOKENS, registry=registry
        )
        self.batch_items = Histogram("trimtab_batch_items", "Items of each batch.", buckets=_ITEMS, registry=registry)
        self.compute_seconds = Histogram(
            "trimtab_compute_seconds", "Compute time of each batch.", buckets=_SECONDS, registry=registry
        )
        self.computed_tokens = Counter("trimtab_computed_tokens", "Tokens computed for items.", registry=registry)
        self.padding_tokens = Counter("trimtab_padding_tokens", "Tokens computed for padding.", registry=registry)
        self.generated_tokens = Counter("trimtab_generated_tokens", "Tokens sampled.", registry=registry)
        self.scores = Histogram("trimtab_score", "Raw rewards.", ["model"], buckets=_SCORES, registry=registry)
        self.quota_refusals = Counter(
            "trimtab_quota_refusal", "Calls beyond their caller's quota.", ["resource"], registry=registry
        )
        for resource in ("requests", "tokens"):  # there at 0, so that a first refusal is a rise
            self.quota_refusals.labels(resource)
        self.dropped_items = Counter("trimtab_dropped_items", "Items never computed.", ["cause"], registry=registry)
        self.model_version = Gauge("trimtab_model_version", "Version served.", ["model"], registry=registry)
        self.channel_version = Gauge(
            "trimtab_channel_version", "Version that the channel points to.", ["model"], registry=registry
        )
        self.swaps = Counter("trimtab_swap", "Changes of version.", ["model", "outcome"], registry=registry)
        self.swap_pause_seconds = Histogram(
            "trimtab_swap_pause_seconds",
            "Time that a change of version takes between two steps.",
            buckets=_PAUSES,
            registry=registry,
        )
        self.fetched_bytes = Counter(
            "trimtab_fetched_bytes", "Bytes of weights read from the weights service.", ["model"], registry=registry
        )
        self.state = Gauge("trimtab_service_state", "1 for the present state.", ["state"], registry=registry)

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
