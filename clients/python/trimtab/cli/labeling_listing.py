"""All projects and all accounts of the labeling service, page by page."""

from __future__ import annotations

from collections.abc import Iterator

from trimtab.client import Client
from trimtab.v1 import labeling_pb2 as pb

__all__ = ["all_accounts", "all_projects"]


def all_projects(client: Client) -> Iterator[pb.Project]:
    """The projects by name."""
    token: str | None = ""
    while token is not None:
        page = client.list_projects(pb.ListProjectsRequest(page_token=token))
        yield from page.projects
        token = page.next_page_token or None


def all_accounts(client: Client) -> Iterator[pb.Account]:
    """The accounts by name."""
    token: str | None = ""
    while token is not None:
        page = client.list_accounts(pb.ListAccountsRequest(page_token=token))
        yield from page.accounts
        token = page.next_page_token or None
