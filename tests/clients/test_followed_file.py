from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.cli.labeling_followed_file import FollowedFile
from trimtab.errors import ConfigError
from trimtab.v1 import labeling_pb2 as pb

ROWS = [(1, "a"), (2, "b1"), (2, "b2"), (3, "c")]


def feed(path: Path, rows: list[tuple[int, str]], after: int | None = None, groups: tuple[str, ...] = ()) -> int:
    """Writes rows as the service sends them, those up to where the file goes on left out; returns that number."""
    with FollowedFile(path, "p", groups, after) as followed:
        start = followed.last
        for sequence, text in rows:
            if sequence > start:
                followed.add(pb.ExportLabelsResponse(row_json=f'"{text}"', sequence=sequence))
    return start


@pytest.mark.parametrize("stop", range(len(ROWS) + 1))
def test_a_file_goes_on_where_it_was_stopped_with_every_row_once(tmp_path: Path, stop: int) -> None:
    path = tmp_path / "rows.jsonl"
    assert feed(path, ROWS[:stop]) == 0
    with path.open("a") as torn:
        torn.write('"half of a ro')  # as a kill leaves it
    feed(path, ROWS)
    assert path.read_text().split() == ['"a"', '"b1"', '"b2"', '"c"']


def test_a_sign_of_life_says_that_the_last_task_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with FollowedFile(path, "p", (), None) as followed:
        for sequence, text in ROWS[:3]:
            followed.add(pb.ExportLabelsResponse(row_json=f'"{text}"', sequence=sequence))
        followed.add(pb.ExportLabelsResponse())
        assert (followed.count, followed.last) == (3, 2)
    assert feed(path, ROWS) == 2
    assert path.read_text().split() == ['"a"', '"b1"', '"b2"', '"c"']


def test_a_file_without_its_progress_or_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('"a"\n')
    with pytest.raises(ConfigError, match=r"rows\.jsonl is there without rows\.jsonl\.progress; --after"):
        feed(path, ROWS)
    assert feed(path, ROWS, after=1) == 1
    with pytest.raises(ConfigError, match="after: 1: .* goes on after 2"):
        feed(path, ROWS, after=1)
    with pytest.raises(ConfigError, match="groups: asked for own, but .* has rows of all groups"):
        feed(path, ROWS, groups=("own",))
    with pytest.raises(ConfigError, match="project: asked for q, but "):
        FollowedFile(path, "q", (), None)
    path.write_text("")
    with pytest.raises(ConfigError, match=r"has 0 bytes and rows\.jsonl\.progress knows of"):
        feed(path, ROWS)
