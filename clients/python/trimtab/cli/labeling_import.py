"""Tasks into a project of the labeling service: all of an import, or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from trimtab.cli.labeling_rows import TaskRow, in_file
from trimtab.client import Client
from trimtab.errors import InvalidRequest
from trimtab.v1 import labeling_pb2 as pb

__all__ = ["add_tasks"]

_TASKS_A_MESSAGE = 200
_IMPORT_S = 600.0


def add_tasks(
    client: Client, project: str, import_id: str, rows: Sequence[TaskRow], file: Path
) -> pb.ImportTasksResponse:
    """Adds the tasks of a file that the project has not yet; an import that was added before is not added again.

    Args:
        client: of the labeling service.
        project: its name.
        import_id: name of the import, the same whenever it is sent again.
        rows: the tasks, each with its line.
        file: where these lines are.

    Returns:
        What the import did.

    Raises:
        DataError: names file, line and field of a task that the service refuses.
        TrimtabError: of the service.
    """

    def requests() -> Iterator[pb.ImportTasksRequest]:
        for start in range(0, len(rows), _TASKS_A_MESSAGE):
            tasks = [row.task for row in rows[start : start + _TASKS_A_MESSAGE]]
            yield pb.ImportTasksRequest(project=project, import_id=import_id, tasks=tasks)

    try:
        return client.import_tasks(requests(), timeout_s=max(_IMPORT_S, client.timeout_s))
    except InvalidRequest as error:
        raise in_file(error, file, rows) from None
