"""Labels of held-out labelers: beside the overlap, neither using up a task nor holding it back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from trimtab.v1 import labeling_pb2 as pb
from trimtab_services.labeling import accounts, assignments, imports, projects, tables
from trimtab_services.labeling.contents import Task, TaskKind
from trimtab_services.labeling.database import Database
from trimtab_services.labeling.submissions import submit
from trimtab_services.labeling.withdrawals import withdraw

from .people import PASSWORD, Person, Service, in_order, ranking_task
from .test_assignment import plan


def work(person: Person, project: str = "p", most: int = 100) -> list[str]:
    """Labels until there is nothing left; returns the prompts."""
    prompts = []
    while len(prompts) < most and (given := person.next(project)):
        assert person.submit(given, in_order(given)).status_code == 200
        prompts.append(given["prompt"])
    return prompts


def groups_of(service: Service, **options: bool) -> dict[str, list[str]]:
    rows = [json.loads(row.row_json) for row in service.export(**options)]
    return {row["task_key"]: [label["group"] for label in row["labels"]] for row in rows}


def test_a_held_out_label_uses_up_no_task_and_finishes_none(either: Service) -> None:
    either.project(overlap=1)
    either.add(*(ranking_task(number) for number in range(3)))
    held, other = either.person("hal", group="heldout"), either.person("hana", group="heldout")
    ann = either.person("ann")
    assert len(work(held)) == len(work(other)) == 3  # by default as many as there are such labelers, each once
    told = either.progress()
    assert (told.finished_tasks, told.labels, told.held_out_labels) == (0, 6, 6)
    assert groups_of(either) == {}
    assert set(groups_of(either, include_unfinished=True)) == {"task-0", "task-1", "task-2"}
    assert len(work(ann, most=2)) == 2
    told = either.progress()
    assert (told.finished_tasks, told.labels, told.held_out_labels) == (2, 8, 6)
    assert groups_of(either) == dict.fromkeys(("task-0", "task-1"), ["heldout", "heldout", ""])


def test_a_finished_task_comes_again_with_its_held_out_label(either: Service) -> None:
    either.project()
    either.add(ranking_task(0), ranking_task(1))
    work(either.person("ann"))
    hal = either.person("hal", group="heldout")
    given = hal.next("p")
    assert hal.submit(given, in_order(given)).status_code == 200
    assert groups_of(either) == {"task-1": [""], "task-0": ["", "heldout"]}
    assert hal.post(f"assignments/{given['id']}/undo").json()["state"] == "leased"
    assert groups_of(either) == {"task-1": [""], "task-0": [""]}
    assert [row.sequence for row in either.export()] == [2, 4]


def test_a_task_gets_no_more_held_out_labels_than_its_project_wants(either: Service) -> None:
    either.project(overlap=2, held_out_overlap=1)
    either.add(*(ranking_task(number) for number in range(4)))
    held = [either.person(name, group="heldout") for name in ("hal", "hana")]
    given = [person.next("p") for person in held]
    assert given[0]["prompt"] != given[1]["prompt"]  # a lease counts
    done = [work(person) for person in held]
    assert sorted(done[0] + done[1]) == [f"Question {number}?" for number in range(4)]
    assert [len(work(either.person(name))) for name in ("ann", "bob", "cat")] == [4, 4, 0]
    assert set(map(len, groups_of(either).values())) == {3}


def test_held_out_labelers_spread_over_the_tasks(either: Service) -> None:
    either.project()
    either.add(*(ranking_task(number) for number in range(4)))
    hal, hana = (either.person(name, group="heldout") for name in ("hal", "hana"))
    assert set(work(hal, most=2) + work(hana, most=2)) == {f"Question {number}?" for number in range(4)}


def test_a_late_held_out_label_is_measured_by_those_of_its_kind(either: Service) -> None:
    either.project(held_out_overlap=1, lease_ms=1000)
    either.add(ranking_task(0))
    hal, hana, ann = (
        either.person(name, group=group) for name, group in (("hal", "heldout"), ("hana", "heldout"), ("ann", ""))
    )
    slow = hal.next("p")
    time.sleep(1.1)
    assert work(ann) == ["Question 0?"]
    assert hal.post(f"assignments/{slow['id']}/renew").status_code == 200  # ann's label takes nothing from hal
    time.sleep(1.1)
    assert work(hana) == ["Question 0?"]
    refused = hal.submit(slow, in_order(slow))
    assert (refused.status_code, refused.json()["reason"]) == (409, "LEASE_LOST")


def test_a_held_out_label_takes_no_settled_label_out_of_an_export(either: Service, database: str) -> None:
    either.project()
    either.add(ranking_task(0), ranking_task(1))
    opened = Database(database)

    def age() -> None:
        with opened.changing() as connection:
            for column in ("assignments SET done_time", "tasks SET finish_time"):
                connection.execute(sa.text(f"UPDATE {column} = {column.split()[-1]} - 3600"))

    def settled(**options: Any) -> list[tuple[str, int, list[str]]]:
        rows = either.export(settled_only=True, **options)
        groups = [[label["group"] for label in json.loads(row.row_json)["labels"]] for row in rows]
        return [(row.task_key, row.sequence, found) for row, found in zip(rows, groups, strict=True)]

    def waiting(group: str) -> int:
        request = pb.ExportLabelsRequest(project="p", follow=True, after_sequence=2, groups=[group])
        responses = either.program.export_labels(request, timeout_s=60)
        first = next(responses)
        responses.close()
        assert not first.row_json
        return first.unsettled_tasks

    work(either.person("ann"))
    assert settled() == []
    age()
    work(either.person("hal", group="heldout"), most=1)
    assert settled() == [("task-1", 2, [""]), ("task-0", 2, [""])]
    assert settled(after_sequence=2) == [("task-0", 2, [""])]
    assert settled(groups=["heldout"]) == []
    assert (waiting("heldout"), waiting("others")) == (1, 0)
    age()
    assert settled(after_sequence=2) == [("task-0", 3, ["", "heldout"])]
    opened.close()


def test_what_a_labeler_works_on_moves_with_it_to_another_group(either: Service) -> None:
    either.project()
    either.add(ranking_task(0))
    tom, bob, hal = either.person("tom", group="heldout"), either.person("bob"), either.person("hal", group="heldout")
    given = tom.next("p")
    either.program.update_account(pb.UpdateAccountRequest(name="tom", group="train"))
    assert bob.next("p") is None  # tom's label will be the one of the overlap
    assert tom.submit(given, in_order(given)).status_code == 200
    assert len(work(hal)) == 1
    assert groups_of(either) == {"task-0": ["train", "heldout"]}


def test_another_group_counts_the_labels_anew(either: Service) -> None:
    either.project()
    either.add(ranking_task(0), ranking_task(1))
    work(either.person("tess", group="testers"), most=1)
    work(either.person("hal", group="heldout"))
    assert groups_of(either) == {"task-0": ["testers", "heldout"]}
    either.program.update_project(pb.UpdateProjectRequest(name="p", held_out_group="testers"))
    assert groups_of(either) == {"task-0": ["testers", "heldout"], "task-1": ["heldout"]}
    assert either.progress().held_out_labels == 1
    changed = either.program.update_project(pb.UpdateProjectRequest(name="p", held_out_group="", held_out_overlap=3))
    assert (changed.project.held_out_group, changed.project.held_out_overlap) == ("", 3)
    told = either.progress()
    assert (told.finished_tasks, told.labels, told.held_out_labels) == (2, 3, 0)


def test_the_next_held_out_task_is_found_without_a_look_at_all_of_them(database: str) -> None:
    opened = Database(database)
    opened.migrate()
    with opened.changing() as connection:
        password = accounts.NewPassword.of(PASSWORD)
        hal = accounts.create(
            connection, "t", name="hal", password=password, role=accounts.Role.LABELER, group="heldout"
        )
        for name, held_out_overlap in (("any", 0), ("one", 1)):
            fields = projects.ProjectFields(held_out_overlap=held_out_overlap)
            projects.create(connection, "t", name, TaskKind.RANK, wants_ratings=False, fields=fields)
            new = [Task(prompt=f"Q{number}", answers=("a", "b", "c", "d")) for number in range(300)]
            imports.add(connection, "t", name, "i", new, max_characters=100)
    asked: list[tuple[str, object]] = []
    event.listen(
        opened.engine, "before_cursor_execute", lambda c, cursor, text, values, *_: asked.append((text, values))
    )
    for name in ("any", "one"):
        with opened.changing() as connection:
            asked.clear()
            assert assignments.give_out(connection, hal, name) is not None
            _, (text, values) = [(text, values) for text, values in asked if "LIMIT" in text]
            told = plan(connection, text, values)
            assert "ix_tasks_held_out" in told and "sort" not in told.lower() and "order by" not in told.lower(), told
    opened.close()


def test_a_held_out_labeler_who_has_done_all_looks_at_each_task_once(tmp_path: Path) -> None:
    opened = Database(f"sqlite:///{tmp_path}/labeling.sqlite")
    opened.migrate()
    asked: list[tuple[str, object]] = []
    event.listen(
        opened.engine, "before_cursor_execute", lambda c, cursor, text, values, *_: asked.append((text, values))
    )
    with opened.changing() as connection:
        password = accounts.NewPassword.of(PASSWORD)
        hal = accounts.create(
            connection, "t", name="hal", password=password, role=accounts.Role.LABELER, group="heldout"
        )
        projects.create(connection, "t", "p", TaskKind.RANK, wants_ratings=False, fields=projects.ProjectFields())
        imports.add(connection, "t", "p", "i", [Task(prompt="Q", answers=("a", "b", "c", "d"))], max_characters=100)
        given = assignments.give_out(connection, hal, "p")
        assert given is not None
        submit(
            connection,
            hal,
            given.id,
            submission_id="s",
            label={"ranking": [[0], [1], [2], [3]]},
            active_ms=None,
            max_characters=100,
        )
        asked.clear()
        assert assignments.give_out(connection, hal, "p") is None
        plans = [
            plan(connection, text, values) for text, values in list(asked) if "LIMIT" in text and "held_out" in text
        ]
        assert len(plans) == 2
        assert "ix_tasks_held_out" in plans[0] and "ix_tasks_held_out" not in plans[1], plans
        assert "ix_assignments_project_id_state" in plans[1]
    opened.close()


def test_a_change_of_many_tasks_asks_no_statement_for_each(database: str) -> None:
    opened = Database(database)
    opened.migrate()
    count = 400
    with opened.changing() as connection:
        password = accounts.NewPassword.of(PASSWORD)
        hal = accounts.create(
            connection, "t", name="hal", password=password, role=accounts.Role.LABELER, group="heldout"
        )
        project = projects.create(
            connection, "t", "p", TaskKind.RANK, wants_ratings=False, fields=projects.ProjectFields()
        )
        new = [Task(key=f"{number}", prompt="Q", answers=("a", "b", "c", "d")) for number in range(count)]
        imports.add(connection, "t", "p", "i", new, max_characters=100)
        theirs = sa.select(
            tables.tasks.c.id, sa.literal(hal.id), sa.literal(project.id), sa.literal("submitted"), *[sa.literal(0)] * 3
        )
        names = ("task_id", "account_id", "project_id", "state", "assign_time", "lease_end_time", "done_time")
        rows = [dict(zip(names, row, strict=True)) for row in connection.execute(theirs)]
        connection.execute(
            tables.assignments.insert(), [row | {"order": [], "group": "heldout", "label": {}} for row in rows]
        )
    asked: list[str] = []
    event.listen(opened.engine, "before_cursor_execute", lambda c, cursor, text, *_: asked.append(text))

    def numbers() -> list[int | None]:
        with opened.reading() as connection:
            query = sa.select(tables.tasks.c.finished_sequence).order_by(tables.tasks.c.id)
            return list(connection.execute(query).scalars())

    def change(work: Callable[[sa.Connection], object]) -> int:
        with opened.changing() as connection:
            asked.clear()
            work(connection)
            return len(asked)

    keys = [task.key for task in new]
    assert change(lambda connection: projects.update(connection, "t", "p", held_out_group="")) < 20
    assert numbers() == list(range(1, count + 1))
    assert change(lambda connection: withdraw(connection, "t", "p", keys, restore=False)) < 20
    assert change(lambda connection: withdraw(connection, "t", "p", keys, restore=True)) < 20
    assert numbers() == list(range(count + 1, 2 * count + 1))
    assert change(lambda connection: projects.update(connection, "t", "p", held_out_group="heldout")) < 20
    assert numbers() == [None] * count
    opened.close()
