"""Dataset files: encodings, broken files, bad rows counted and told, and the real files."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from real_data import real
from trimtab.errors import ConfigError, DataError
from trimtab_trainer.data import PromptRow, read_demonstrations, read_pretraining, read_prompts, read_rankings
from trimtab_trainer.data.check import describe_dataset, find_leaks
from trimtab_trainer.data.records import PromptText

GOOD = b'{"prompt": "a"}\n'


def prompts(path: Path, content: bytes, **options) -> list[PromptText]:
    path.write_bytes(content)
    return [row.prompt for row in read_prompts(path, **options)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": "a"}\n{"prompt": "b"}\n',
        b'{"prompt": "a"}\n{"prompt": "b"}',
        b'{"prompt": "a"}\r\n{"prompt": "b"}\r\n',
        b'\xef\xbb\xbf{"prompt": "a"}\n{"prompt": "b"}\n',
        b'\n  \n{"prompt": "a"}\n\n\r\n{"prompt": "b"}\n\n',
        b'\xef\xbb\xbf\n{"prompt": "a"}\n{"prompt": "b"}\n',
    ],
    ids=["plain", "no last newline", "CRLF", "BOM", "blank lines", "BOM on a blank line"],
)
def test_line_ends_and_marks(path: Path, content: bytes) -> None:
    assert prompts(path, content) == ["a", "b"]


def test_unicode_line_separators_are_text(path: Path) -> None:
    text = "one\u2028two\u0085three é 🙂"
    assert prompts(path, json.dumps({"prompt": text}, ensure_ascii=False).encode()) == [text]
    assert prompts(path, json.dumps({"prompt": text}).encode()) == [text]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not a JSON object"),
        (b'{"prompt": "a"} x', "not a JSON object"),
        (b"[1]", "a JSON object is expected, found list"),
        (b'"a"', "a JSON object is expected, found str"),
        (b"null", "a JSON object is expected, found NoneType"),
        (b'{"prompt": "\xff"}', "not UTF-8 at byte 12"),
        (b'{"prompt": "\\ud800"}', "prompt has half a surrogate pair"),
        (b'{"prompt": "\x01"}', "not a JSON object"),
        (b"[" * 200_000, "not a JSON object"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "not a JSON object"),
        (b'{"text": "a"}', "prompt is missing"),
    ],
    ids=lambda value: value[:12].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_bad_line_names_file_line_and_reason(path: Path, line: bytes, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        prompts(path, GOOD + b"\n" + line + b"\n" + GOOD)
    assert caught.value.message.startswith(f"{path}:3: {reason}")
    told: list[str] = []
    assert prompts(path, GOOD + b"\n" + line + b"\n" + GOOD, skip_bad_rows=1, warn=told.append) == ["a", "a"]
    assert len(told) == 1 and told[0].startswith(f"{path}:3: {reason}") and told[0].endswith("the row is left out")


def test_a_line_without_end_is_a_bad_row_and_not_held(path: Path) -> None:
    content = GOOD + b'{"prompt": "' + b"a" * (65 * 2**20) + b'"}\n' + GOOD
    with pytest.raises(DataError, match=":2: the line is too long; allowed: at most 64 MiB"):
        prompts(path, content)
    assert prompts(path, content, skip_bad_rows=1, warn=lambda text: None) == ["a", "a"]


def test_bad_rows_are_counted_and_each_is_told(path: Path) -> None:
    content = b'{"prompt": ""}\n' + GOOD + b"oops\n" + GOOD + b'{"prompt": 1}\n'
    told: list[str] = []
    assert prompts(path, content, skip_bad_rows=3, warn=told.append) == ["a", "a"]
    assert [text.split(":")[1] for text in told] == ["1", "3", "5"]
    told.clear()
    with pytest.raises(DataError, match=":5: prompt must be a text.*; 2 bad rows are tolerated"):
        prompts(path, content, skip_bad_rows=2, warn=told.append)
    assert len(told) == 2


def test_no_rows(path: Path) -> None:
    for content in (b"", b"\n\n"):
        with pytest.raises(DataError, match="has no rows"):
            prompts(path, content)
    with pytest.raises(DataError, match="has no rows"):
        prompts(path, b"oops", skip_bad_rows=1)


def test_no_file(path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_prompts(path)


class TestGzip:
    def test_read(self, tmp_path: Path) -> None:
        assert prompts(tmp_path / "rows.jsonl.gz", gzip.compress(GOOD) + gzip.compress(GOOD)) == ["a", "a"]

    def test_truncated_at_every_byte(self, tmp_path: Path) -> None:
        whole = gzip.compress(GOOD * 3)
        for end in range(1, len(whole)):
            with pytest.raises(DataError):
                prompts(tmp_path / "rows.jsonl.gz", whole[:end])

    def test_damaged_at_every_byte(self, tmp_path: Path) -> None:
        """Never another error, and never other rows: the checksum sees to it."""
        whole = gzip.compress(b"".join(b'{"prompt": "%d"}\n' % n for n in range(40)), mtime=0)
        expected = [str(n) for n in range(40)]
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 0x55
            try:
                assert prompts(tmp_path / "rows.jsonl.gz", bytes(damaged)) == expected
            except DataError:
                pass

    def test_no_gzip_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot be read"):
            prompts(tmp_path / "rows.jsonl.gz", GOOD)


def test_damaged_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    with pytest.raises(DataError, match="cannot be read"):
        prompts(tmp_path / "rows.parquet", b"PAR1 no")


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": "p", "answers": ["a", "b"], "ranks": [2, 1]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read_rankings(tmp_path / "rows.parquet")[0].labelings[0].ranks == (1, 0)


def test_parquet_that_mixes_forms(tmp_path: Path) -> None:
    """In a table every row has every column, null where its form has none."""
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"prompt": "p", "answers": ["a", "b"], "ranks": [2, 1], "chosen": None, "rejected": None, "completions": None},
        {"prompt": "q", "answers": None, "ranks": None, "chosen": "yes", "rejected": "no", "completions": None},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert [row.labelings[0].ranks for row in read_rankings(tmp_path / "rows.parquet")] == [(1, 0), (0, 1)]


def test_parquet_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table([["a"], ["b"]], names=["prompt", "prompt"]), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="rows.parquet: cannot be read: the column 'prompt' is there twice"):
        read_prompts(tmp_path / "rows.parquet")


def test_parquet_with_checksums_damaged_at_every_byte(tmp_path: Path) -> None:
    """Never another error, and never other texts."""
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "rows.parquet"
    expected = [f"prompt {number}" for number in range(30)]
    parquet.write_table(pyarrow.table({"prompt": expected}), file, write_page_checksum=True)
    whole = file.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")  # has no checksum
    for position in range(footer):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        try:
            assert prompts(file, bytes(damaged)) == expected
        except DataError:
            pass


def test_damaged_saved_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="saved datasets need the library datasets")
    datasets.Dataset.from_list([{"prompt": "a"}]).save_to_disk(tmp_path / "saved")
    for name in ("dataset_info.json", "state.json", "data-00000-of-00001.arrow"):
        file = tmp_path / "saved" / name
        whole = file.read_bytes()
        for content in (b"", whole[: len(whole) // 2], b"[]", b"junk"):
            file.write_bytes(content)
            with pytest.raises(DataError, match="cannot be read"):
                read_prompts(tmp_path / "saved")
        file.write_bytes(whole)
    assert [row.prompt for row in read_prompts(tmp_path / "saved")] == ["a"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "empty")


def test_a_saved_dataset_with_splits_asks_for_one(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="saved datasets need the library datasets")
    rows = datasets.Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}])
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ConfigError, match="it has the splits test, train; name the folder of one"):
        read_prompts(tmp_path / "saved")
    assert [row.prompt for row in read_prompts(tmp_path / "saved" / "train")] == ["a", "b"]


@pytest.mark.parametrize(
    "line", [b'{"prompt": "a", "prompt": "b"}', b'{"messages": [{"role": "user", "role": "user", "content": "a"}]}']
)
def test_a_key_that_is_there_twice_is_refused(path: Path, line: bytes) -> None:
    with pytest.raises(DataError, match="rows.jsonl:1: not a JSON object: the key '(prompt|role)' is there twice"):
        prompts(path, line)


def test_rows_left_out_are_logged_where_nobody_takes_the_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert prompts(path, GOOD + b"oops\n", skip_bad_rows=1) == ["a"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "rows.jsonl:2" in caplog.text and "the row is left out" in caplog.text


LINES = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.text(max_size=20).map(lambda text: text.encode("utf-8", "replace")),
        st.sampled_from([b'{"prompt": "', b'{"messages": [', b'{"answers": ["a", "b"], "ranks": [', b"\xef\xbb\xbf{}"]),
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, suffix=st.sampled_from([".jsonl", ".jsonl.gz"]), skip=st.integers(0, 10))
def test_arbitrary_bytes_raise_nothing_but_data_errors(tmp_path: Path, lines, suffix: str, skip: int) -> None:
    file = tmp_path / f"fuzz{suffix}"
    file.write_bytes(b"\n".join(lines))
    for read in (read_prompts, read_demonstrations, read_rankings, read_pretraining):
        told: list[str] = []
        try:
            rows = read(file, skip_bad_rows=skip, warn=told.append)
        except DataError as error:
            assert str(file) in error.message
        else:
            assert rows and len(told) <= skip


def test_describe(path: Path) -> None:
    rows = [
        {"prompt": "p", "answers": ["a", "bb", "c"], "labels": [{"ranking": [[0, 1], [2]], "group": "train"}]},
        {"prompt": "p", "answers": ["a", "b"], "ranks": [1, 2]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\noops\n")
    told: list[str] = []
    found = describe_dataset(read_rankings(path, skip_bad_rows=1, warn=told.append))
    assert (found["rows"], len(told), found["different_prompts"]) == (2, 1, 1)
    assert (found["decided_pairs"], found["tied_pairs"], found["labelings"]) == (3, 1, 2)
    assert found["answers_per_prompt"] == {2: 1, 3: 1} and found["groups"] == {"train": 1, "none": 1}


def test_doubles_and_contradictions_are_counted(path: Path) -> None:
    rows = [
        {"prompt": "p", "answers": ["a", "a", "b"], "ranks": [1, 2, 3], "category": "qa"},
        {"prompt": "q", "answers": ["a", "b"], "ranks": [1, 1]},
        {"prompt": "q", "answers": ["a", "b"], "ranks": [1, 1]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = describe_dataset(read_rankings(path))
    assert (found["repeated_rows"], found["wholly_tied_labelings"], found["categories"]) == (1, 2, {"qa": 1})
    assert (found["equal_answers"], found["equal_answers_ranked_apart"]) == (1, 1)


def test_prompts_that_two_files_share(tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_text("\n".join(json.dumps({"prompt": text}) for text in ("Why?", "Who?", "Who?", "new", "?!")))
    turns = [{"messages": [{"role": "user", "content": "Why?"}]}, {"prompt": "who"}, {"prompt": "..."}]
    other.write_text("\n".join(json.dumps({**row, "completion": "x"}) for row in turns))
    leaks = find_leaks(read_prompts(one), read_demonstrations(other))
    assert (leaks.prompts, leaks.similar_prompts, leaks.rows, leaks.other_rows) == (1, 2, 3, 2)

    command = [sys.executable, "-m", "trimtab", "data", "check", "prompts", str(one), "--against", "demonstrations"]
    told = subprocess.run([*command, str(other), "--json"], capture_output=True, text=True, timeout=60)
    assert told.returncode == 1, told.stderr
    assert json.loads(told.stdout)["shared"][str(other)]["prompts"] == 1
    same = subprocess.run([*command[:-1], "prompts", str(one)], capture_output=True, text=True, timeout=60)
    assert same.returncode == 1, same.stderr
    assert f"prompts shared with {one}: 4 equal, 3 alike" in same.stdout
    assert f"in 5 rows of {one} and 5 of the other" in same.stdout
    other.write_text('{"prompt": "else", "completion": "x"}')
    clean = subprocess.run([*command, str(other)], capture_output=True, text=True, timeout=60)
    assert clean.returncode == 0 and "0 equal" in clean.stdout, clean.stderr


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("What is  a\nROBOT?", "what is a robot", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("snake_case", "snake case", True),
        ("cafe", "caf\u00e9", False),
        ("2 + 2?", "2+2", True),
        ("2+2", "2 - 2", False),
        ("1.5 m", "15 m", False),
    ],
)
def test_prompts_that_are_alike(one: str, other: str, alike: bool) -> None:
    leaks = find_leaks([PromptRow(one)], [PromptRow(other)])
    assert (leaks.prompts, leaks.similar_prompts, leaks.rows, leaks.other_rows) == (0, alike, alike, alike)


REAL = [
    ("comparisons.jsonl.gz", read_rankings),
    ("rankings.jsonl.gz", read_rankings),
    ("demonstrations.jsonl.gz", read_demonstrations),
    ("prompts.jsonl.gz", read_prompts),
    ("pretrain.jsonl.gz", read_pretraining),
]


@pytest.mark.parametrize(("name", "read"), REAL, ids=[name for name, _ in REAL])
def test_real_files_have_no_bad_row(name: str, read) -> None:
    file = real(name)
    rows = read(file)
    with gzip.open(file, "rb") as lines:
        assert len(rows) == sum(1 for line in lines if line.strip())
