"""New files are whole or not there, and nothing that is there is replaced."""

from __future__ import annotations

import gzip
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from trimtab.errors import ConfigError, DataError
from trimtab_trainer.data.writers import json_line, new_files


def test_all_files_appear_together(tmp_path: Path) -> None:
    one, other = tmp_path / "new" / "one.jsonl", tmp_path / "other.jsonl.gz"
    with new_files(one, other) as (first, second):
        first.write(b"a\n")
        second.write(b"b\n")
        assert not one.exists() and not other.exists()
    assert one.read_bytes() == b"a\n" and gzip.decompress(other.read_bytes()) == b"b\n"
    assert sorted(os.listdir(tmp_path)) == ["new", "other.jsonl.gz"] and os.listdir(tmp_path / "new") == ["one.jsonl"]


def test_nothing_is_left_of_an_interrupted_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_files(tmp_path / "one.jsonl", tmp_path / "other.jsonl") as (first, _):
        first.write(b"a\n" * 100_000)
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_nothing_is_replaced(tmp_path: Path) -> None:
    there = tmp_path / "there.jsonl"
    there.write_bytes(b"precious\n")
    with pytest.raises(ConfigError, match="there.jsonl: it is there already"), new_files(tmp_path / "new", there):
        pytest.fail("the block must not run")
    assert there.read_bytes() == b"precious\n" and os.listdir(tmp_path) == ["there.jsonl"]
    with pytest.raises(ConfigError, match="named twice"), new_files(tmp_path / "new", tmp_path / "new"):
        pytest.fail("the block must not run")


def test_the_same_rows_compress_to_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.gz", "other.gz"):
        with new_files(tmp_path / name) as (file,):
            file.write(b"a\n" * 1000)
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "other.gz").read_bytes()


@pytest.mark.parametrize(
    "value", [b"bytes", float("nan"), datetime(2024, 1, 1, tzinfo=UTC), "\ud800"], ids=["bytes", "nan", "date", "half"]
)
def test_what_json_has_not_is_refused(value: object) -> None:
    with pytest.raises(DataError, match="cannot be written as JSON"):
        json_line({"a": value})


def test_a_row_nested_too_deeply_is_refused() -> None:
    row: dict[str, object] = {}
    for _ in range(5_000):
        row = {"replies": [row]}
    with pytest.raises(DataError, match="cannot be written as JSON"):
        json_line(row)


def test_text_stays_text() -> None:
    assert json_line({"a": "é🙂\u2028"}) == '{"a": "é🙂\u2028"}\n'.encode()
