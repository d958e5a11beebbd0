"""SHA-256 digests of what was read, for records that say exactly what it was."""

from __future__ import annotations

import hashlib
from pathlib import Path

from trimtab.weights.transfer import file_digest

__all__ = ["content_digest"]


def content_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, or of a folder: of its files' paths within it and their digests, in order.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    if not path.is_dir():
        return file_digest(path)
    files = {one.relative_to(path).as_posix(): one for one in path.rglob("*") if one.is_file()}
    lines = (f"{name}\0{file_digest(files[name])}\n" for name in sorted(files))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
