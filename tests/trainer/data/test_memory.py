"""A file a hundred times as large needs no more memory: peak resident set of `trimtab data` over two sizes."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

SMALL_ROWS, TIMES = 100, 100
ALLOWED_MIB = 24
"""What the page caches of the databases may add, 8 MiB each, of which two fill at most, and what Python keeps."""

PEAK = """
import sys
from trimtab.cli import main
try:
    main()
finally:
    status = open("/proc/self/status").read()
    print("PEAK", status.split("VmHWM:")[1].split()[0], file=sys.stderr)
"""


def peak_mib(*arguments: object) -> float:
    command = [sys.executable, "-c", PEAK, "data", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.rpartition("PEAK ")[2]) / 1024


def rankings(count: int) -> Iterator[dict[str, Any]]:
    """Rows of about 3 kB, all different."""
    draw = random.Random(0)
    words = [f"word{number}" for number in range(5000)]
    for number in range(count):
        texts = [" ".join(draw.choices(words, k=110)) for _ in range(4)]
        labels = [{"labeler": name, "ranking": [[place] for place in draw.sample(range(3), 3)]} for name in "xy"]
        yield {"prompt": f"{number} {texts[0]}", "answers": texts[1:], "labels": labels, "user": f"u{number % 997}"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sizes")
    small, large = folder / "small.jsonl", folder / "large.jsonl"
    for file, count in ((small, SMALL_ROWS), (large, SMALL_ROWS * TIMES)):
        with file.open("w") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in rankings(count))
    assert large.stat().st_size > 25 * 2**20
    return small, large


COMMANDS = {
    "check": (),
    "stats": (),
    "clean": ("--personal-data", "ignore"),
    "split": (),
    "import": (),
    "export": (),
}


def packed(file: Path, to: Path) -> Path:
    with file.open("rb") as rows, gzip.open(to, "wb", compresslevel=1) as written:
        shutil.copyfileobj(rows, written)
    return to


def columnar(file: Path, to: Path) -> Path:
    """Groups of 100 rows, as many as the small file has."""
    with file.open() as lines:
        table = pyarrow.Table.from_pylist(list(map(json.loads, lines)))
    pyarrow.parquet.write_table(table, to, row_group_size=SMALL_ROWS)
    return to


def trees(file: Path, to: Path) -> Path:
    """Each row as an OpenAssistant tree, its answers ranked as they stand."""
    with file.open() as rows, to.open("w") as lines:
        for row in map(json.loads, rows):
            replies = [{"role": "assistant", "text": text, "rank": rank} for rank, text in enumerate(row["answers"])]
            prompt = {"message_id": row["prompt"][:9], "role": "prompter", "text": row["prompt"], "replies": replies}
            lines.write(json.dumps({"prompt": prompt}) + "\n")
    return to


FORMS = {
    "rows.jsonl.gz": (packed, ("check", "rankings")),
    "rows.parquet": (columnar, ("check", "rankings")),
    "trees.jsonl": (trees, ("import", "openassistant", "rankings")),
    "card.jsonl": (shutil.copy, ("card", "rankings")),
}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("name", FORMS)
def test_peak_does_not_grow_with_a_file_of_another_form(name: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    convert, (command, *arguments) = FORMS[name]
    more = {"card": ("--name", "ours"), "import": (), "check": ()}[command]

    def run(file: Path) -> float:
        (folder := tmp_path / file.stem).mkdir()
        output = () if command == "check" else ("--output", folder / "out")
        return peak_mib(command, *arguments, convert(file, folder / name), *output, *more)

    small, large = map(run, files)
    assert large - small < ALLOWED_MIB, f"{small:.0f} MiB, then {large:.0f} MiB"


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("name", COMMANDS)
def test_peak_does_not_grow_with_the_file(name: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    def run(file: Path) -> float:
        where = ("--dir", tmp_path / file.stem) if name == "split" else ("--output", tmp_path / file.name)
        target = () if name in ("check", "stats") else where
        source = ("trl",) if name == "export" else ()
        if name == "import":
            pairs = file.with_suffix(".trl.jsonl")
            with file.open() as rows, pairs.open("w") as lines:
                for row in map(json.loads, rows):
                    pair = {"prompt": row["prompt"], "chosen": row["answers"][0], "rejected": row["answers"][1]}
                    lines.write(json.dumps(pair) + "\n")
            file, source = pairs, ("trl",)
        return peak_mib(name, *source, "rankings", file, *target, *COMMANDS[name])

    small, large = map(run, files)
    assert large - small < ALLOWED_MIB, f"{small:.0f} MiB, then {large:.0f} MiB"


def test_the_personal_data_search_holds_one_row(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Of a part of the rows, which the search takes its time for."""
    part = tmp_path / "part.jsonl"
    with files[1].open() as lines, part.open("w") as some:
        some.writelines(line for _, line in zip(range(SMALL_ROWS * 20), lines, strict=False))
    small, large = (
        peak_mib("clean", "rankings", file, "--output", tmp_path / f"{file.stem}.out") for file in (files[0], part)
    )
    assert large - small < ALLOWED_MIB, f"{small:.0f} MiB, then {large:.0f} MiB"
