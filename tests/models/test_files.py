"""What is said to be on disk has been flushed: every file, and every folder that lists one."""

import os
from pathlib import Path

import pytest

from trimtab_models.files import sync_folder


def test_a_folder_is_flushed_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "model" / "templates"
    inner.mkdir(parents=True)
    for file in (tmp_path / "model" / "config.json", inner / "chat.jinja"):
        file.write_text("x")
    flushed: list[Path] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        fsync(descriptor)
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    monkeypatch.setattr(os, "fsync", record)
    sync_folder(tmp_path / "model")
    assert set(flushed) == {tmp_path / "model", *(tmp_path / "model").rglob("*")}
    assert flushed[-1] == tmp_path / "model"
