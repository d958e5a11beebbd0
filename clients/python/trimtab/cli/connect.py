"""Where a command finds its service: `--target`, or the endpoints.json of `--dir`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from trimtab.aio import AsyncClient
from trimtab.channel import TLSConfig, Token
from trimtab.client import Client
from trimtab.errors import ConfigError
from trimtab.local import read_endpoints

__all__ = [
    "async_client_of",
    "client_of",
    "connection_options",
    "credential_options",
    "credentials_of",
    "directory_option",
]

Command = TypeVar("Command", bound=Callable[..., Any])


def directory_option(command: Command) -> Command:
    """Adds --dir, the folder whose endpoints.json says where the services are."""
    return click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path),
        default=Path("trimtab-local"),
        show_default=True,
        help="Folder of `trimtab up`, for its endpoints.json.",
    )(command)


def credential_options(command: Command) -> Command:
    """Adds the options that `credentials_of` reads."""
    for option in (
        click.option("--token-file", type=click.Path(path_type=Path), help="File that holds the bearer token."),
        click.option("--tls", is_flag=True, help="TLS with the system's roots."),
        click.option("--ca-file", type=click.Path(path_type=Path), help="PEM roots; turns TLS on."),
        click.option("--certificate-file", type=click.Path(path_type=Path), help="PEM client certificate, for mTLS."),
        click.option("--key-file", type=click.Path(path_type=Path), help="PEM key of the client certificate."),
        click.option("--insecure", is_flag=True, help="Allow to send the token in plaintext beyond this host."),
    ):
        command = option(command)
    return command


def connection_options(command: Command) -> Command:
    """Adds the options that `client_of` reads."""
    command = click.option("--target", help="host:port of the service; overrides --dir.")(command)
    command = directory_option(credential_options(command))
    return click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Deadline in seconds.")(command)


def credentials_of(
    *,
    token_file: Path | None,
    tls: bool,
    ca_file: Path | None,
    certificate_file: Path | None,
    key_file: Path | None,
    insecure: bool,
) -> dict[str, Any]:
    """`token`, `tls` and `insecure` as a client takes them."""
    files = (ca_file, certificate_file, key_file)
    return {
        "token": Token(file=token_file) if token_file else None,
        "tls": TLSConfig(*files) if tls or any(files) else None,
        "insecure": insecure,
    }


def client_of(service: str, *, target: str | None, directory: Path, timeout_s: float, **credentials: Any) -> Client:
    """Connects to a service; `credentials` as `credentials_of` takes them.

    Raises:
        ConfigError: no target was given and none is known in the folder.
    """
    if target is None:
        replicas = read_endpoints(directory).get(service, [])
        if not replicas:
            raise ConfigError(f"{directory}: no {service} service runs there", field="dir", value=directory)
        target = str(replicas[0]["grpc"])
    return Client(target, timeout_s=timeout_s, **credentials_of(**credentials))


def async_client_of(service: str, **connection: Any) -> AsyncClient:
    """As `client_of`, for asyncio."""
    with client_of(service, **connection) as found:
        return AsyncClient(
            found.target, token=found.token, tls=found.tls, timeout_s=found.timeout_s, insecure=found.insecure
        )
