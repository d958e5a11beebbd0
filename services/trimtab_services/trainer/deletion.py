"""Deleting a run: what it has left on its launcher, then its folder, then all that is known of it.

In this order a deletion that breaks off can be asked for again, and goes on.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from trimtab.errors import FailedPrecondition
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.launchers import Launcher
from trimtab_services.trainer.records import RunRecords
from trimtab_services.trainer.run_rows import ENDED, RunRow
from trimtab_services.trainer.works import RunWorks

__all__ = ["delete_run", "remove_data"]


async def delete_run(name: str, records: RunRecords, works: RunWorks, launcher: Launcher) -> pb.DeleteRunResponse:
    """Deletes an ended run; nothing where there is none.

    Raises:
        FailedPrecondition: it has not ended, or the cluster refuses to remove what is its.
        Unavailable: the cluster does not answer.
    """
    await works.until_settled(name)
    async with works.locks.of(name):
        if not await records.ask(records.store.has_run, name):
            return pb.DeleteRunResponse()
        run = await records.ask(records.store.run, name)
        if run.state not in ENDED:
            state = pb.RunState.Name(run.state).removeprefix("RUN_STATE_")
            raise FailedPrecondition(
                f"name: run {name!r} is {state}; only one that has ended can be deleted: stop it first",
                field="name",
                value=name,
            )
        response = await remove_data(run, launcher)
        await records.ask(records.store.delete_run, name)
        records.tell(name)
        return response


async def remove_data(run: RunRow, launcher: Launcher) -> pb.DeleteRunResponse:
    """Removes what an ended run has left on its launcher, and its folder. The caller holds the lock of the run.

    Raises:
        TrimtabError: the cluster refuses it, or does not answer; the folder is still there then.
    """
    removed = await launcher.forget(run)
    freed = await asyncio.to_thread(_remove_folder, Path(run.directory))
    return pb.DeleteRunResponse(
        deleted=True, freed_bytes=freed, freed_claim_bytes=removed.claim_bytes, left=removed.left
    )


def _remove_folder(directory: Path) -> int:
    """Removes a folder where there is one; bytes that it took on its volume."""
    if not directory.exists():
        return 0
    sizes = {(status.st_dev, status.st_ino): status.st_blocks * 512 for status in _files(directory)}
    shutil.rmtree(directory)
    return sum(sizes.values())


def _files(directory: Path) -> Iterator[os.stat_result]:
    for folder, _, names in os.walk(directory):
        for name in names:
            yield os.lstat(os.path.join(folder, name))
