"""Digests of files, and of folders by what is in them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from trimtab_trainer.digests import content_digest


def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"a row")
    assert content_digest(file) == hashlib.sha256(b"a row").hexdigest()
    with pytest.raises(FileNotFoundError):
        content_digest(tmp_path / "none")


def test_a_folder_has_that_of_its_names_and_contents(tmp_path: Path) -> None:
    def folder(name: str, files: dict[str, str]) -> Path:
        for file, text in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / name

    files = {"data.arrow": "1", "part/info.json": "2"}
    found = content_digest(folder("one", files))
    assert found == content_digest(folder("moved", dict(reversed(files.items()))))
    for other in (
        {**files, "data.arrow": "3"},
        {"data.arrow": "2", "part/info.json": "1"},
        {"data.arrow": "1", "part/other.json": "2"},
        {**files, "more": ""},
    ):
        assert content_digest(folder(f"other-{len(list(tmp_path.iterdir()))}", other)) != found
