"""The image, built once for the tests of this room by the command that its users run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "images"
IMAGE = "localhost/trimtab:dev"
LOCAL_BASE = "localhost/base:bookworm"


@pytest.fixture(scope="session")
def podman_ready() -> None:
    """Podman, with the settings that hybrid cgroups need."""
    if not shutil.which("podman"):
        pytest.skip("podman is not installed")
    if Path("/sys/fs/cgroup/unified").exists():
        os.environ.setdefault("CONTAINERS_CONF", str(IMAGES / "containers.conf"))


@pytest.fixture(scope="session")
def base(podman_ready: None) -> str:
    """TRIMTAB_TEST_BASE, or the local base, made where it is not there."""
    named = os.environ.get("TRIMTAB_TEST_BASE")
    if named:
        return named
    if subprocess.run(["podman", "image", "exists", LOCAL_BASE]).returncode:
        if not shutil.which("mmdebstrap") or os.geteuid():
            pytest.skip("no base: set TRIMTAB_TEST_BASE, or run as root where mmdebstrap is installed")
        subprocess.run([IMAGES / "debian-base"], check=True)
    return LOCAL_BASE


@pytest.fixture(scope="session")
def image(base: str) -> str:
    """The name of the image, built from this tree; TRIMTAB_TEST_BUILD_ARGS are further arguments of `images/build`."""
    further = os.environ.get("TRIMTAB_TEST_BUILD_ARGS", "--host-sources" if _pip_has_own_sources() else "")
    built = subprocess.run(
        [IMAGES / "build", "--engine", "podman", "--base", base, *shlex.split(further)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return IMAGE


def _pip_has_own_sources() -> bool:
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    return "find-links" in listed or "index-url" in listed
