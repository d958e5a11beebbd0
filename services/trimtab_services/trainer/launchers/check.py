"""Checking a spec before anything is launched: the trainer does it, in a process of its own on this machine."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from trimtab.errors import InvalidRequest

__all__ = ["check_spec", "run_command"]

_CHECK_TIMEOUT_S = 60.0


def run_command(spec_file: Path, *options: str) -> list[str]:
    """`trimtab run` of a spec on this machine."""
    return [sys.executable, "-m", "trimtab", "run", str(spec_file), *options]


async def check_spec(spec_file: Path, *options: str) -> None:
    """Has the trainer check a spec, without starting anything.

    Args:
        spec_file: YAML.
        options: of `trimtab run`; --check --offline where the run will work on this machine, so that the files which
            the spec names have to be here, else --check-spec. The run itself waits for services.

    Raises:
        InvalidRequest: the spec is wrong; the message names key, value and what is allowed.
    """
    process = await asyncio.create_subprocess_exec(
        *run_command(spec_file, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            _, stderr = await process.communicate()
    except TimeoutError:
        raise InvalidRequest(
            f"spec_yaml: checking it took longer than {_CHECK_TIMEOUT_S:.0f} s", field="spec_yaml"
        ) from None
    finally:
        if process.returncode is None:  # too slow, or whoever asked has gone
            process.kill()
            await process.wait()
    if process.returncode:
        text = stderr.decode(errors="replace").strip().removeprefix("error: ").replace(f"{spec_file}: ", "")
        raise InvalidRequest(f"spec_yaml: {text}", field="spec_yaml")
