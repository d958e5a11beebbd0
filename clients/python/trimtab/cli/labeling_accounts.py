"""`trimtab labeling accounts`: who may label, review and manage."""

from __future__ import annotations

import getpass
import warnings
from pathlib import Path
from typing import Any

import click

from trimtab.cli.connect import client_of, connection_options
from trimtab.cli.labeling_choices import ROLES, word_of
from trimtab.cli.labeling_listing import all_accounts, all_projects
from trimtab.cli.rows import json_option, print_rows
from trimtab.client import Client
from trimtab.errors import ConfigError
from trimtab.v1 import labeling_pb2 as pb

__all__ = ["accounts"]

_password_file = click.option(
    "--password-file", type=click.Path(path_type=Path), help="File whose first line is the password; else it is asked."
)


@click.group()
def accounts() -> None:
    """Add, change and list accounts of people."""


@accounts.command()
@click.argument("name")
@click.option("--role", type=click.Choice(list(ROLES)), default="labeler", show_default=True)
@click.option("--group", default="", help="Group of labelers, as in exported rows, such as heldout.")
@_password_file
@connection_options
def add(name: str, role: str, group: str, password_file: Path | None, **connection: Any) -> None:
    """Make the account NAME."""
    request = pb.CreateAccountRequest(name=name, role=ROLES[role], group=group, password=_password(password_file))
    with client_of("labeling", **connection) as client:
        client.create_account(request)
        _tell_of_new_group(client, name, group)
    click.echo(f"account {name}: {role}")


@accounts.command()
@click.argument("name")
@click.option("--role", type=click.Choice(list(ROLES)))
@click.option("--group", help="Group of labelers; an empty text for none.")
@click.option("--enabled/--disabled", default=None, help="Whether it can work.")
@click.option("--new-password", is_flag=True, help="Ask for a new password.")
@_password_file
@connection_options
def update(
    name: str,
    role: str | None,
    group: str | None,
    enabled: bool | None,
    new_password: bool,
    password_file: Path | None,
    **connection: Any,
) -> None:
    """Change the account NAME; what is not given stays.

    A new password, another role and --disabled end its sessions.
    """
    request = pb.UpdateAccountRequest(
        name=name,
        role=ROLES[role] if role is not None else pb.ACCOUNT_ROLE_UNSPECIFIED,
        group=group,
        enabled=enabled,
        password=_password(password_file) if new_password or password_file is not None else None,
    )
    if request == pb.UpdateAccountRequest(name=name):
        raise click.UsageError("nothing to change: give an option")
    with client_of("labeling", **connection) as client:
        client.update_account(request)
        _tell_of_new_group(client, name, group or "")
    click.echo(f"account {name} is changed")


def _tell_of_new_group(client: Client, name: str, group: str) -> None:
    """A group that nobody else has may be a new one, or another one misspelt."""
    if not group:
        return
    known = {one.group for one in all_accounts(client) if one.name != name}
    known |= {one.held_out_group for one in all_projects(client)}
    if group not in known:
        there = ", ".join(repr(one) for one in sorted(known - {""}))
        others = f"; groups are {there}" if there else ""
        click.echo(f"warning: {name} is the only account of the group {group!r}{others}", err=True)


@accounts.command("list")
@json_option
@connection_options
def list_accounts(as_json: bool, **connection: Any) -> None:
    """The accounts by name."""
    with client_of("labeling", **connection) as client:
        rows = (_row(one) for one in all_accounts(client))
        keys = ("name", "role", "group", "enabled")
        print_rows(keys, ((row, row | {"enabled": "yes" if row["enabled"] else ""}) for row in rows), as_json=as_json)


def _row(one: pb.Account) -> dict[str, Any]:
    return {
        "name": one.name,
        "role": word_of(ROLES, one.role),
        "group": one.group,
        "enabled": one.enabled,
        "create_time": one.create_time.ToJsonString(),
    }


def _password(file: Path | None) -> str:
    if file is not None:
        return (file.read_text(encoding="utf-8").splitlines() or [""])[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)  # else it would be read with all of its letters shown
        try:
            asked: str = click.prompt("password", hide_input=True, confirmation_prompt=True)
        except getpass.GetPassWarning:
            click.echo()
            raise ConfigError(
                "password: there is no terminal to ask at; --password-file is needed", field="password"
            ) from None
    return asked
