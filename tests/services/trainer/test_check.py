"""The check of a spec is a process; it goes with the call that asked for it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from trimtab_services.trainer.launchers.check import check_spec


@pytest.mark.skipif(sys.platform != "linux", reason="children of a process are read from /proc")
def test_who_gives_up_leaves_no_process(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("preset: tiny\n")

    def checks() -> list[str]:
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        return [pid for pid in children if str(spec).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]

    async def work() -> None:
        check = asyncio.create_task(check_spec(spec, "--check-spec"))
        while not checks():
            await asyncio.sleep(0.01)
        check.cancel()
        with pytest.raises(asyncio.CancelledError):
            await check
        assert not checks()

    asyncio.run(work())
