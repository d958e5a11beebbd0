"""Runs of the miniature that begin with the models of another run, so that only one thing differs between them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

__all__ = ["SETTINGS", "models_of", "run"]

SETTINGS: dict[str, dict[str, Any]] = {
    "generation": {"slots": 128, "threads": 1},
    "reward": {"threads": 1},
    "reference": {"threads": 1},
}
"""Of the services."""


def run(spec: dict[str, Any], endpoints: Path) -> None:
    """Runs a spec to its end, or goes on with it; nothing where it has ended well."""
    directory = Path(spec["directory"])
    if (directory / "report.json").exists():
        return
    file = directory.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(spec, sort_keys=False))
    more = ["--resume"] if (directory / "state.json").exists() else []
    command = [sys.executable, "-m", "trimtab", "run", str(file), "--endpoints", str(endpoints), *more]
    subprocess.run(command, check=True, stdout=sys.stderr)


def models_of(directory: Path, *stages: str) -> list[str]:
    """Folders of what some stages of a run made."""
    results = json.loads((directory / "state.json").read_text())["results"]
    return [str(directory / results[stage]["model"]) for stage in stages]
