"""Where a command finds its service: `--target`, or the endpoints.json of `--dir`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from trimtab.channel import TLSConfig, Token
from trimtab.client import Client
from trimtab.errors import ConfigError
from trimtab.local import read_endpoints

__all__ = ["client_of", "connection_options"]

Command = TypeVar("Command", bound=Callable[..., Any])


def connection_options(command: Command) -> Command:
    """Adds the options that `client_of` reads."""
    for option in (
        click.option("--target", help="host:port of the service; overrides --dir."),
        click.option(
            "--dir",
            "directory",
            type=click.Path(path_type=Path),
            default=Path("trimtab-local"),
            show_default=True,
            help="Folder of `trimtab up`, for its endpoints.json.",
        ),
        click.option("--token-file", type=click.Path(path_type=Path), help="File that holds the bearer token."),
        click.option("--ca-file", type=click.Path(path_type=Path), help="PEM roots; turns TLS on."),
        click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Deadline in seconds."),
    ):
        command = option(command)
    return command


def client_of(
    service: str,
    *,
    target: str | None,
    directory: Path,
    token_file: Path | None,
    ca_file: Path | None,
    timeout_s: float,
) -> Client:
    """Connects to a service.

    Raises:
        ConfigError: no target was given and none is known in the folder.
    """
    if target is None:
        replicas = read_endpoints(directory).get(service, [])
        if not replicas:
            raise ConfigError(f"{directory}: no {service} service runs there", field="dir", value=directory)
        target = str(replicas[0]["grpc"])
    return Client(
        target,
        token=Token(file=token_file) if token_file else None,
        tls=TLSConfig(ca_file=ca_file) if ca_file else None,
        timeout_s=timeout_s,
    )
