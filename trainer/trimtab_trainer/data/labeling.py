"""Labels of people as datasets of a run: projects of the labeling service, copied once into the run's folder.

    DIR/labels/PROJECT.jsonl   the rows, in the order in which their tasks were finished
    DIR/labels/PROJECT.json    what they are: kind, rows, tasks, last sequence number, SHA-256, from where and when

The copy is made when the run begins, of tasks that have all of their labels, none of which can be taken back any more.
A resumed run reads the same rows again, whatever people have labeled meanwhile; a new run gets what there is then. What
it would get now is asked before, by `count_labels`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from trimtab import Client
from trimtab.errors import (
    ConfigError,
    CorruptData,
    DataError,
    DeadlineExceeded,
    Overloaded,
    TrimtabError,
    Unavailable,
)
from trimtab.v1 import labeling_pb2 as pb
from trimtab_trainer.checkpoint import write_file_atomically
from trimtab_trainer.config import RunSpec, labeling_project
from trimtab_trainer.digests import content_digest
from trimtab_trainer.services_config import ServicesConfig

__all__ = ["copy_labels", "count_labels"]

T = TypeVar("T")

_KINDS_OF_KEY = {
    "demonstrations": ("demonstrate",),
    "rankings": ("rank", "compare"),
    "rankings_held_out": ("rank", "compare"),
}
_CALL_S, _COUNT_S, _EXPORT_S = 10.0, 10.0, 600.0
_BETWEEN_TRIES_S = 0.5


def copy_labels(spec: RunSpec, *, tell: Callable[[str], None], pause: Callable[[float], None] = time.sleep) -> None:
    """Copies every labeling project that a run names as a dataset, unless the run's folder has it already.

    Args:
        spec: of the run.
        tell: takes one sentence on each copy, and on whatever makes the run wait.
        pause: sleeps for some seconds between two tries, or raises to end the wait.

    Raises:
        ConfigError: there is no such project, it is of another kind than the dataset, or no service is named.
        DataError: the project has no finished label that is settled.
        CorruptData: the copy is not what was fetched.
        Unavailable: the service does not answer for `services.start_timeout_s`, or goes away for `services.patience_s`.
        TrimtabError: it refused the run, such as a token that lacks the scope.
    """
    for key, path in spec.data_paths():
        project = labeling_project(path)
        if project is None:
            continue
        copy = spec.path(path)
        if not _record_of(copy).exists():
            record = _labeling_of(spec, key, path, tell, pause).copy(project, copy)
            tell(f"{key} is a copy of {record['rows']} rows of labeling project {project}, sha256 {record['sha256']}")
        record = json.loads(_record_of(copy).read_text(encoding="utf-8"))
        _check_kind(key, project, record["kind"])
        if not copy.is_file() or content_digest(copy) != record["sha256"]:
            raise CorruptData(
                f"{key}: {copy} is not the copy that the run made, whose sha256 is {record['sha256']}; a new run in "
                "another folder makes a new one",
                field=key,
                value=copy,
                limit=record["sha256"],
            )


def count_labels(spec: RunSpec, *, tell: Callable[[str], None]) -> None:
    """Tells of every labeling project that a run names as a dataset how many rows a run that begins now would copy.

    No answer is waited for longer than `services.start_timeout_s`, and rows are counted for 10 s.

    Args:
        spec: of the run.
        tell: takes one sentence on each dataset, and on whatever makes the caller wait.

    Raises:
        TrimtabError: as `copy_labels`, but CorruptData.
    """
    for key, path in spec.data_paths():
        project = labeling_project(path)
        if project is None:
            continue
        record = _record_of(spec.path(path))
        if record.exists():
            rows = json.loads(record.read_text(encoding="utf-8"))["rows"]
            tell(f"{key}: {rows} rows of labeling project {project}, copied when the run began")
        else:
            tell(f"{key}: {_labeling_of(spec, key, path, tell, time.sleep).count(project)}")


def _labeling_of(
    spec: RunSpec, key: str, path: str, tell: Callable[[str], None], pause: Callable[[float], None]
) -> _Labeling:
    if spec.services is None or not spec.services.knows("labeling"):
        raise ConfigError(f"services.labeling: no addresses, but {key} is {path!r}", field="services.labeling")
    return _Labeling(spec.services, key, tell, pause)


class _Labeling:
    """The labeling service as one dataset of a run sees it.

    Args:
        config: where it is.
        key: of the dataset, for errors.
        tell, pause: as `copy_labels` has them.
    """

    def __init__(
        self, config: ServicesConfig, key: str, tell: Callable[[str], None], pause: Callable[[float], None]
    ) -> None:
        self._config = config
        self._key = key
        self._tell, self._pause = tell, pause
        self._told = False

    def copy(self, name: str, to: Path) -> dict[str, Any]:
        """Writes a project's rows and the record of them; returns the record."""
        project = self._project(name)
        rows = _Rows()
        source = self._patiently(
            lambda client: rows.take(client, name, timeout_s=_EXPORT_S),
            patience_s=self._config.patience_s,
            progress=lambda: rows.taken,
        )
        lines = rows.lines
        if not lines:
            raise _no_labels(self._key, project)
        write_file_atomically(to, "".join(f"{line}\n" for line in lines))
        record = {
            "project": name,
            "kind": _kind_of(project),
            "rows": len(lines),
            "tasks": len(rows.by_task),
            "last_sequence": rows.last,
            "sha256": content_digest(to),
            "service": source,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_file_atomically(_record_of(to), json.dumps(record, indent=1) + "\n")
        return record

    def count(self, name: str) -> str:
        """What `copy` would write now, in words; nothing is written."""
        project = self._project(name)
        rows = _Rows()

        def count(client: Client) -> bool:
            with suppress(DeadlineExceeded):
                rows.take(client, name, timeout_s=_COUNT_S)
                return True
            return False

        is_whole = self._patiently(count, patience_s=self._config.start_timeout_s)
        if is_whole and not rows.lines:
            raise _no_labels(self._key, project)
        counted = f"{len(rows.lines)} rows of {len(rows.by_task)} tasks"
        counted = counted if is_whole else f"more than {counted}; counting ended after {_COUNT_S:.0f} s"
        return f"labeling project {name}, of kind {_kind_of(project)}, has {counted}"

    def _project(self, name: str) -> pb.Project:
        """A project of a kind that the dataset may have."""
        project = self._patiently(
            lambda client: client.get_project(pb.GetProjectRequest(name=name), timeout_s=_CALL_S).project,
            patience_s=self._config.start_timeout_s,
        )
        _check_kind(self._key, name, _kind_of(project))
        return project

    def _patiently(
        self, call: Callable[[Client], T], *, patience_s: float, progress: Callable[[], int] = lambda: 0
    ) -> T:
        """Makes a call that is safe to repeat at one replica after another, while none of them answers.

        Args:
            call: what to ask.
            patience_s: how long without an answer, or without progress.
            progress: grows with what has come.
        """
        where = self._config.of("labeling")
        credentials = self._config.credentials("labeling")
        give_up, tries, seen = time.monotonic() + patience_s, 0, progress()
        with closing(where.resolver("labeling")) as resolver:
            while True:
                addresses = resolver.addresses()
                address = addresses[tries % len(addresses)] if addresses else ""
                try:
                    if not address:
                        raise Unavailable(
                            "no address of it is known; `trimtab up` starts it with replicas: {labeling: 1}"
                        )
                    with Client(address, **credentials) as client:
                        return call(client)
                except (Unavailable, DeadlineExceeded, Overloaded) as error:
                    reason = error.message
                except TrimtabError as error:
                    raise error.told(f"{self._key}: labeling at {address}: {error.message}") from None
                if progress() != seen:
                    give_up, seen = time.monotonic() + patience_s, progress()
                if time.monotonic() > give_up:
                    raise Unavailable(
                        f"{self._key}: the labeling service does not answer for {patience_s:g} s: {reason}",
                        field="services.labeling",
                    )
                if not self._told:
                    self._tell(f"waits for the labeling service: {reason}")
                    self._told = True
                tries += 1
                self._pause(_BETWEEN_TRIES_S)


class _Rows:
    """The rows of a project, as they come.

    Attributes:
        by_task: rows of each task, in the order in which the tasks were finished.
        last: sequence number of the last task.
        taken: responses so far, over all calls.
    """

    def __init__(self) -> None:
        self.by_task: dict[str, list[str]] = {}
        self.last = 0
        self.taken = 0

    @property
    def lines(self) -> list[str]:
        """All of them."""
        return [row for rows in self.by_task.values() for row in rows]

    def take(self, client: Client, project: str, *, timeout_s: float) -> str:
        """Takes all rows, or goes on with the task in whose rows another call was cut off; returns the address."""
        request = pb.ExportLabelsRequest(project=project, after_sequence=max(0, self.last - 1), settled_only=True)
        self.last, task_key = request.after_sequence, ""
        for response in client.export_labels(request, timeout_s=timeout_s):
            if response.task_key != task_key:  # one that comes again has got another label since
                self.by_task.pop(response.task_key, None)
                task_key = response.task_key
            self.by_task.setdefault(response.task_key, []).append(response.row_json)
            self.last = response.sequence
            self.taken += 1
        return client.target


def _record_of(copy: Path) -> Path:
    return copy.with_suffix(".json")


def _kind_of(project: pb.Project) -> str:
    return pb.TaskKind.Name(project.kind).removeprefix("TASK_KIND_").lower()


def _check_kind(key: str, project: str, kind: str) -> None:
    allowed = _KINDS_OF_KEY[key.rpartition(".")[2]]
    if kind not in allowed:
        raise ConfigError(
            f"{key}: labeling project {project} is of kind {kind}; allowed here: {' and '.join(allowed)}",
            field=key,
            value=kind,
            limit=" ".join(allowed),
        )


def _no_labels(key: str, project: pb.Project) -> DataError:
    finished, tasks = project.progress.finished_tasks, project.progress.tasks
    if finished:
        why = (
            f"the labels of its {finished} finished tasks can still be taken back, for up to "
            f"{project.undo_ms / 1000:g} s after each"
        )
    else:
        labels, held_out = project.progress.labels, project.progress.held_out_labels
        why = f"none of its {tasks} tasks has all of its labels; it has {labels} labels in all"
        if held_out:
            why += f", of which {held_out} of the group {project.held_out_group} finish no task"
    return DataError(
        f"{key}: labeling project {project.name} has no rows yet: {why}", field=key, value=project.name, limit="1 row"
    )
