"""`trimtab labeling`: projects, tasks, accounts and labels of the labeling service."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TextIO

import click
from google.protobuf import json_format

from trimtab.cli.connect import client_of, connection_options
from trimtab.cli.labeling_accounts import accounts
from trimtab.cli.labeling_choices import KINDS, STATES, counted, word_of
from trimtab.cli.labeling_draw_command import draw_answers
from trimtab.cli.labeling_import import add_tasks
from trimtab.cli.labeling_labels import agreement, audit, export
from trimtab.cli.labeling_listing import all_projects
from trimtab.cli.labeling_rows import read_tasks
from trimtab.cli.rows import json_option, limit_option, print_rows
from trimtab.errors import ConfigError, DataError
from trimtab.v1 import labeling_pb2 as pb

__all__ = ["labeling"]

_DAY_S = 86_400


@click.group(commands=[accounts, agreement, audit, draw_answers, export])
def labeling() -> None:
    """Projects, tasks, accounts and labels; people label in the browser, at the service's HTTP address."""


_instructions = click.option(
    "--instructions", type=click.Path(path_type=Path), help="Markdown file that labelers read before they begin."
)
_qualification = click.option(
    "--qualification-pass", type=float, help="Least share of pairs as the gold answers have them, 0 to 1."
)

_held_out_group = click.option(
    "--held-out-group",
    help="Group of labelers whose labels stand beside the overlap. An empty text: none, all count alike. Default of a "
    "new project: heldout.",
)
_held_out_overlap = click.option(
    "--held-out-overlap", type=int, help="Most labels of that group that a task gets. 0, the default: any number."
)


@labeling.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(list(KINDS)), required=True, help="What labelers do.")
@_instructions
@click.option("--overlap", default=1, show_default=True, help="Labels that a task wants, each of another labeler.")
@click.option("--lease-s", default=1800.0, show_default=True, help="Seconds that a task stays with a silent labeler.")
@click.option("--undo-s", default=600.0, show_default=True, help="Seconds in which the last label can be taken back.")
@_qualification
@_held_out_group
@_held_out_overlap
@click.option("--ratings/--no-ratings", default=None, help="Whether answers are rated 1-7. Default: where ranked.")
@connection_options
def create(
    name: str,
    kind: str,
    instructions: Path | None,
    overlap: int,
    lease_s: float,
    undo_s: float,
    qualification_pass: float | None,
    held_out_group: str | None,
    held_out_overlap: int | None,
    ratings: bool | None,
    **connection: Any,
) -> None:
    """Make the project NAME."""
    if overlap == 0:  # which would be the default of the service
        raise ConfigError("overlap: 0; allowed: 1..100", field="overlap", value=0, limit="1..100")
    project = pb.Project(
        name=name,
        kind=KINDS[kind],
        instructions=_text(instructions),
        overlap=overlap,
        lease_ms=_milliseconds("--lease-s", lease_s, least=1),
        undo_ms=_milliseconds("--undo-s", undo_s, least=0),
        qualification_pass=qualification_pass or 0.0,
        held_out_group=held_out_group,
        held_out_overlap=held_out_overlap or 0,
        wants_ratings=kind == "rank" if ratings is None else ratings,
    )
    with client_of("labeling", **connection) as client:
        made = client.create_project(pb.CreateProjectRequest(project=project)).project
    click.echo(f"project {made.name}: {kind}, {counted(made.overlap, 'label')} a task")


@labeling.command()
@click.argument("name")
@_instructions
@click.option("--overlap", type=int, help="Labels that a task wants.")
@click.option("--lease-s", type=float, help="Seconds that a task stays with a silent labeler.")
@click.option("--undo-s", type=float, help="Seconds in which the last label can be taken back.")
@_qualification
@_held_out_group
@_held_out_overlap
@click.option(
    "--state",
    type=click.Choice(list(STATES)),
    help="closed: no task is given out; archived: no labeler sees the project in the list, either.",
)
@connection_options
def update(
    name: str,
    instructions: Path | None,
    overlap: int | None,
    lease_s: float | None,
    undo_s: float | None,
    qualification_pass: float | None,
    held_out_group: str | None,
    held_out_overlap: int | None,
    state: str | None,
    **connection: Any,
) -> None:
    """Change the project NAME; what is not given stays."""
    request = pb.UpdateProjectRequest(
        name=name,
        instructions=_text(instructions) if instructions is not None else None,
        overlap=overlap,
        lease_ms=_milliseconds("--lease-s", lease_s, least=1) if lease_s is not None else None,
        undo_ms=_milliseconds("--undo-s", undo_s, least=0) if undo_s is not None else None,
        qualification_pass=qualification_pass,
        held_out_group=held_out_group,
        held_out_overlap=held_out_overlap,
        state=STATES[state] if state is not None else pb.PROJECT_STATE_UNSPECIFIED,
    )
    if request == pb.UpdateProjectRequest(name=name):
        raise click.UsageError("nothing to change: give an option")
    with client_of("labeling", **connection) as client:
        client.update_project(request)
    click.echo(f"project {name} is changed")


@labeling.command("list")
@limit_option
@json_option
@connection_options
def list_projects(limit: int | None, as_json: bool, **connection: Any) -> None:
    """The projects and how far they are."""
    keys = ("name", "kind", "state", "tasks", "finished", "labels", "held out", "in work")
    with client_of("labeling", **connection) as client:
        rows = ((_row(one), _row_for_people(one)) for one in all_projects(client))
        print_rows(keys, rows, as_json=as_json, limit=limit)


def _row(one: pb.Project) -> dict[str, Any]:
    row: dict[str, Any] = json_format.MessageToDict(
        one, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return row


def _row_for_people(one: pb.Project) -> dict[str, Any]:
    return {
        "name": one.name,
        "kind": word_of(KINDS, one.kind),
        "state": word_of(STATES, one.state),
        "tasks": one.progress.tasks,
        "finished": one.progress.finished_tasks,
        "labels": one.progress.labels,
        "held out": one.progress.held_out_labels,
        "in work": one.progress.leased_tasks,
    }


@labeling.command("import")
@click.argument("project")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--import-id", default="", help="Name of the import, which is added once. Default: the digest.")
@connection_options
def import_file(project: str, file: Path, import_id: str, **connection: Any) -> None:
    """Add those tasks of FILE to PROJECT that it has not yet, all or none: JSON lines, `.gz` too.

    A row has `prompt` or `messages`, `answers` where they are ranked or compared, and optionally `task_key`, `context`,
    `category`, `user`, `overlap`, `sources` and, for a qualification task, `gold_ranking`.
    """
    rows = read_tasks(file, warn=_warn)
    import_id = import_id or hashlib.sha256(file.read_bytes()).hexdigest()
    with client_of("labeling", **connection) as client:
        before = client.get_project(pb.GetProjectRequest(name=project)).project
        done = add_tasks(client, project, import_id, rows, file)
        after = client.get_project(pb.GetProjectRequest(name=project)).project
    click.echo(_imported(done, project))
    if done.withdrawn_tasks:
        click.echo(
            f"{done.withdrawn_tasks} of them {'is' if done.withdrawn_tasks == 1 else 'are'} withdrawn and not given "
            f"out: `trimtab labeling withdraw {project} TASK_KEY... --restore` puts them back",
            err=True,
        )
    new_gold = after.progress.qualification_tasks - before.progress.qualification_tasks
    if new_gold > 0 and (before.progress.qualification_tasks or before.progress.labels):
        click.echo(
            f"{counted(new_gold, 'qualification task')} more: who has passed the qualification does "
            f"{'it' if new_gold == 1 else 'them'}, too, before other tasks",
            err=True,
        )
    if after.state != pb.PROJECT_STATE_OPEN:
        click.echo(
            f"{project} is {word_of(STATES, after.state)} and gives out no task: `trimtab labeling update {project} "
            "--state open` goes on",
            err=True,
        )


def _imported(done: pb.ImportTasksResponse, project: str) -> str:
    count = done.added_tasks + done.known_tasks
    if done.was_added_before:
        return f"nothing new: this import of {counted(count, 'task')} was added to {project} before"
    if not done.added_tasks:
        all_of_them = "the task" if count == 1 else f"all {count} tasks"
        return f"nothing new: {project} has {all_of_them} already, with the same content"
    were = "was" if done.known_tasks == 1 else "were"
    also = f"; {done.known_tasks} {were} there already, with the same content" if done.known_tasks else ""
    return f"{counted(done.added_tasks, 'task')} added to {project}{also}"


@labeling.command()
@click.argument("project")
@click.argument("keys", metavar="TASK_KEY...", nargs=-1)
@click.option("--keys-file", type=click.File(encoding="utf-8"), help="File with a key on each line; `-` reads them.")
@click.option("--restore", is_flag=True, help="Put the tasks back, with their labels.")
@connection_options
def withdraw(project: str, keys: tuple[str, ...], keys_file: TextIO | None, restore: bool, **connection: Any) -> None:
    """Take tasks out of PROJECT: they are not given out, counted or exported any more. Nothing is deleted."""
    named = [*keys, *((line.rstrip("\r\n") for line in keys_file) if keys_file is not None else ())]
    request = pb.WithdrawTasksRequest(project=project, task_keys=dict.fromkeys(filter(None, named)), restore=restore)
    with client_of("labeling", **connection) as client:
        done = client.withdraw_tasks(request)
    where = f"{'put back into' if restore else 'withdrawn from'} {project}"
    tasks, labels = counted(len(request.task_keys), "task"), counted(done.labels, "label")
    they_have = "it has" if len(request.task_keys) == 1 else "they have"
    click.echo(f"{done.changed_tasks} of {tasks} {where}; {they_have} {labels}")


@labeling.command()
@click.argument("project")
@click.argument("name")
@connection_options
def requalify(project: str, name: str, **connection: Any) -> None:
    """Let the labeler NAME try the qualification of PROJECT again, with the same tasks.

    What it said of them goes to the audit.
    """
    with client_of("labeling", **connection) as client:
        done = client.reset_qualification(pb.ResetQualificationRequest(project=project, account=name)).reset_tasks
    again = f"{name} gets {counted(done, 'qualification task')} of {project} again"
    click.echo(again if done else f"{name} has done none yet")


def _milliseconds(option: str, seconds: float, *, least: int) -> int:
    if not least <= seconds <= _DAY_S:  # nor NaN
        raise ConfigError(
            f"{option} {seconds:.10g}: seconds, allowed: {least}..{_DAY_S}",
            field=option.lstrip("-").replace("-", "_"),
            value=seconds,
            limit=f"{least}..{_DAY_S}",
        )
    return round(1000 * seconds)


def _text(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}", field="instructions", value=file) from None


def _warn(sentence: str) -> None:
    click.echo(f"warning: {sentence}", err=True)
