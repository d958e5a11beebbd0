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
        click.option("--tls", is_flag=True, help="TLS with the system's roots."),
        click.option("--ca-file", type=click.Path(path_type=Path), help="PEM roots; turns TLS on."),
        click.option("--certificate-file", type=click.Path(path_type=Path), help="PEM client certificate, for mTLS."),
        click.option("--key-file", type=click.Path(path_type=Path), help="PEM key of the client certificate."),
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
    tls: bool,
    ca_file: Path | None,
    certificate_file: Path | None,
    key_file: Path | None,
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
    files = (ca_file, certificate_file, key_file)
    return Client(
        target,
        token=Token(file=token_file) if token_file else None,
        tls=TLSConfig(*files) if tls or any(files) else None,
        timeout_s=timeout_s,
    )
