"""The files of a local deployment: which replicas there are, and how many somebody wants."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError

__all__ = [
    "OPTIONAL",
    "SCALABLE",
    "SERVICES",
    "check_count",
    "endpoints_path",
    "read_endpoints",
    "read_wanted",
    "request_scale",
    "wanted_path",
    "write_json",
]

SERVICES = ("weights", "generation", "reward", "reference", "trainer", "labeling")
"""Services of a local deployment, in the order in which they start."""

OPTIONAL = ("labeling",)
"""Services that are only started where their number of replicas is given."""

SCALABLE = ("generation", "reward", "reference")
"""Services that may have several replicas; the others have one writer."""

_MOST_REPLICAS = 64


def endpoints_path(directory: Path) -> Path:
    """DIR/endpoints.json."""
    return directory / "endpoints.json"


def wanted_path(directory: Path) -> Path:
    """DIR/replicas.json."""
    return directory / "replicas.json"


def check_count(service: str, count: object) -> int:
    """Checks the wanted number of replicas of a service; returns it.

    Raises:
        ConfigError: an unknown service, no whole number, a negative one, or more than the service may have.
    """
    if service not in SERVICES:
        raise ConfigError(
            f"unknown service {service!r}; known are {', '.join(SERVICES)}", field="service", value=service
        )
    most = _MOST_REPLICAS if service in SCALABLE else 1
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= most:
        raise ConfigError(
            f"{service}={count!r}: the number of replicas must be a whole number in 0..{most}",
            field=service,
            value=count,
            limit=most,
        )
    return count


def read_endpoints(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """Reads DIR/endpoints.json: for each service a list of replicas with `grpc`, `health`, `http`, `metrics`, `pid`.

    Raises:
        ConfigError: no services run there.
    """
    path = endpoints_path(directory)
    try:
        table: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; start the services with `trimtab up --dir {directory}`",
            field="dir",
            value=directory,
        ) from None
    return table


def read_wanted(directory: Path) -> dict[str, int]:
    """Reads DIR/replicas.json: for each service that it names, the wanted number of replicas. No file: nothing.

    Raises:
        ConfigError: no JSON object of service names and allowed numbers.
    """
    path = wanted_path(directory)
    try:
        wanted = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{path}: no JSON: {error}", field="replicas", value=path) from None
    if not isinstance(wanted, dict):
        raise ConfigError(f'{path}: a JSON object is expected, such as {{"generation": 2}}', field="replicas")
    try:
        return {service: check_count(service, count) for service, count in wanted.items()}
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", field=error.field, value=error.value, limit=error.limit) from None


def request_scale(directory: Path, service: str, count: int) -> None:
    """Asks the services that run in DIR for another number of replicas; they follow within a second.

    Raises:
        ConfigError: nothing runs there, the service or the count is not allowed, or DIR/replicas.json is wrong.
    """
    if service not in SCALABLE:
        raise ConfigError(f"{service!r} cannot be scaled; {', '.join(SCALABLE)} can", field="service", value=service)
    check_count(service, count)
    read_endpoints(directory)
    write_json(wanted_path(directory), read_wanted(directory) | {service: count})


def write_json(path: Path, value: object) -> None:
    """Replaces a file whole, so that a reader never sees half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)
