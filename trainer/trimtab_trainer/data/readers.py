"""Dataset files: JSON lines (`.jsonl`, `.gz` allowed), Parquet, and folders that the library `datasets` wrote.

A bad row is an error with file, line, field and reason. Up to `skip_bad_rows` of them are tolerated, each of them told;
nothing is ever left out silently. `stream_rows` holds one row at a time, whatever the size of the file; the `read_*` of
the stages hold all of them.
"""

from __future__ import annotations

import gzip
import importlib
import json
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from trimtab.errors import ConfigError, DataError
from trimtab_trainer.data.records import Demonstration, Passage, PromptRow, Ranking

__all__ = ["read_demonstrations", "read_pretraining", "read_prompts", "read_rankings", "stream_rows"]

Row = TypeVar("Row")

MOST_LINE_BYTES = 64 * 2**20
"""Of one row; a file without line ends would otherwise be read whole."""

_BOM = b"\xef\xbb\xbf"
_PARQUET_ROWS, _PARQUET_BUFFER_BYTES = 256, 2**20  # at a time, where a row group may be the whole file
_log = logging.getLogger(__name__)


def read_demonstrations(
    path: Path, *, skip_bad_rows: int = 0, warn: Callable[[str], None] = _log.warning
) -> list[Demonstration]:
    """Demonstrations of a file, in its order.

    Args:
        path: the file or folder.
        skip_bad_rows: bad rows tolerated.
        warn: takes one sentence for each of them; they are logged as warnings where nobody else takes them.

    Raises:
        ConfigError: no such file, or its format needs a library that is not installed.
        DataError: a bad row more than tolerated, or no row at all.
    """
    return _read(path, Demonstration.from_row, skip_bad_rows, warn)


def read_rankings(path: Path, *, skip_bad_rows: int = 0, warn: Callable[[str], None] = _log.warning) -> list[Ranking]:
    """Rankings of a file, in its order; arguments and errors as `read_demonstrations`."""
    return _read(path, Ranking.from_row, skip_bad_rows, warn)


def read_prompts(path: Path, *, skip_bad_rows: int = 0, warn: Callable[[str], None] = _log.warning) -> list[PromptRow]:
    """Prompts of a file, in its order; arguments and errors as `read_demonstrations`."""
    return _read(path, PromptRow.from_row, skip_bad_rows, warn)


def read_pretraining(
    path: Path, *, skip_bad_rows: int = 0, warn: Callable[[str], None] = _log.warning
) -> list[Passage]:
    """Pretraining passages of a file, in its order; arguments and errors as `read_demonstrations`."""
    return _read(path, Passage.from_row, skip_bad_rows, warn)


def stream_rows(
    path: Path,
    parse: Callable[[Mapping[str, Any]], Row],
    *,
    skip_bad_rows: int = 0,
    warn: Callable[[str], None] = _log.warning,
) -> Iterator[tuple[int, Row]]:
    """Rows of a file one after another, each with its line (or its place in a table) from 1.

    Args:
        path: the file or folder.
        parse: what is made of a row; a DataError of it makes the row a bad one.
        skip_bad_rows: bad rows tolerated.
        warn: takes one sentence for each of them.

    Raises:
        ConfigError: no such file, or its format needs a library that is not installed.
        DataError: a bad row more than tolerated, or no row at all.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file", field="path", value=path)
    bad, found = 0, False
    for number, row in _rows(path):
        try:
            if isinstance(row, DataError):
                raise row
            parsed = parse(row)
        except DataError as error:
            bad += 1
            message = f"{path}:{number}: {error.message}"
            if bad > skip_bad_rows:
                tolerated = f"; {skip_bad_rows} bad rows are tolerated" if skip_bad_rows else ""
                raise DataError(f"{message}{tolerated}", field=error.field, value=error.value) from None
            warn(f"{message}; the row is left out")
        else:
            found = True
            yield number, parsed
    if not found:
        raise DataError(f"{path}: it has no rows", field="rows", value=0, limit="at least 1")


def _read(
    path: Path, from_row: Callable[[Mapping[str, Any]], Row], skip_bad_rows: int, warn: Callable[[str], None]
) -> list[Row]:
    return [row for _, row in stream_rows(path, from_row, skip_bad_rows=skip_bad_rows, warn=warn)]


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | DataError]]:
    """(number, row) from 1; a line that is no row comes as its error."""
    try:
        if path.is_dir():
            yield from enumerate(_saved_dataset(path), 1)
        elif path.suffix == ".parquet":
            yield from enumerate(_parquet(path), 1)
        else:
            yield from _json_lines(path)
    except (OSError, EOFError, ValueError, zlib.error) as error:  # ValueError: what pyarrow raises
        raise DataError(f"{path}: cannot be read: {error}", field="path", value=path) from None


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | DataError]]:
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    with opened as file:
        for number, line in enumerate(_lines(file.readline), 1):
            if isinstance(line, DataError):
                yield number, line
            elif (line := line.removeprefix(_BOM)).strip():
                yield number, _json_row(line)


def _lines(readline: Callable[[int], bytes]) -> Iterator[bytes | DataError]:
    while line := readline(MOST_LINE_BYTES + 1):
        if len(line) <= MOST_LINE_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = readline(MOST_LINE_BYTES)
        limit = f"at most {MOST_LINE_BYTES >> 20} MiB"
        yield DataError(f"the line is too long; allowed: {limit}", field="line", limit=limit)


def _json_row(line: bytes) -> Mapping[str, Any] | DataError:
    try:
        row = json.loads(line.decode(), object_pairs_hook=_distinct)
    except UnicodeDecodeError as error:
        return DataError(f"not UTF-8 at byte {error.start}", field="line", value=line[:80])
    except (ValueError, RecursionError) as error:
        return DataError(f"not a JSON object: {error}", field="line", value=line[:80])
    if not isinstance(row, dict):
        return DataError(f"a JSON object is expected, found {type(row).__name__}", field="line", value=line[:80])
    return row


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ; json would keep the last of equal ones and drop the others without a word."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return made


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    # Without its checksums, where the file has them, a damaged page may be read as other text.
    table = _library("pyarrow.parquet", path).ParquetFile(
        path, page_checksum_verification=True, buffer_size=_PARQUET_BUFFER_BYTES
    )
    names = table.schema_arrow.names
    if twice := sorted({name for name in names if names.count(name) > 1}):  # a row would keep the last of them only
        raise ValueError(f"the column {twice[0][:80]!r} is there twice")
    # One pass over all row groups would hold a buffer of each to its end, and threads keep memory of their own.
    groups = ([group] for group in range(table.num_row_groups))
    batches = (table.iter_batches(_PARQUET_ROWS, row_groups=group, use_threads=False) for group in groups)
    return (row for of_group in batches for batch in of_group for row in batch.to_pylist())


def _saved_dataset(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows of a folder that `datasets` saved; of several splits, the caller has to name one."""
    library = _library("datasets", path)
    try:
        saved = library.load_from_disk(str(path))
    except (AttributeError, LookupError, TypeError) as error:  # its JSON files have other contents than it wrote
        raise ValueError(f"no saved dataset: {error!r}") from None
    if isinstance(saved, Mapping):  # a DatasetDict: iterating it would give the names of its splits
        splits = ", ".join(sorted(map(str, saved)))
        raise ConfigError(
            f"{path}: it has the splits {splits}; name the folder of one of them",
            field="path",
            value=path,
            limit=splits,
        )
    return iter(saved)


def _library(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        package = name.split(".")[0]
        raise ConfigError(
            f"{path}: reading it needs the library {package}: pip install {package}", field="path", value=path
        ) from None
