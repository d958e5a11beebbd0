"""`trimtab weights`: versions of the weights service, in and out as plain Hugging Face folders."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from trimtab.cli.connect import client_of, connection_options
from trimtab.cli.rows import json_option, limit_option, print_rows
from trimtab.client import Client
from trimtab.v1 import weights_pb2 as pb
from trimtab.weights import fetch_version

__all__ = ["weights"]


@click.group()
def weights() -> None:
    """List, import, export, promote and prune model versions; copy models out of buckets."""


@weights.command("list")
@click.option("--run", default="", help="Only versions of this run.")
@limit_option
@json_option
@connection_options
def list_versions(run: str, limit: int | None, as_json: bool, **connection: Any) -> None:
    """The versions, newest first."""
    keys = ("version", "run", "stage", "step", "MB", "stored", "pinned", "channels", "digest")
    with client_of("weights", **connection) as client:
        rows = ((_row(one), _row_for_people(one)) for one in _all_versions(client, run))
        print_rows(keys, rows, as_json=as_json, limit=limit)


def _all_versions(client: Client, run: str) -> Iterator[pb.VersionSummary]:
    token: str | None = ""
    while token is not None:
        page = client.list_versions(pb.ListVersionsRequest(run=run, page_token=token))
        yield from page.versions
        token = page.next_page_token or None


def _row(one: pb.VersionSummary) -> dict[str, Any]:
    return {
        "version": one.version,
        "parent_version": one.parent_version,
        "run": one.run,
        "stage": one.stage,
        "step": one.step,
        "create_time": one.create_time.ToJsonString(),
        "weights_digest": one.weights_digest,
        "weights_bytes": one.weights_bytes,
        "stored_bytes": one.stored_bytes,
        "chain_length": one.chain_length,
        "pinned": one.pinned,
        "channels": list(one.channels),
    }


def _row_for_people(one: pb.VersionSummary) -> dict[str, Any]:
    return {
        **_row(one),
        "MB": f"{one.weights_bytes / 1e6:.1f}",
        "stored": _stored(one),
        "pinned": "yes" if one.pinned else "",
        "channels": ", ".join(one.channels),
        "digest": one.weights_digest[:12],
    }


def _stored(one: pb.VersionSummary) -> str:
    """Whether a version lies there whole, or as differences to others, and how large they are beside it."""
    if not one.chain_length:
        return "whole"
    return f"{100 * one.stored_bytes / one.weights_bytes:.1f} %"


@weights.command("import")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--channel", "channels", multiple=True, required=True, help="Channel to move to it; may be repeated.")
@connection_options
def import_folder(folder: Path, channels: tuple[str, ...], **connection: Any) -> None:
    """Publish the Hugging Face FOLDER as a new version."""
    versions = _module("versions", "import")
    with client_of("weights", **connection) as client:
        manifest = versions.publish_folder(client, folder, channels=list(channels))
    click.echo(f"version {manifest.version}, weights {manifest.weights_digest[:12]}")


@weights.command()
@click.argument("url")
@click.argument("folder", type=click.Path(path_type=Path))
def download(url: str, folder: Path) -> None:
    """Copy the Hugging Face folder at URL (s3://bucket/model) to FOLDER, whole or not at all."""
    try:
        copied = _module("buckets", "download").download_folder(url, folder)
    except ImportError as error:
        raise click.ClickException(f"{url} needs {error.name or error}: pip install 'trimtab[s3]'") from error
    click.echo(f"{folder}: {copied / 1e6:.1f} MB")


@weights.command()
@click.argument("source", metavar="VERSION|CHANNEL")
@click.argument("folder", type=click.Path(path_type=Path))
@connection_options
def export(source: str, folder: Path, **connection: Any) -> None:
    """Write a version to FOLDER, a plain Hugging Face folder with safetensors."""
    versions = _module("versions", "export")
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


def _module(name: str, command: str) -> Any:
    try:
        return importlib.import_module(f"trimtab_models.{name}")
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"`trimtab weights {command}` needs {error.name}: pip install 'trimtab[models]'"
        ) from error
