"""`trimtab weights`: versions of the weights service, in and out as plain Hugging Face folders."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from trimtab.cli.connect import client_of, connection_options
from trimtab.v1 import weights_pb2 as pb
from trimtab.weights import fetch_version

__all__ = ["weights"]


@click.group()
def weights() -> None:
    """List, import, export, promote and prune model versions."""


@weights.command("list")
@click.option("--run", default="", help="Only versions of this run.")
@connection_options
def list_versions(run: str, **connection: Any) -> None:
    """The newest versions."""
    table = Table("version", "run", "stage", "step", "MB", "channels", "digest")
    with client_of("weights", **connection) as client:
        for one in client.list_versions(pb.ListVersionsRequest(run=run)).versions:
            size = f"{one.weights_bytes / 1e6:.1f}"
            table.add_row(str(one.version), one.run, one.stage, str(one.step), size, ", ".join(one.channels),
                          one.weights_digest[:12])  # fmt: skip
    Console().print(table)


@weights.command("import")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--channel", "channels", multiple=True, required=True, help="Channel to move to it; may be repeated.")
@connection_options
def import_folder(folder: Path, channels: tuple[str, ...], **connection: Any) -> None:
    """Publish the Hugging Face FOLDER as a new version."""
    versions = _versions_module("import")
    with client_of("weights", **connection) as client:
        manifest = versions.publish_folder(client, folder, channels=list(channels))
    click.echo(f"version {manifest.version}, weights {manifest.weights_digest[:12]}")


@weights.command()
@click.argument("source", metavar="VERSION|CHANNEL")
@click.argument("folder", type=click.Path(path_type=Path))
@connection_options
def export(source: str, folder: Path, **connection: Any) -> None:
    """Write a version to FOLDER, a plain Hugging Face folder with safetensors."""
    versions = _versions_module("export")
    which: dict[str, Any] = {"version": int(source)} if source.isdecimal() else {"channel": source}
    with client_of("weights", **connection) as client:
        versions.write_model_folder(fetch_version(client, **which), folder)
    click.echo(str(folder))


@weights.command()
@click.argument("version", type=int)
@click.argument("channel")
@connection_options
def promote(version: int, channel: str, **connection: Any) -> None:
    """Point CHANNEL to VERSION: promote, or roll back."""
    with client_of("weights", **connection) as client:
        request = pb.SetChannelRequest(channel=channel, version=version, expected_previous_version=-1)
        moved = client.set_channel(request).channel
    click.echo(f"{moved.name} -> {moved.version}")


@weights.command()
@click.option("--keep-last", default=10, show_default=True, help="Newest versions of each run that are kept.")
@click.option("--run", default="", help="Only versions of this run.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@connection_options
def prune(keep_last: int, run: str, dry_run: bool, **connection: Any) -> None:
    """Remove old versions that nothing needs."""
    with client_of("weights", **connection) as client:
        found = client.prune(pb.PruneRequest(keep_last=keep_last, run=run, dry_run=dry_run))
    verb = "would remove" if dry_run else "removed"
    click.echo(f"{verb} {len(found.removed_versions)} versions, {found.removed_bytes / 1e6:.1f} MB")


def _versions_module(command: str) -> Any:
    try:
        return importlib.import_module("trimtab_models.versions")
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"`trimtab weights {command}` needs {error.name}: pip install 'trimtab[models]'"
        ) from error
