"""Prometheus metrics of a service, as a scrape sees them."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["metric", "samples"]


def samples(address: str, name: str) -> list[tuple[dict[str, str], float]]:
    """Labels and value of each sample of a metric of the service whose metrics port is at `address`."""
    text = httpx.get(f"http://{address}/metrics", trust_env=False, timeout=2.0).text
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]


def metric(address: str, name: str, **labels: str) -> float:
    """Sum of a metric over its labels, or over the samples that have some."""
    return sum(value for found, value in samples(address, name) if labels.items() <= found.items())
