"""The file of `trimtab labeling export --follow`: stopped and called again, it goes on where its rows end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from trimtab.errors import ConfigError
from trimtab.v1 import labeling_pb2 as pb

__all__ = ["FollowedFile"]


class FollowedFile:
    """Rows as they come, and beside them in FILE.progress up to where they are of whole tasks.

    A task may have several rows, so it is known to be whole only once another one comes, or a sign of life. What stands
    behind that place is cut off when the file is opened again, and comes again.

    Args:
        path: of the rows.
        project: whose labels.
        groups: of labelers; the file goes on with the same ones only.
        after: sequence number to begin after; None for that of the progress, or 0 of a new file.

    Attributes:
        count: rows written here.
        last: sequence number of the last task written; at first the one to begin after.

    Raises:
        ConfigError: a file that is there without its progress and without `after`; with both of them; progress of
            another project or of other groups; a file that is shorter than its progress says.
    """

    def __init__(self, path: Path, project: str, groups: tuple[str, ...], after: int | None) -> None:
        self._progress = path.with_name(f"{path.name}.progress")
        self._whose = {"project": project, "groups": sorted(set(groups))}
        if self._progress.exists():
            self.last, whole = self._known(path, after)
        elif after is None and path.exists():
            raise ConfigError(
                f"FILE: {path} is there without {self._progress.name}; --after says where to go on", field="FILE"
            )
        else:
            self.last, whole = after or 0, path.stat().st_size if path.exists() else 0
        self.count = 0
        self._file = path.open("ab")
        self._file.seek(whole)
        self._file.truncate()
        self._keep(self.last)

    def __enter__(self) -> FollowedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, response: pb.ExportLabelsResponse) -> None:
        """Takes a row, or a sign of life."""
        if not response.row_json or response.sequence > self.last:
            self._keep(self.last)
        if response.row_json:
            self._file.write(response.row_json.encode() + b"\n")
            self._file.flush()
            self.count, self.last = self.count + 1, response.sequence

    def _keep(self, sequence: int) -> None:
        """All that is written is of tasks up to this one."""
        partial = self._progress.with_name(f"{self._progress.name}.partial")
        partial.write_text(json.dumps({**self._whose, "sequence": sequence, "bytes": self._file.tell()}) + "\n")
        partial.replace(self._progress)

    def _known(self, path: Path, after: int | None) -> tuple[int, int]:
        """Sequence number and bytes of the whole tasks."""
        known = json.loads(self._progress.read_text())
        if after is not None:
            raise ConfigError(
                f"after: {after}: {path} goes on after {known['sequence']}, as {self._progress.name} says",
                field="after",
                value=after,
            )
        for name, asked in self._whose.items():
            if known[name] != asked:
                text = f"{name}: asked for {_in_words(asked)}, but {path} has rows of {_in_words(known[name])}"
                raise ConfigError(f"{text}; name another file", field=name, value=str(asked))
        size = path.stat().st_size if path.exists() else 0
        if size < known["bytes"]:
            raise ConfigError(
                f"FILE: {path} has {size} bytes and {self._progress.name} knows of {known['bytes']}; "
                "without both files the export begins anew",
                field="FILE",
                value=size,
                limit=known["bytes"],
            )
        return known["sequence"], known["bytes"]


def _in_words(whose: Sequence[str]) -> str:
    """A project, or groups of labelers; none are all of them."""
    return whose if isinstance(whose, str) else ", ".join(whose) or "all groups"
