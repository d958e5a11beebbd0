"""The database itself: migrations, one that is away, and one that others write."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from running import FREE_PORTS, RunningServer, client, wait_serving
from trimtab.errors import ConfigError, Unavailable
from trimtab.v1 import labeling_pb2 as pb
from trimtab_services.labeling import accounts, assignments, imports, main, projects
from trimtab_services.labeling.config import LabelingServiceConfig
from trimtab_services.labeling.contents import Task, TaskKind
from trimtab_services.labeling.database import Database
from trimtab_services.labeling.tables import metadata

from .people import Service, in_order, labeling, ranking_task
from .postgresql import postgresql


def test_migrations_from_empty_make_what_the_code_knows(database: str) -> None:
    opened = Database(database)
    opened.migrate()
    opened.migrate()  # a second start changes nothing
    with opened.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        assert set(sa.inspect(connection).get_table_names()) == {*metadata.tables, "alembic_version"}
    opened.close()


def test_labels_of_an_earlier_version_get_the_group_of_today(database: str) -> None:
    opened = Database(database)
    opened.migrate()
    with opened.changing() as connection:
        ann = accounts.create(
            connection,
            "t",
            name="ann",
            password=accounts.NewPassword.of("x" * 12),
            role=accounts.Role.LABELER,
            group="heldout",
        )
        project = projects.create(
            connection, "t", "p", TaskKind.RANK, wants_ratings=False, fields=projects.ProjectFields()
        )
        new = [Task(prompt=f"Q{number}", answers=("a", "b", "c", "d")) for number in range(2)]
        imports.add(connection, "t", "p", "i", new, max_characters=100)
        for state in ("submitted", "leased"):
            given = assignments.give_out(connection, ann, project.name)
            connection.execute(sa.text(f"UPDATE assignments SET state = '{state}' WHERE id = {given.id}"))
        back_to_the_first_version(connection)
    opened.migrate()
    with opened.reading() as connection:
        rows = connection.execute(sa.text('SELECT state, "group" FROM assignments ORDER BY id')).all()
    assert rows == [("submitted", "heldout"), ("leased", None)]
    opened.close()


def test_projects_of_an_earlier_version_go_on_as_they_were(database: str) -> None:
    opened = Database(database)
    opened.migrate()
    with opened.changing() as connection:
        for name in ("p", "q"):
            projects.create(
                connection, "t", name, TaskKind.RANK, wants_ratings=False, fields=projects.ProjectFields(overlap=2)
            )
        back_to_the_first_version(connection)
        connection.execute(sa.text("UPDATE projects SET is_open = (name = 'p')"))
    opened.migrate()
    with opened.reading() as connection:
        found = [projects.get(connection, name).fields for name in ("p", "q")]
    assert [(fields.state.value, fields.held_out_group, fields.overlap) for fields in found] == [
        ("open", "", 2),
        ("closed", "", 2),
    ]
    with opened.changing() as connection:  # a server of the version before, which an update replaces later, asks this
        projects.update(connection, "t", "q", state=projects.ProjectState.OPEN)
        projects.update(connection, "t", "p", state=projects.ProjectState.ARCHIVED)
        rows = connection.execute(sa.text("SELECT name FROM projects WHERE is_open")).scalars().all()
    assert rows == ["q"]
    opened.close()


def back_to_the_first_version(connection: sa.Connection) -> None:
    """Takes out of the tables what later migrations add."""
    for statement in (
        *(f"DROP INDEX ix_tasks_{name}" for name in ("open", "qualification", "held_out")),
        *(f"ALTER TABLE projects DROP COLUMN {name}" for name in ("state", "held_out_group", "held_out_overlap")),
        *(f"ALTER TABLE tasks DROP COLUMN {name}" for name in ("held_out_count", "withdraw_time")),
        'ALTER TABLE assignments DROP COLUMN "group"',
        "UPDATE alembic_version SET version_num = '0001'",
    ):
        connection.execute(sa.text(statement))


def test_several_servers_may_make_the_tables_at_once(database: str) -> None:
    opened = [Database(database) for _ in range(4)]
    threads = [threading.Thread(target=one.migrate) for one in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with opened[0].reading() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM alembic_version")).scalar() == 1
    for one in opened:
        one.close()


def test_tables_of_a_newer_service_are_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.sqlite"
    opened = Database(url)
    opened.migrate()
    with opened.changing() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="newer version"):
        opened.migrate()
    opened.close()
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", "serve", "labeling", *ports()],
        env={"TRIMTAB_LABELING__DATABASE": url, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: database:"), done.stderr


def ports() -> list[str]:
    return [text for name in ("grpc", "health", "http", "metrics") for text in (f"--{name}-port", "0")]


@pytest.mark.parametrize(
    ("url", "words"),
    [("mysql://u:secret@h/d", "mysql; allowed:"), ("secret", "no URL; allowed:"), ("sqlite:////proc/x/y", "/proc/x")],
)
def test_a_wrong_database_ends_the_server_with_one_line(url: str, words: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", "serve", "labeling", *ports()],
        env={"TRIMTAB_LABELING__DATABASE": url, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert words in line and "secret" not in done.stderr


def test_postgresql_that_goes_away_and_comes_back_loses_nothing() -> None:
    with postgresql() as server, labeling(server.url, database_wait_s=2.0) as service:
        given, ann = _begun(service)
        server.stop()
        try:
            refused = ann.submit(given, in_order(given), "s")
            assert (refused.status_code, refused.json()["reason"]) == (503, "UNREACHABLE"), refused.text
            assert int(refused.headers["retry-after"]) >= 1
            assert "send it again" in refused.json()["message"]
            with pytest.raises(Unavailable) as caught:
                service.program.import_tasks(
                    [pb.ImportTasksRequest(project="p", import_id="i", tasks=[ranking_task(5)])]
                )
            assert caught.value.retry_after_s == 2.0
        finally:
            server.start()
        assert ann.submit(given, in_order(given), "s").status_code == 200
        assert len(service.export()) == 1


def test_a_file_that_goes_away_is_not_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with labeling(f"sqlite:///{path}") as service:
        given, ann = _begun(service)
        files = [tmp_path / f"a.sqlite{suffix}" for suffix in ("", "-wal", "-shm")]
        for file in files:
            file.rename(f"{file}.away")
        refused = ann.submit(given, in_order(given), "s")
        assert refused.status_code == 503 and not path.exists(), refused.text
        for file in files:
            Path(f"{file}.away").rename(file)
        assert ann.submit(given, in_order(given), "s").status_code == 200
        assert len(service.export()) == 1


def test_another_process_that_writes_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with labeling(f"sqlite:///{path}", database_wait_s=1.0) as service:
        given, ann = _begun(service)
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(0.4, other.execute, ["COMMIT"]).start()
        began = time.monotonic()
        assert ann.submit(given, in_order(given), "s").status_code == 200
        assert time.monotonic() - began > 0.2
        other.execute("BEGIN IMMEDIATE")
        refused = ann.post(f"assignments/{given['id']}/undo")
        assert (refused.status_code, refused.json()["field"]) == (503, "database")
        assert ann.get("me").status_code == 200  # reading goes on
        other.execute("COMMIT")
        other.close()


def test_the_server_waits_for_a_database_that_is_away_at_its_start() -> None:
    with postgresql() as database:
        database.stop()
        config = LabelingServiceConfig(**FREE_PORTS, drain_s=5.0, database=database.url, database_wait_s=1.0)
        server = RunningServer(config, "labeling", main.SERVICE, main.build)
        try:
            with client(server) as program, pytest.raises(Unavailable):
                program.list_accounts(pb.ListAccountsRequest(), timeout_s=0.5)
            database.start()
            wait_serving(server)
        finally:
            server.stop()


def _begun(service: Service):  # type: ignore[no-untyped-def]
    service.project()
    service.add(ranking_task(0))
    ann = service.person("ann")
    return ann.next("p"), ann
