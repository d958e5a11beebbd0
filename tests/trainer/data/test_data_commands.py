"""`trimtab data` as it is typed: from a public file to a clean split with its card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trimtab_trainer.data import read_rankings


def trimtab(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trimtab", "data", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    prompts = [f"{number} what is the answer?" for number in range(60)]
    rows = [{"prompt": text, "user": f"u{number % 20}", "category": "open_qa"} for number, text in enumerate(prompts)]
    rows.append({"prompt": "Mail jane@example.org | now", "user": "u1", "category": "generation"})
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"prompt": "\xff'.encode().decode("latin-1") + "\n"
    )
    return path


def test_from_rows_to_a_split_with_its_card(file: Path, tmp_path: Path) -> None:
    cleaned, report = tmp_path / "clean.jsonl", tmp_path / "clean.jsonl.personal-data.jsonl"
    done = trimtab("clean", "prompts", file, "--output", cleaned, "--skip-bad-rows", 1, "--json")
    found = json.loads(done.stdout)
    assert (found["read"], found["kept"], found["personal_data"], found["bad_rows"]) == (61, 60, 1, 1)
    assert found["findings"] == {"email": 1} and "names" in found["not_detected"]
    assert f"{file}:62: not a JSON object" in done.stderr
    assert len(report.read_text().splitlines()) == 2 and "jane" not in report.read_text()
    (tmp_path / "cleaning.json").write_text(done.stdout)

    folder = tmp_path / "split"
    made = json.loads(trimtab("split", "prompts", cleaned, "--dir", folder, "--valid", 0.3, "--gzip", "--json").stdout)
    assert sum(side["rows"] for side in made["sides"].values()) == 60 and made["shared_prompts"] == 0
    names = ["test.jsonl.gz", "train.jsonl.gz", "valid.jsonl.gz"]
    assert sorted(os.listdir(folder)) == names

    card = folder / "README.md"
    options = [
        "--name",
        "Some prompts",
        "--license",
        "mit",
        "--language",
        "en",
        "--cleaning",
        tmp_path / "cleaning.json",
    ]
    trimtab("card", "prompts", *(folder / name for name in names), "--output", card, *options)
    _, head, body = card.read_text().split("---\n", 2)
    told = yaml.safe_load(head)
    assert (told["pretty_name"], told["license"], told["language"]) == ("Some prompts", "mit", ["en"])
    assert told["size_categories"] == "n<1K" and "prompts" in told["tags"]
    splits = {one["split"]: one["path"] for one in told["configs"][0]["data_files"]}
    assert splits == {"test": names[0], "train": names[1], "validation": names[2]}
    for part in ("# Some prompts", "| Open QA |", "## Figures of validation", "| found: email | 1 |", "names; postal"):
        assert part in body, part
    rows = {name: side["rows"] for name, side in made["sides"].items()}
    assert f"| validation | valid.jsonl.gz | {rows['valid']} |" in body


def test_the_card_loads_as_a_dataset(file: Path, tmp_path: Path) -> None:
    """The head names the files as the library datasets expects it."""
    datasets = pytest.importorskip("datasets")
    file.write_text("\n".join(file.read_text(errors="replace").splitlines()[:60]) + "\n")
    (tmp_path / "set").mkdir()
    file.rename(tmp_path / "set" / "rows.jsonl")
    trimtab(
        "card", "prompts", tmp_path / "set" / "rows.jsonl", "--output", tmp_path / "set" / "README.md", "--name", "x"
    )
    loaded = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert {name: split.num_rows for name, split in loaded.items()} == {"train": 60}


def test_figures_and_conversions(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{n}", "answers": ["a", "bb"], "labels": [{"labeler": who, "ranking": [[0], [1]]} for who in "xy"]}
        for n in range(6)
    ]
    file = tmp_path / "rankings.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = trimtab("stats", "rankings", file).stdout
    assert "Lengths in characters" in told and "100.0 % to 100.0 %" in told
    figures = json.loads(trimtab("stats", "rankings", file, "--json").stdout)
    assert figures["agreement"][0]["decisions"] == 6 and figures["categories"] == []
    pairs = tmp_path / "pairs.jsonl"
    assert "written                     12" in trimtab("export", "trl", "rankings", file, "--output", pairs).stdout
    again = tmp_path / "again.jsonl"
    trimtab("import", "trl", "rankings", pairs, "--output", again, "--source", "mine")
    assert len(read_rankings(again)) == 12 and read_rankings(again)[0].source == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("clean", "prompts", "FILE", "--output", "FILE"), "it is there already"),
        (("clean", "prompts", "FILE", "--output", "NEW"), "rows.jsonl:62: not a JSON object"),
        (("clean", "prompts", "FILE", "--output", "NEW", "--phone-region", "XY"), "phone_region is 'XY'"),
        (("clean", "prompts", "FILE", "--output", "NEW", "--per-user", "-1"), "per_user is -1; allowed: at least 0"),
        (("clean", "prompts", "NOWHERE", "--output", "NEW"), "no such file"),
        (("split", "prompts", "FILE", "--dir", "NEW", "--user-field", "org"), "--without-user by-prompt takes each"),
        (("split", "prompts", "FILE", "--dir", "NEW", "--valid", "0.9"), "allowed: each at least 0, below 1 together"),
        (("import", "hh-rlhf", "prompts", "FILE", "--output", "NEW"), "kind is prompts; hh-rlhf has rankings"),
        (("stats", "prompts", "FILE", "--tokenizer", "NOWHERE"), "no such folder"),
        (
            ("card", "prompts", "FILE", "--name", "x", "--output", "NEW", "--cleaning", "FILE"),
            "allowed: the JSON object",
        ),
        (("card", "prompts", "FILE", "FILE", "--name", "x", "--output", "NEW"), "are both split rows"),
    ],
)
def test_refused_in_one_line(file: Path, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    places = {"FILE": file, "NEW": tmp_path / "new", "NOWHERE": tmp_path / "nowhere"}
    done = trimtab(*(places.get(one, one) for one in arguments), code=2)
    assert words in done.stderr.replace("\n", " "), done.stderr
    assert sum(1 for _ in tmp_path.rglob("*") if _.is_file()) == 1
