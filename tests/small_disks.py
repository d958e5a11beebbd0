"""A disk of a few MiB that a test can fill: a tmpfs, where this machine lets us mount one."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["SmallDisk", "small_disk"]

_CHUNK = 4096


class SmallDisk:
    """A mounted folder.

    Args:
        folder: where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, *, leave_bytes: int = 0) -> None:
        """Leaves so many bytes free, to the page."""
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while file.write(bytes(_CHUNK)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
            file.truncate(max(0, file.tell() - leave_bytes))

    def make_space(self) -> None:
        """Takes away what `fill` wrote."""
        self._ballast.unlink()


@contextmanager
def small_disk(folder: Path, *, mebibytes: int) -> Iterator[SmallDisk]:
    """Mounts an empty disk on a new folder; skips the test where that is not permitted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("a full disk needs `mount`, which is not installed")
    if mounted.returncode:
        pytest.skip(f"a full disk needs a mount of its own: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
