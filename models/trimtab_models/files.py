"""What must survive a power cut: flushing to disk, in one place."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync", "sync_folder"]


def sync(path: Path) -> None:
    """Flushes a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flushes everything in a folder, at any depth, and the folder itself, to disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)
