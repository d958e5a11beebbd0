"""`trimtab data clean` and `split` over whole files."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import ConfigError, DataError
from trimtab_trainer.data.cleaning import Cleaning, CleaningRules, clean
from trimtab_trainer.data.user_split import UserSplit, split_by_user


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def cleaned(tmp_path: Path) -> Callable[..., tuple[Cleaning, list[dict[str, Any]], list[dict[str, Any]]]]:
    def cleaned(rows: list[dict[str, Any]], kind: str = "prompts", skip: int = 0, **rules: Any):
        file = write(tmp_path / "rows.jsonl", rows)
        output, report = tmp_path / "clean.jsonl", tmp_path / "report.jsonl"
        told: list[str] = []
        done = clean(kind, file, output, report, CleaningRules(**rules), skip_bad_rows=skip, warn=told.append)
        return done, lines(output), lines(report) if report.exists() else []

    return cleaned


ROWS = [
    {"prompt": "Who are you?", "user": "a", "n": 1},
    {"prompt": "Mail jane@example.org and 8.8.8.8", "user": "jane@example.org", "n": 2},
    {"prompt": "who  ARE you?", "user": "b", "n": 3},
    {"prompt": "Who am I?", "user": "a", "n": 4},
    {"prompt": "Who is she?", "user": "a", "n": 5},
]


class TestClean:
    def test_rows_with_personal_data_are_dropped(self, cleaned) -> None:
        done, kept, report = cleaned(ROWS, prompts_per_user=2)
        assert [row["n"] for row in kept] == [1, 4] and kept[0] == ROWS[0]
        assert (done.read, done.kept, done.personal_data, done.duplicates, done.over_user_limit) == (5, 2, 1, 1, 1)
        assert done.findings == {"email": 1, "ip": 1} and done.rows_with_personal_data == 1
        head, *found = report
        assert head["detected"] == ["email", "iban", "card", "ip", "phone"] and "names" in head["not_detected"]
        assert [(one["line"], one["field"], one["kind"], one["row"]) for one in found] == [
            (2, "prompt", "email", "personal_data"),
            (2, "prompt", "ip", "personal_data"),
        ]
        assert found[0]["file"].endswith("rows.jsonl")
        assert found[0]["excerpt"] == "Mail xxxx@xxxxxxx.xxx and 0.0.0.0" and "jane" not in json.dumps(report)

    def test_masked(self, cleaned) -> None:
        done, kept, report = cleaned(ROWS, personal_data="mask")
        assert [row["n"] for row in kept] == [1, 2, 4, 5]
        assert kept[1] == {"prompt": "Mail [EMAIL] and [IP]", "user": "jane@example.org", "n": 2}
        assert {one["row"] for one in report[1:]} == {"masked"} and done.personal_data == 0

    def test_reported(self, cleaned) -> None:
        _, kept, report = cleaned(ROWS, personal_data="report")
        assert kept == [ROWS[0], ROWS[1], ROWS[3], ROWS[4]]
        assert {one["row"] for one in report[1:]} == {"written"}

    def test_ignored(self, cleaned) -> None:
        done, kept, report = cleaned(ROWS, personal_data="ignore", prefix_characters=0)
        assert kept == ROWS and report == [] and done.findings == {}

    def test_a_masked_row_may_become_a_duplicate(self, cleaned) -> None:
        rows = [{"prompt": f"Mail {name}@example.org", "user": "u"} for name in ("jane", "john")]
        done, kept, report = cleaned(rows, personal_data="mask")
        assert done.duplicates == 1 and kept == [{"prompt": "Mail [EMAIL]", "user": "u"}]
        assert [one["row"] for one in report[1:]] == ["masked", "duplicates"]

    def test_every_text_of_a_row_is_searched(self, cleaned) -> None:
        ranking = {"prompt": "p", "answers": ["a", "b 8.8.8.8"], "ranks": [1, 2], "user": "u"}
        other = {
            "messages": [{"role": "user", "content": "8.8.8.8"}],
            "answers": ["a", "b"],
            "ranks": [1, 2],
            "user": "u",
        }
        _, kept, report = cleaned([ranking, other], kind="rankings", personal_data="mask")
        assert kept[0]["answers"] == ["a", "b [IP]"] and kept[1]["messages"][0]["content"] == "[IP]"
        assert [one["field"] for one in report[1:]] == ["answers[1]", "messages[0].content"]

    def test_a_user_is_needed_only_for_the_limit(self, cleaned) -> None:
        with pytest.raises(DataError, match="rows.jsonl:1: user is missing"):
            cleaned([{"prompt": "a"}])
        _, kept, _ = cleaned([{"prompt": "a"}], prompts_per_user=0)
        assert kept == [{"prompt": "a"}]

    def test_bad_rows(self, cleaned, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="rows.jsonl:2: prompt is missing"):
            cleaned([ROWS[0], {"text": "a", "user": "u"}])
        assert os.listdir(tmp_path) == ["rows.jsonl"]
        done, _, _ = cleaned([ROWS[0], {"text": "a", "user": "u"}], skip=1)
        assert (done.read, done.kept) == (1, 1)

    def test_nothing_left_is_an_error(self, cleaned, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="the rules keep none of its 1 rows"):
            cleaned([ROWS[1]])
        assert os.listdir(tmp_path) == ["rows.jsonl"]

    def test_tables_are_read(self, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        table = datasets.Dataset.from_list(ROWS)
        table.to_parquet(tmp_path / "rows.parquet")
        table.save_to_disk(tmp_path / "saved")
        for name in ("rows.parquet", "saved"):
            output = tmp_path / f"{name}.jsonl.gz"
            done = clean("prompts", tmp_path / name, output, tmp_path / f"{name}.report", CleaningRules(), warn=print)
            assert done.kept == 3 and json.loads(gzip.decompress(output.read_bytes()).splitlines()[0]) == ROWS[0]


@pytest.fixture
def split(tmp_path: Path) -> Callable[..., tuple[UserSplit, dict[str, list[dict[str, Any]]]]]:
    def split(rows: list[dict[str, Any]], name: str = "split", **options: Any):
        given = {"valid": 0.2, "test": 0.2, "seed": 0, "warn": print, **options}
        made = split_by_user("prompts", write(tmp_path / f"{name}.jsonl", rows), tmp_path / name, **given)
        return made, {side: lines(found.file) for side, found in made.sides.items()}

    return split


class TestSplit:
    rows = [{"prompt": f"prompt {number}", "user": f"user {number % 60}"} for number in range(300)]

    def test_a_user_is_on_one_side(self, split) -> None:
        made, sides = split(self.rows)
        users = {side: {row["user"] for row in found} for side, found in sides.items()}
        assert not users["train"] & users["valid"] | users["train"] & users["test"] | users["valid"] & users["test"]
        assert sum(map(len, users.values())) == 60 and sum(map(len, sides.values())) == 300
        assert {name: (side.rows, side.users) for name, side in made.sides.items()} == {
            name: (len(sides[name]), len(users[name])) for name in sides
        }
        for found in sides.values():
            assert found == [row for row in self.rows if row in found]  # in the order of the file
        assert made.shared_prompts == 0

    def test_rows_that_are_added_move_nobody(self, split) -> None:
        _, before = split(self.rows)
        added = [{"prompt": f"new {number}", "user": f"user {number}"} for number in range(100)]
        _, after = split([*added[:50], *self.rows, *added[50:]], "more")
        for name, found in before.items():
            assert found == [row for row in after[name] if row["prompt"].startswith("prompt")]

    def test_another_seed_is_another_split(self, split) -> None:
        assert split(self.rows)[1]["test"] != split(self.rows, "other", seed=1)[1]["test"]

    def test_prompts_on_two_sides_are_counted(self, split) -> None:
        made, _ = split([{"prompt": text, "user": f"{n}"} for n in range(40) for text in ("all have it", f"own {n}")])
        assert made.shared_prompts == 1

    def test_sides_without_a_share_have_no_file(self, split, tmp_path: Path) -> None:
        split(self.rows, valid=0, compress=False)
        assert sorted(os.listdir(tmp_path / "split")) == ["test.jsonl", "train.jsonl"]

    def test_an_empty_side_is_an_error(self, split, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="seed 0 puts none of the 1 users of"):
            split([{"prompt": "a", "user": "u"}])
        assert os.listdir(tmp_path / "split") == []

    @pytest.mark.parametrize(("valid", "test"), [(-0.1, 0.1), (0.5, 0.5), (0.6, 0.6)])
    def test_shares(self, split, valid: float, test: float) -> None:
        with pytest.raises(ConfigError, match="allowed: each at least 0, below 1 together"):
            split(self.rows, valid=valid, test=test)
