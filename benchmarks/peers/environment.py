"""A peer's own virtual environment: its packages do not fit with ours, and ours must not be changed by them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / ".environments"


def run_peer(script: str, requirements: list[str], arguments: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """Runs a script of this folder in an environment with some packages; made once, then reused.

    Args:
        script: file name; it gets `arguments` as one JSON text, and its last line of output is one JSON object.
        requirements: for pip, one list for each call of pip, in order; the first is torch, as a ready wheel.
        arguments: for the script.
        timeout_s: longest wait for the script; the set-up has 30 minutes.

    Returns:
        The object.
    """
    python = _environment(requirements)
    command = [str(python), str(Path(__file__).parent / script), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


@contextmanager
def peer_process(script: str, requirements: list[str], arguments: dict[str, Any]) -> Iterator[None]:
    """Runs a script of this folder for as long as the context lasts; arguments as in `run_peer`."""
    command = [str(_environment(requirements)), str(Path(__file__).parent / script), json.dumps(arguments)]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def _environment(requirements: list[str]) -> Path:
    name = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:12]
    folder = FOLDER / name
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return python
    print(f"setting up the peer's environment in {folder}: {'; '.join(requirements)}", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    for packages in requirements:
        subprocess.run([python, "-m", "pip", "install", "-q", *packages.split()], check=True, timeout=1800)
    (folder / "ready").touch()
    return python
