"""The database: one engine over SQLite or PostgreSQL, asked in threads beside the event loop.

A change is one transaction. SQLite has one writer at a time: changes take turns in this process, and `BEGIN IMMEDIATE`
makes other processes wait before they have read anything. On PostgreSQL, changes of what labelers do hold the row of
their project, so that they take turns by project.

A database that is away, locked for too long or full is `Unavailable` with the seconds after which to come back; nothing
of the change was kept, or all of it and its acknowledgement was lost, which is why every change can be sent again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import event, exc

from trimtab.errors import ConfigError, Reason, Unavailable

__all__ = ["Database"]

P = ParamSpec("P")
T = TypeVar("T")

RETRY_AFTER_S = 2.0
_KINDS = ("sqlite", "postgresql")
_MIGRATIONS = Path(__file__).parent / "migrations"
_WRITES = "trimtab_writes"
_AWAY = (exc.OperationalError, exc.InterfaceError, exc.TimeoutError, exc.DisconnectionError)
_log = logging.getLogger(__name__)


class Database:
    """Where everything is kept.

    Args:
        url: sqlite:///FILE or postgresql://...
        wait_s: how long a call waits for a connection or a lock.
        threads: calls at once.

    Raises:
        ConfigError: the URL is none of these, the file of SQLite cannot be made, or the driver is not installed. The
            message never quotes the URL, which may hold a password.
    """

    def __init__(self, url: str, *, wait_s: float = 10.0, threads: int = 8) -> None:
        self._wait_s = wait_s
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="database")
        self._turn = threading.Lock()
        parsed = _parsed(url)
        self._is_sqlite = parsed.get_backend_name() == "sqlite"
        self.engine = _sqlite(parsed, wait_s, threads) if self._is_sqlite else _postgresql(parsed, wait_s, threads)

    async def read(self, work: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `work(connection, ...)` in a thread, in a transaction that changes nothing.

        Raises:
            Unavailable: the database is away.
        """

        def ask() -> T:
            with self.reading() as connection:
                return work(connection, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._executor, ask)

    async def change(self, work: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `work(connection, ...)` in a thread, in a transaction that is on disk when this returns.

        Raises:
            Unavailable: the database is away.
        """

        def ask() -> T:
            with self.changing() as connection:
                return work(connection, *args, **kwargs)

        def ask_again() -> T:
            try:
                return ask()
            except exc.IntegrityError:  # somebody made the same at this moment: it is found now
                return ask()

        return await asyncio.get_running_loop().run_in_executor(self._executor, ask_again)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that changes nothing; blocks."""
        with _told_when_away(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def changing(self) -> Iterator[sa.Connection]:
        """A transaction that is committed at the end of the context; blocks. An error leaves everything as it was."""
        with _told_when_away():
            if not self._is_sqlite:
                with self.engine.begin() as connection:
                    yield connection
                return
            if not self._turn.acquire(timeout=self._wait_s):
                raise exc.TimeoutError("other changes take too long")
            try:
                with self.engine.execution_options(**{_WRITES: True}).begin() as connection:
                    yield connection
            finally:
                self._turn.release()

    def migrate(self) -> None:
        """Brings the tables to what this version of the service knows; makes them in an empty database. Blocks.

        Raises:
            Unavailable: the database is away.
            ConfigError: a newer version of the service has written it.
        """
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        with self.changing() as connection:
            if not self._is_sqlite:  # several servers may start at once
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(731992)"))
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise ConfigError(
                    f"database: {self.engine.url.render_as_string()}: {error}; a newer version of the service has "
                    "written it",
                    field="database",
                ) from None

    def close(self) -> None:
        """Ends its connections and threads."""
        self._executor.shutdown(wait=True)
        self.engine.dispose()


@contextmanager
def _told_when_away() -> Iterator[None]:
    try:
        yield
    except _AWAY as error:
        cause = getattr(error, "orig", None) or error
        _log.warning("the database is away", extra={"error": f"{type(cause).__name__}: {cause}".splitlines()[0]})
        raise Unavailable(
            "the database of the labeling service does not answer; nothing was changed by this call, or all of it: "
            "send it again as it is",
            reason=Reason.UNREACHABLE,
            field="database",
            retry_after_s=RETRY_AFTER_S,
        ) from error


def _parsed(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
        name = parsed.get_backend_name()
    except (exc.ArgumentError, ValueError):
        name = "no URL"
    else:
        if name in _KINDS:
            return parsed
    raise ConfigError(
        f"database: {name}; allowed: sqlite:///FILE | postgresql://USER:PASSWORD@HOST/NAME",
        field="database",
        limit=" | ".join(_KINDS),
    )


def _sqlite(url: sa.URL, wait_s: float, threads: int) -> sa.Engine:
    path = Path(url.database or "labeling.sqlite").absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise ConfigError(f"database: {path}: {error.strerror or error}", field="database", value=path) from None
    # never made anew: a file that is gone is a database that is away, not an empty one
    uri = sa.URL.create("sqlite", database=f"file:{quote(str(path))}", query={"mode": "rw", "uri": "true"})
    engine = sa.create_engine(
        uri,
        connect_args={"check_same_thread": False, "timeout": wait_s},
        poolclass=sa.QueuePool,
        pool_size=threads,
        max_overflow=0,
        pool_timeout=wait_s,
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say so
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")
        record.info["file"] = _identity(path)

    @event.listens_for(engine, "checkout")
    def is_same_file(connection: Any, record: Any, proxy: Any) -> None:
        if record.info["file"] != _identity(path):
            raise exc.DisconnectionError(f"{path} is another file than before")

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _postgresql(url: sa.URL, wait_s: float, threads: int) -> sa.Engine:
    milliseconds = int(1000 * wait_s)
    try:
        return sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={
                "connect_timeout": max(2, round(wait_s)),
                "options": f"-c lock_timeout={milliseconds} -c idle_in_transaction_session_timeout=60000",
            },
            pool_pre_ping=True,  # connections that broke while nobody used them are made anew
            pool_size=threads,
            max_overflow=0,
            pool_timeout=wait_s,
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"database: PostgreSQL needs {error.name}: pip install 'trimtab[labeling]'", field="database"
        ) from None
