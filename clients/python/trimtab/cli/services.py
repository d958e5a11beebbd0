"""`trimtab serve`, `trimtab up` and `trimtab scale`."""

from __future__ import annotations

import importlib
import json
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import click
import yaml

from trimtab.cli.release import Release, release_options
from trimtab.errors import ConfigError
from trimtab.local import SCALABLE, SERVICES, LocalServices, end_with_parent, read_endpoints, request_scale

__all__ = ["scale", "serve", "up"]

DEFAULT_DIRECTORY = Path("trimtab-local")
"""Folder of `trimtab up` unless told otherwise."""

_PAGES = {"trainer": ("runs page", "/runs/"), "labeling": ("labels page", "/labeling/")}
"""Services with a page for people: what it is called, and its path."""


@click.command()
@click.argument("name", type=click.Choice(SERVICES))
@click.option("--config", type=click.Path(path_type=Path), help="YAML file of the service's configuration.")
@click.option("--host", help="Address to listen on; anything but loopback needs TLS and tokens, or --insecure.")
@click.option("--grpc-port", type=int, help="gRPC port; 0 picks a free one. Default 50051.")
@click.option("--health-port", type=int, help="Health port, plaintext. Default 50052.")
@click.option("--http-port", type=int, help="HTTP port. Default 8080.")
@click.option("--metrics-port", type=int, help="Prometheus port. Default 9090.")
@click.option("--insecure", is_flag=True, default=None, help="Allow plaintext without tokens beyond loopback.")
def serve(name: str, config: Path | None, **options: Any) -> int:
    """Run the service NAME in the foreground until SIGTERM or Ctrl-C, then drain.

    The environment overrides the file: TRIMTAB_<SERVICE>__<KEY>, such as TRIMTAB_GENERATION__SLOTS=64; options
    override both.
    """
    end_with_parent()
    overrides = {key: value for key, value in options.items() if value is not None}
    package = f"trimtab_services.{name}.main"
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"`trimtab serve {name}` needs {error.name}: pip install 'trimtab[{name}]'"
        ) from error
    code: int = module.serve(config, overrides)
    return code


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="YAML file: `replicas` and settings by service name.")
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=DEFAULT_DIRECTORY, show_default=True)
def up(config: Path | None, directory: Path) -> None:
    """Start weights, generation, reward, reference and trainer; write DIR/endpoints.json once all are live.

    Labeling starts too where the file says `replicas: {labeling: 1}`.

    Ctrl-C stops the runs, each with a checkpoint, then the services; a second Ctrl-C ends everything at once.
    """
    settings = read_up_config(config)
    replicas = settings.pop("replicas", {})
    services = LocalServices(directory, replicas=replicas, settings=settings, on_event=click.echo)
    stop = threading.Event()

    def on_signal(signum: int, frame: FrameType | None) -> None:
        if stop.is_set():
            services.end_now()
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    click.echo(f"starting in {directory}")
    with services:
        for name, endpoints in read_endpoints(directory).items():
            click.echo(f"{name:<11} {', '.join(e['grpc'] for e in endpoints)}")
        for line in page_lines(read_endpoints(directory), settings):
            click.echo(line)
        click.echo(f"all live; addresses in {services.endpoints_file}; Ctrl-C stops the runs and drains")
        stop.wait()
        click.echo("draining")


def page_lines(endpoints: Mapping[str, list[dict[str, Any]]], settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where a browser finds the pages of services that run; `settings` says which of them speak TLS."""
    return [
        f"{what:<11} {'https' if settings.get(service, {}).get('tls') else 'http'}://{one['http']}{path}"
        for service, (what, path) in _PAGES.items()
        for one in endpoints.get(service, [])
    ]


def read_up_config(path: Path | None) -> dict[str, Any]:
    """Reads the YAML file of `trimtab up`: `replicas: {generation: 2}` and one mapping for each service.

    Raises:
        ConfigError: no such file, no YAML mapping, or an unknown key.
    """
    if path is None:
        return {}
    try:
        config = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", field="config", value=path) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: no valid YAML: {error}", field="config", value=path) from None
    allowed = ("replicas", *SERVICES)
    if not isinstance(config, dict) or any(not isinstance(v, dict) for v in config.values()):
        raise ConfigError(f"{path}: a mapping of mappings is expected, keys {', '.join(allowed)}", field="config")
    for key in config:
        if key not in allowed:
            raise ConfigError(f"{path}: unknown key {key!r}; allowed are {', '.join(allowed)}", field=key)
    return config


@click.command()
@click.argument("assignments", nargs=-1, required=True, metavar="SERVICE=N...")
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=DEFAULT_DIRECTORY, show_default=True)
@release_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object: the wanted number of each service named.")
def scale(assignments: tuple[str, ...], directory: Path, as_json: bool, release: str | None, **cluster: Any) -> None:
    """Set the number of replicas, such as generation=2, while a run goes on: local ones, or those of a release.

    A release's is refused where an autoscaler sets it.
    """
    wanted = dict(_assignment(text) for text in assignments)
    of = Release(release, **cluster) if release is not None else None
    for service, count in wanted.items():
        if of is None:
            request_scale(directory, service, count)
        elif service in SCALABLE:
            of.scale(service, count)
        else:
            raise ConfigError(
                f"{service!r} cannot be scaled; {', '.join(SCALABLE)} can", field="service", value=service
            )
        if not as_json:
            click.echo(f"{service}: {count} wanted")
    if as_json:
        click.echo(json.dumps(wanted))


def _assignment(text: str) -> tuple[str, int]:
    service, _, count = text.partition("=")
    if not count.isdecimal():
        raise ConfigError(
            f"{text!r}: SERVICE=N is expected, SERVICE one of {', '.join(SCALABLE)}, N a number",
            field="assignment",
            value=text,
        )
    return service, int(count)
