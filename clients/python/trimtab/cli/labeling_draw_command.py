"""`trimtab labeling draw`: answers of generation services, as tasks of a project."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
from google.protobuf import json_format

from trimtab.cli.connect import client_of, connection_options
from trimtab.cli.labeling_draw import Contestant, Drawing, contestants_of, draw
from trimtab.cli.labeling_draw_journal import Journal, opened_journal
from trimtab.cli.labeling_few_shot import FewShot, read_few_shot
from trimtab.cli.labeling_import import add_tasks
from trimtab.cli.labeling_rows import TaskRow, read_tasks
from trimtab.client import Client
from trimtab.errors import ConfigError, DataError, TrimtabError
from trimtab.local import read_endpoints
from trimtab.types import SamplingParams
from trimtab.v1 import labeling_pb2 as pb

__all__ = ["draw_answers"]

_PATH = click.Path(path_type=Path)
_ANSWERS = {pb.TASK_KIND_RANK: (4, 9), pb.TASK_KIND_COMPARE: (2, 2)}
"""Least and most answers of a task, as the labeling service takes them."""


@click.command("draw")
@click.argument("project")
@click.option("--prompts", type=_PATH, required=True, help="JSON lines of prompts, `.gz` too.")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="HOST:PORT[@VERSION]",
    help="Generation service to draw from, and which version of it; may be repeated. Default: that of --dir.",
)
@click.option(
    "--few-shot",
    "few_shots",
    multiple=True,
    type=(str, _PATH),
    metavar="HOST:PORT[@VERSION] FILE",
    help="A base model as contestant: completes the text of FILE, the prompt in place of its {prompt} or at its end. "
    "Labelers see the plain prompt. May be repeated.",
)
@click.option(
    "--few-shot-stop",
    "stops",
    multiple=True,
    metavar="TEXT",
    help="Ends an answer of --few-shot, as the beginning of a next example would; may be repeated.",
)
@click.option("--temperature", "temperatures", multiple=True, type=float, help="May be repeated. Default: 1.")
@click.option("--answers", default=4, show_default=True, help="Answers to each prompt: 4 to 9 to rank, 2 to compare.")
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--max-new-tokens", default=256, show_default=True)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**64 - 1))
@click.option("--tries", default=3, show_default=True, type=click.IntRange(1), help="Most draws of one answer.")
@click.option("--out", type=_PATH, help="The tasks, as rows of `import`.  [default: PROJECT-drawn.jsonl]")
@connection_options
def draw_answers(
    project: str,
    prompts: Path,
    policies: tuple[str, ...],
    few_shots: tuple[tuple[str, Path], ...],
    stops: tuple[str, ...],
    temperatures: tuple[float, ...],
    answers: int,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    tries: int,
    out: Path | None,
    **connection: Any,
) -> None:
    """Draw answers to prompts from the generation service and add them to PROJECT, to be ranked or compared.

    Several policies and temperatures take turns. An answer that is empty or unusable, or that the prompt has already,
    is drawn again. After --tries draws a prompt with an empty or unusable answer is left out, and an answer that always
    came out equal stands twice; both are told. Answers are kept in OUT.drawing as they come:
    after an interruption the same command goes on where it stopped. OUT is written, and added to PROJECT, when all are
    there.
    """
    out = out or Path(f"{project}-drawn.jsonl")
    rows = _read_prompts(prompts, alone=bool(few_shots))
    sampling = SamplingParams(top_p=top_p, max_new_tokens=max_new_tokens)
    for temperature in temperatures or (1.0,):
        SamplingParams(temperature=temperature, stop_strings=stops)  # refuses what no service takes
    prefixes = [(policy, read_few_shot(file, stops)) for policy, file in few_shots]
    with ExitStack() as opened:

        def connect(target: str) -> Client:
            return opened.enter_context(client_of("generation", **{**connection, "target": target}))

        plain: list[tuple[str, FewShot | None]] = [(policy, None) for policy in policies]
        asked = [*plain, *prefixes] or [(_generation(connection["directory"]), None)]
        contestants = contestants_of(asked, temperatures or (1.0,), connect)
        _tell_of_twins(contestants)
        client = opened.enter_context(client_of("labeling", **connection))
        found = client.get_project(pb.GetProjectRequest(name=project)).project
        _check(found, contestants, answers=answers, max_new_tokens=max_new_tokens)  # before hours of drawing
        settings = _settings(project, prompts, contestants, sampling, answers=answers, seed=seed, tries=tries)
        path = _journal_path(out)
        journal = opened.enter_context(opened_journal(path, settings))
        with _told_when_interrupted(journal, path), _bar(answers * len(rows)) as bar:
            drawings = draw(
                [row.task for row in rows],
                contestants,
                journal,
                answers=answers,
                sampling=sampling,
                seed=seed,
                tries=tries,
                progress=bar.update,
            )
        complete = _complete(rows, drawings, prompts)
        _write(out, [row.task for row in complete])
        with _told_when_interrupted(journal, path):
            done = add_tasks(client, project, journal.import_id, complete, prompts)
        journal.remove()
    count = done.added_tasks + done.known_tasks
    click.echo(f"{count} tasks in {project}, {answers} answers each, from {len(contestants)} contestants")


def _read_prompts(prompts: Path, *, alone: bool) -> list[TaskRow]:
    """The prompts; `alone`: none of them a conversation, since a few-shot prefix is completed as one text."""
    rows = read_tasks(prompts, warn=_warn)
    for row in rows:
        place = f"{prompts}:{row.line}"
        if row.task.answers:
            raise DataError(f"{place}: answers: the row has answers already; import it", field="answers")
        if not row.task.prompt and not row.task.messages:
            raise DataError(f"{place}: prompt: must not be empty", field="prompt")
        if alone and (len(row.task.messages) > 1 or any(turn.role != "user" for turn in row.task.messages)):
            raise DataError(
                f"{place}: messages: {len(row.task.messages)} turns; --few-shot takes prompts of one turn, the user's",
                field="messages",
                value=len(row.task.messages),
                limit=1,
            )
    return rows


def _generation(directory: Path) -> str:
    replicas = read_endpoints(directory).get("generation", [])
    if not replicas:
        raise ConfigError(f"{directory}: no generation service runs there; give --policy", field="policy")
    return str(replicas[0]["grpc"])


def _check(project: pb.Project, contestants: Sequence[Contestant], *, answers: int, max_new_tokens: int) -> None:
    """Refuses what the project or a model can never take."""
    if project.kind not in _ANSWERS:
        raise ConfigError(
            f"PROJECT {project.name}: people write its answers; draw for one of kind rank or compare", field="project"
        )
    least, most = _ANSWERS[project.kind]
    if not least <= answers <= most:
        does = "rank" if project.kind == pb.TASK_KIND_RANK else "compare"
        allowed = str(least) if least == most else f"{least}..{most}"
        raise ConfigError(
            f"--answers {answers}: a task to {does} has {allowed}", field="answers", value=answers, limit=allowed
        )
    for one in contestants:
        longest = one.info.models[0].max_sequence_tokens if one.info.models else 0
        if 0 < longest <= max_new_tokens:
            raise ConfigError(
                f"--max-new-tokens {max_new_tokens}: {one.model} takes {longest} tokens, the prompt among them",
                field="max_new_tokens",
                value=max_new_tokens,
                limit=longest - 1,
            )


def _tell_of_twins(contestants: Sequence[Contestant]) -> None:
    """Warns of contestants whose answers nobody can tell apart afterwards."""
    seen: set[tuple[str, int | None, float]] = set()
    for one in contestants:
        served = one.info.models[0].served.version if one.info.models else 0
        key = (one.model, served if one.version is None else one.version, one.temperature)
        if key in seen:
            model, version, temperature = key
            _warn(f"two contestants are {model}, version {version}, temperature {temperature:g}: sources are alike")
        seen.add(key)


def _settings(
    project: str,
    prompts: Path,
    contestants: Sequence[Contestant],
    sampling: SamplingParams,
    **numbers: int,
) -> Mapping[str, Any]:
    """What decides what is drawn, as JSON; addresses of services are no part of it."""
    return {
        "project": project,
        "prompts": hashlib.sha256(prompts.read_bytes()).hexdigest(),
        "contestants": [
            [one.model, one.version, one.temperature, list(one.few_shot.stops) if one.few_shot else []]
            for one in contestants
        ],
        "sampling": sampling.model_dump(mode="json"),
        **numbers,
    }


def _journal_path(out: Path) -> Path:
    """Where answers are kept as they come; refuses an `out` of a drawing that has ended."""
    path = out.with_name(f"{out.name}.drawing")
    if out.exists() and not path.exists():
        raise ConfigError(
            f"out: {out} is there already and is not replaced; import it, or name another", field="out", value=out
        )
    return path


@contextmanager
def _told_when_interrupted(journal: Journal, path: Path) -> Iterator[None]:
    try:
        yield
    except (TrimtabError, KeyboardInterrupt):
        if journal.drawn:
            _warn(f"what was drawn is kept in {path}; the same command goes on from there")
        else:
            journal.remove()
        raise


def _bar(length: int) -> Any:
    return click.progressbar(length=length, label="answers", file=sys.stderr)


def _complete(rows: Sequence[TaskRow], drawings: Sequence[Drawing], prompts: Path) -> list[TaskRow]:
    """The rows that have all their answers; tells of the others, and of answers that stand twice."""
    complete = [row for row, drawing in zip(rows, drawings, strict=True) if drawing.is_complete]
    for row, drawing in zip(rows, drawings, strict=True):
        if not drawing.is_complete:
            _warn(f"{prompts}:{row.line}: an answer stayed empty or unusable; the prompt is left out")
        elif len(set(drawing.texts)) < len(drawing.slots):
            _warn(f"{prompts}:{row.line}: only {len(set(drawing.texts))} of {len(drawing.slots)} answers differ")
    if not complete:
        raise DataError(f"{prompts}: no prompt got all its answers", field="answers", value=0, limit="at least 1")
    return complete


def _write(out: Path, tasks: Sequence[pb.LabelTask]) -> None:
    """Writes the tasks as rows of `import`, whole or not at all."""
    partial = out.with_name(f"{out.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        for task in tasks:
            row = json_format.MessageToDict(task, preserving_proto_field_name=True)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(out)


def _warn(sentence: str) -> None:
    click.echo(f"warning: {sentence}", err=True)
