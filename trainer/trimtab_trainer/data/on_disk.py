"""What must be known of all rows at once, kept on disk: a file of any size needs no more memory than a small one.

Each is a private SQLite database that SQLite removes with the connection. It lies in the folder that `SQLITE_TMPDIR`,
or else `TMPDIR`, names; beyond a few MiB of pages nothing stays in memory.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from typing import Any

__all__ = ["DiskCounts", "digest", "open_private_database", "row_digest"]

_CACHE_KIB = 8 * 1024


def digest(text: str) -> bytes:
    """16 bytes that name a text; two texts of a billion share a name with probability 1e-21."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def row_digest(row: Mapping[str, Any]) -> bytes:
    """The name of a row, whatever the order of its keys."""
    return digest(json.dumps(row, sort_keys=True, default=repr))


def open_private_database(schema: str) -> sqlite3.Connection:
    """An empty database that nobody else sees, gone when it is closed.

    Args:
        schema: the statements that make its tables.
    """
    database = sqlite3.connect("", isolation_level=None)
    database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    database.execute("PRAGMA journal_mode = OFF")  # there is nothing to recover
    database.execute("PRAGMA synchronous = OFF")
    database.executescript(schema)
    database.execute("BEGIN")
    return database


class DiskCounts:
    """Whole numbers by key, 0 at first."""

    def __init__(self) -> None:
        self._database = open_private_database(
            "CREATE TABLE counts (key BLOB PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID"
        )

    def add(self, key: bytes, amount: int = 1) -> int:
        """Adds to the number of a key and returns the sum."""
        return self._database.execute(
            "INSERT INTO counts VALUES (?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count RETURNING count",
            (key, amount),
        ).fetchone()[0]

    def mark(self, key: bytes, bit: int) -> None:
        """Sets a bit of the number of a key."""
        self._database.execute(
            "INSERT INTO counts VALUES (?, ?) ON CONFLICT DO UPDATE SET count = count | excluded.count", (key, bit)
        )

    def __getitem__(self, key: bytes) -> int:
        found = self._database.execute("SELECT count FROM counts WHERE key = ?", (key,)).fetchone()
        return found[0] if found else 0

    def __len__(self) -> int:
        return self._database.execute("SELECT count(*) FROM counts").fetchone()[0]

    def keys_by_count(self) -> dict[int, int]:
        """How many keys have each number; of a few different numbers."""
        return dict(self._database.execute("SELECT count, count(*) FROM counts GROUP BY count ORDER BY count"))
