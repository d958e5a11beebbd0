"""The image, built once for all tests by the command that its users run."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

__all__ = ["base_of_image", "built_image", "missing"]

IMAGES = Path(__file__).resolve().parents[1] / "images"
IMAGE = "localhost/trimtab:dev"
LOCAL_BASE = "localhost/base:bookworm"


def missing(what: str) -> NoReturn:
    """Skips the test, or fails it where nothing may be missing."""
    if os.environ.get("TRIMTAB_TEST_NEEDS_CLUSTER"):
        pytest.fail(what)
    pytest.skip(what)


@functools.cache
def base_of_image() -> str:
    """TRIMTAB_TEST_BASE, or the local base, made where it is not there; the test is skipped without podman."""
    if not shutil.which("podman"):
        missing("podman is not installed")
    if Path("/sys/fs/cgroup/unified").exists():  # hybrid cgroups need other settings
        os.environ.setdefault("CONTAINERS_CONF", str(IMAGES / "containers.conf"))
    if named := os.environ.get("TRIMTAB_TEST_BASE"):
        return named
    if subprocess.run(["podman", "image", "exists", LOCAL_BASE]).returncode:
        if not shutil.which("mmdebstrap") or os.geteuid():
            missing("no base: set TRIMTAB_TEST_BASE, or run as root where mmdebstrap is installed")
        subprocess.run([IMAGES / "debian-base"], check=True)
    return LOCAL_BASE


@functools.cache
def built_image() -> str:
    """Name of the image, built from this tree; TRIMTAB_TEST_BUILD_ARGS are further arguments of `images/build`."""
    further = os.environ.get("TRIMTAB_TEST_BUILD_ARGS", "--host-sources" if _pip_has_own_sources() else "")
    command = [IMAGES / "build", "--engine", "podman", "--base", base_of_image(), *shlex.split(further)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    return IMAGE


def _pip_has_own_sources() -> bool:
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    return "find-links" in listed or "index-url" in listed
