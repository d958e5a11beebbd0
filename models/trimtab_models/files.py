"""What must survive a power cut: flushing to disk, and folders that appear whole, in one place."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trimtab.errors import ConfigError

__all__ = ["appearing_whole", "new_model_folder", "sync", "sync_folder"]


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


@contextmanager
def appearing_whole(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `folder` once the block has ended and all is on disk.

    One of that name is replaced; when the block fails it stays as it is.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    suffix = f"{folder.name}-{uuid.uuid4().hex[:8]}"
    partial, old = folder.with_name(f".partial-{suffix}"), folder.with_name(f".old-{suffix}")
    try:
        partial.mkdir()
        yield partial
        sync_folder(partial)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        sync(folder.parent)
    finally:
        for left_over in (partial, old):
            shutil.rmtree(left_over, ignore_errors=True)


@contextmanager
def new_model_folder(folder: Path) -> Iterator[Path]:
    """As `appearing_whole`, in a place that somebody named.

    Args:
        folder: a new or empty one, or a model folder, which is replaced.

    Raises:
        ConfigError: it is a file, or a folder that holds something else than a model.
    """
    is_model = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    if folder.exists() and not is_model and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder}: is there already and is no model folder; nothing in it is touched. Name a new folder",
            field="folder",
            value=folder,
        )
    with appearing_whole(folder) as partial:
        yield partial
