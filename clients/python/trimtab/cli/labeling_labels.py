"""`trimtab labeling export`, `agreement` and `audit`: what people have said, and who changed what."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from google.protobuf import json_format

from trimtab.cli.connect import client_of, connection_options
from trimtab.cli.labeling_choices import counted
from trimtab.cli.labeling_followed_file import FollowedFile
from trimtab.cli.rows import json_option, print_rows
from trimtab.client import Client
from trimtab.errors import ConfigError
from trimtab.v1 import labeling_pb2 as pb

__all__ = ["agreement", "audit", "export"]

_EXPORT_S = 600.0
_FOLLOW_S = 10 * 365 * 86400.0


@click.command()
@click.argument("project")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--group", "groups", multiple=True, help="Only labels of this group of labelers; may be repeated.")
@click.option("--after", type=click.IntRange(0), help="Only tasks finished after this sequence number.")
@click.option("--settled-only", is_flag=True, help="Leave out what can still be taken back (--undo-s of the project).")
@click.option("--include-unfinished", is_flag=True, help="Also tasks that want more labels.")
@click.option(
    "--include-unlabeled",
    is_flag=True,
    help="Also tasks without a label, and those of the qualification, with empty labels: to find their keys.",
)
@click.option("--include-withdrawn", is_flag=True, help="Also tasks that were withdrawn.")
@click.option(
    "--follow",
    is_flag=True,
    help="Go on with each task that is finished and can no longer be taken back.",
)
@connection_options
def export(
    project: str,
    file: Path,
    groups: tuple[str, ...],
    after: int | None,
    settled_only: bool,
    include_unfinished: bool,
    include_unlabeled: bool,
    include_withdrawn: bool,
    follow: bool,
    **connection: Any,
) -> None:
    """Write the labels of PROJECT to FILE (`-`: standard output) in the dataset format of its kind.

    A FILE that is there already is replaced once all rows have come, and left alone where no label has a --group; with
    --follow rows are added to it as they come, until Ctrl-C, and the same command goes on where it was stopped, as
    FILE.progress says.
    """
    for field, is_given in (("include_unfinished", include_unfinished), ("include_unlabeled", include_unlabeled)):
        if follow and is_given:
            raise ConfigError(f"{field}: not with --follow", field=field)
    request = pb.ExportLabelsRequest(
        project=project,
        after_sequence=after or 0,
        groups=groups,
        settled_only=settled_only,
        include_unfinished=include_unfinished,
        include_unlabeled=include_unlabeled,
        include_withdrawn=include_withdrawn,
        follow=follow,
    )
    with client_of("labeling", **connection) as client:
        timeout_s = _FOLLOW_S if follow else max(_EXPORT_S, client.timeout_s)
        found = client.get_project(pb.GetProjectRequest(name=project)).project  # before a file is made
        if follow and str(file) != "-":
            with FollowedFile(file, project, groups, after) as followed, _told(followed):
                request.after_sequence = followed.last
                _tell_of_undo(found)
                for response in _waits_told(client.export_labels(request, timeout_s=timeout_s)):
                    followed.add(response)
            return
        rows = _Counted(_waits_told(client.export_labels(request, timeout_s=timeout_s)), after or 0)
        if str(file) == "-":
            with _told(rows):
                if follow:
                    _tell_of_undo(found)
                for row in rows:
                    click.echo(row.row_json.encode())
            if not rows.count:
                _tell_of_unknown_groups(client, request)
            return
        partial = file.with_name(f"{file.name}.partial")
        with partial.open("w", encoding="utf-8") as opened:
            opened.writelines(f"{row.row_json}\n" for row in rows)
        if not rows.count and _tell_of_unknown_groups(client, request):
            partial.unlink()
            return
        partial.replace(file)
        file.with_name(f"{file.name}.progress").unlink(missing_ok=True)
        _tell(rows)
        _tell_of_held_out(found, rows)


class _Counted:
    """The rows of an export, without signs of life: how many were taken, and the last sequence number of these."""

    def __init__(self, responses: Iterable[pb.ExportLabelsResponse], last: int) -> None:
        self._responses = responses
        self.count, self.last = 0, last

    def __iter__(self) -> Iterator[pb.ExportLabelsResponse]:
        for response in self._responses:
            if response.row_json:
                yield response
                self.count, self.last = self.count + 1, max(self.last, response.sequence)


@contextmanager
def _told(rows: _Counted | FollowedFile) -> Iterator[None]:
    """Tells in the end how many rows have come; at an error only where some have."""
    tells = True
    try:
        yield
    except Exception:
        tells = rows.count > 0
        raise
    finally:
        if tells:
            _tell(rows)


def _tell(rows: _Counted | FollowedFile) -> None:
    click.echo(f"{counted(rows.count, 'row')}, the last of sequence {rows.last}", err=True)


def _waits_told(responses: Iterable[pb.ExportLabelsResponse]) -> Iterator[pb.ExportLabelsResponse]:
    """The responses; what their signs of life say of tasks that wait is told where it changes."""
    told = 0
    for response in responses:
        if not response.row_json and response.unsettled_tasks != told:
            told = response.unsettled_tasks
            if told:
                tasks = f"{told} finished tasks wait" if told > 1 else "1 finished task waits"
                click.echo(
                    f"{tasks} until {'their' if told > 1 else 'its'} labels can no longer be taken back", err=True
                )
        yield response


def _tell_of_held_out(project: pb.Project, rows: _Counted) -> None:
    progress = project.progress
    if not rows.count and progress.labels and progress.labels == progress.held_out_labels:
        click.echo(
            f"{'the 1 label is' if progress.labels == 1 else f'all {progress.labels} labels are'} of the group "
            f"{project.held_out_group}, which finishes no task: --include-unfinished exports "
            f"{'it' if progress.labels == 1 else 'them'}",
            err=True,
        )


def _tell_of_unknown_groups(client: Client, request: pb.ExportLabelsRequest) -> bool:
    """Whether no label has any of the groups asked for, while others are there; tells which."""
    if not request.groups:
        return False
    everything = pb.ExportLabelsRequest(project=request.project, include_unfinished=True, include_withdrawn=True)
    there: set[str] = set()
    for response in client.export_labels(everything, timeout_s=max(_EXPORT_S, client.timeout_s)):
        row = json.loads(response.row_json)
        there.update(label.get("group", "") for label in row.get("labels", (row,)))  # a demonstration is one label
    if not there or there & set(request.groups):
        return False
    asked = " or ".join(map(repr, request.groups))
    found = ", ".join(repr(group) for group in sorted(there))
    click.echo(f"warning: no label has group {asked}; groups are {found}: nothing is written", err=True)
    return True


def _tell_of_undo(project: pb.Project) -> None:
    if project.undo_ms:
        seconds = f"{project.undo_ms / 1000:g}"
        click.echo(f"a finished task comes when its labels can no longer be taken back, after {seconds} s", err=True)


@click.command()
@click.argument("project")
@json_option
@connection_options
def agreement(project: str, as_json: bool, **connection: Any) -> None:
    """How often labelers of PROJECT agree, with 95 % intervals."""
    with client_of("labeling", **connection) as client:
        found = client.get_agreement(pb.GetAgreementRequest(project=project))
    if as_json:
        told = json_format.MessageToDict(
            found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        click.echo(json.dumps(told))
        return
    click.echo(f"all pairs: {_share(found.agreement)}")
    labelers = [
        {
            "labeler": one.labeler,
            "group": one.group,
            "labels": one.labels,
            "skips": one.skips,
            "agrees": _share(one.agreement),
            "gold": _share(one.gold),
            "median s": f"{one.median_ms / 1000:.1f}",
        }
        for one in found.labelers
    ]
    print_rows(
        ("labeler", "group", "labels", "skips", "agrees", "gold", "median s"),
        ((row, row) for row in labelers),
        as_json=False,
    )
    pairs = [
        {"labelers": f"{one.labeler_a}, {one.labeler_b}", "agree": _share(one.agreement), "tau": f"{one.tau:.2f}"}
        for one in found.pairs
    ]
    print_rows(("labelers", "agree", "tau"), ((row, row) for row in pairs), as_json=False)


def _share(one: pb.Proportion) -> str:
    if not one.count:
        return "-"
    return f"{one.value:.1%} [{one.low:.1%}, {one.high:.1%}] of {one.count} pairs"


@click.command()
@click.option("--after", default=0, show_default=True, help="Only entries after this sequence number.")
@json_option
@connection_options
def audit(after: int, as_json: bool, **connection: Any) -> None:
    """Who changed what, oldest first."""
    with client_of("labeling", **connection) as client:
        rows = (_audit_row(event) for event in _all_events(client, after))
        keys = ("sequence", "time", "actor", "action", "subject", "detail")
        print_rows(keys, ((row, row | {"detail": json.dumps(row["detail"])}) for row in rows), as_json=as_json)


def _all_events(client: Client, after: int) -> Iterator[pb.AuditEvent]:
    while events := client.list_audit_events(pb.ListAuditEventsRequest(after_sequence=after, page_size=1000)).events:
        yield from events
        after = events[-1].sequence


def _audit_row(event: pb.AuditEvent) -> dict[str, Any]:
    return {
        "sequence": event.sequence,
        "time": event.time.ToJsonString(),
        "actor": event.actor,
        "action": event.action,
        "subject": event.subject,
        "detail": json.loads(event.detail_json or "{}"),
    }
