"""`trimtab data import` and `export`: files of a public format to ours and back, a row at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError, DataError
from trimtab_trainer.data.formats import hh_rlhf, openassistant, summarize_from_feedback, trl
from trimtab_trainer.data.readers import stream_rows
from trimtab_trainer.data.records import KINDS, Row
from trimtab_trainer.data.writers import json_line, new_files

__all__ = ["FORMATS", "Conversion", "Format", "export_file", "import_file"]


@dataclass(frozen=True)
class Format:
    """A public format.

    Attributes:
        kinds: that it can hold.
        read: rows of a kind in our form, from one row of it.
        write: its rows, from one record.
    """

    kinds: tuple[str, ...]
    read: Callable[[str, Mapping[str, Any]], Iterator[dict[str, Any]]]
    write: Callable[[Row], Iterator[dict[str, Any]]]


FORMATS = {
    "hh-rlhf": Format(("rankings",), hh_rlhf.read, hh_rlhf.write),
    "openassistant": Format(("rankings", "demonstrations", "prompts"), openassistant.read, openassistant.write),
    "summarize-from-feedback": Format(("rankings",), summarize_from_feedback.read, summarize_from_feedback.write),
    "trl": Format(("rankings", "demonstrations", "prompts", "pretraining"), trl.read, trl.write),
}


@dataclass
class Conversion:
    """What was converted.

    Attributes:
        read: good rows of the file.
        written: rows of the new one.
        without_rows: good rows of which no row came: a wholly tied ranking, a tree without ranked replies.
    """

    read: int = 0
    written: int = 0
    without_rows: int = 0


def import_file(
    name: str,
    kind: str,
    path: Path,
    output: Path,
    *,
    source: str = "",
    skip_bad_rows: int = 0,
    warn: Callable[[str], None],
) -> Conversion:
    """Writes a file of a public format in ours; every row is read back before it is written.

    Args:
        name: of the format; see `FORMATS`.
        kind: what to make of it.
        path: any file that the readers know.
        output: JSON lines, `.gz` compresses; must not be there.
        source: `source` of every row; "" keeps what the rows say.
        skip_bad_rows: bad rows tolerated.
        warn: takes one sentence for each of them.

    Raises:
        ConfigError: the format has no such kind, or `output` is there already.
        DataError: as `readers.stream_rows`, or nothing came of any row.
    """
    read = _format(name, kind).read

    def parse(row: Mapping[str, Any]) -> list[bytes]:
        made = [{**one, "source": source} if source else one for one in read(kind, row)]
        for one in made:
            KINDS[kind].from_row(one)
        return [json_line(one) for one in made]

    return _convert(path, output, parse, skip_bad_rows, warn)


def export_file(
    name: str, kind: str, path: Path, output: Path, *, skip_bad_rows: int = 0, warn: Callable[[str], None]
) -> Conversion:
    """Writes a file of ours in a public format; arguments and errors as `import_file`."""
    write = _format(name, kind).write
    from_row = KINDS[kind].from_row
    return _convert(path, output, lambda row: [json_line(one) for one in write(from_row(row))], skip_bad_rows, warn)


def _convert(
    path: Path,
    output: Path,
    parse: Callable[[Mapping[str, Any]], list[bytes]],
    skip_bad_rows: int,
    warn: Callable[[str], None],
) -> Conversion:
    done = Conversion()
    with new_files(output) as (file,):
        for _, lines in stream_rows(path, parse, skip_bad_rows=skip_bad_rows, warn=warn):
            done.read += 1
            done.written += len(lines)
            done.without_rows += not lines
            for line in lines:
                file.write(line)
        if not done.written:
            raise DataError(f"{path}: no row came of its {done.read} rows", field="rows", value=0, limit="at least 1")
    return done


def _format(name: str, kind: str) -> Format:
    found = FORMATS[name]
    if kind not in found.kinds:
        limit = ", ".join(found.kinds)
        raise ConfigError(f"kind is {kind}; {name} has {limit}", field="kind", value=kind, limit=limit)
    return found
