"""Who gets which task, on both kinds of database: overlap, leases, nobody twice, nobody in vain."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from trimtab.v1 import labeling_pb2 as pb
from trimtab_services.labeling import accounts, assignments, export, imports, projects, qualification
from trimtab_services.labeling.contents import Task, TaskKind
from trimtab_services.labeling.database import Database

from .people import PASSWORD, Person, Service, in_order, ranking_task


def test_a_task_goes_to_as_many_labelers_as_it_wants_and_never_twice_to_one(either: Service) -> None:
    either.project(overlap=2)
    either.add(*(ranking_task(number) for number in range(3)), ranking_task(3, overlap=1))
    people = [either.person(name) for name in ("ann", "bob", "cat")]
    done: dict[str, list[str]] = {person.name: [] for person in people}
    for _ in range(4):
        for person in people:
            if given := person.next("p"):
                done[person.name].append(given["prompt"])
                assert person.submit(given, in_order(given)).status_code == 200
    for prompts in done.values():
        assert len(set(prompts)) == len(prompts)
    everything = [prompt for prompts in done.values() for prompt in prompts]
    assert {prompt: everything.count(prompt) for prompt in set(everything)} == {
        "Question 0?": 2,
        "Question 1?": 2,
        "Question 2?": 2,
        "Question 3?": 1,
    }
    progress = either.progress()
    assert (progress.tasks, progress.finished_tasks, progress.labels, progress.leased_tasks) == (4, 4, 7, 0)


def test_many_at_once_get_no_task_more_often_than_it_wants(either: Service) -> None:
    either.project(overlap=1)
    either.add(*(ranking_task(number) for number in range(8)))
    people = [either.person(f"labeler-{number}") for number in range(6)]

    def work(person: Person) -> list[str]:
        prompts = []
        while given := person.next("p"):
            prompts.append(given["prompt"])
            assert person.submit(given, in_order(given)).status_code == 200
        return prompts

    with ThreadPoolExecutor(6) as pool:
        prompts = [prompt for found in pool.map(work, people) for prompt in found]
    assert sorted(prompts) == [f"Question {number}?" for number in range(8)]
    sequences = [row.sequence for row in either.export()]
    assert sequences == list(range(1, 9))


def test_asking_again_gives_the_task_that_is_worked_on(service: Service) -> None:
    service.project()
    service.add(ranking_task(0), ranking_task(1))
    ann = service.person("ann")
    first, again = ann.next("p"), ann.next("p")
    assert (again["id"], again["answers"]) == (first["id"], first["answers"])
    assert service.person("bob").next("p")["prompt"] != first["prompt"]


def test_answers_are_shuffled_for_each_labeler_and_stay_so(service: Service) -> None:
    service.project(overlap=20)
    service.add(ranking_task(0, answers=9))
    people = [service.person(f"labeler-{number}") for number in range(8)]
    given = [person.next("p") for person in people]
    orders = {tuple(one["answers"]) for one in given}
    assert len(orders) >= 7
    for person, one in zip(people, given, strict=True):
        assert person.get(f"assignments/{one['id']}").json()["answers"] == one["answers"]
        assert person.submit(one, in_order(one)).status_code == 200
    (row,) = service.export(include_unfinished=True)
    assert row.row_json.count('"ranking": [[0], [1], [2], [3], [4], [5], [6], [7], [8]]') == 8


def test_a_lease_that_ends_gives_the_task_to_others_and_the_late_label_is_still_taken(either: Service) -> None:
    either.project(lease_ms=1000)
    either.add(ranking_task(0))
    ann, bob = either.person("ann"), either.person("bob")
    slow = ann.next("p")
    assert bob.next("p") is None
    time.sleep(1.1)
    assert bob.next("p")["prompt"] == slow["prompt"]
    lost = ann.post(f"assignments/{slow['id']}/renew")
    assert (lost.status_code, lost.json()["reason"]) == (409, "LEASE_LOST")
    assert ann.submit(slow, in_order(slow)).status_code == 200  # nobody has finished it yet
    fast = bob.next("p")
    assert bob.submit(fast, in_order(fast)).status_code == 200  # and a lease that holds is a promise
    (row,) = either.export()
    assert row.row_json.count('"labeler"') == 2 and row.sequence == 2  # a row that comes again replaces the first


def test_a_label_after_others_have_finished_is_refused_and_kept_as_the_draft(either: Service) -> None:
    either.project(lease_ms=1000)
    either.add(ranking_task(0))
    ann, bob = either.person("ann"), either.person("bob")
    slow = ann.next("p")
    time.sleep(1.1)
    fast = bob.next("p")
    assert bob.submit(fast, in_order(fast)).status_code == 200
    refused = ann.submit(slow, in_order(slow))
    assert (refused.status_code, refused.json()["reason"]) == (409, "LEASE_LOST")
    assert "kept as the draft" in refused.json()["message"]
    kept = ann.get(f"assignments/{slow['id']}").json()
    assert kept["state"] == "leased" and kept["draft"]["content"] == {"label": in_order(slow)}
    assert len(either.export()) == 1


def test_a_sign_of_life_keeps_a_task(service: Service) -> None:
    service.project(lease_ms=1500)
    service.add(ranking_task(0))
    ann, bob = service.person("ann"), service.person("bob")
    given = ann.next("p")
    for number in range(4):
        time.sleep(0.6)
        if number % 2:
            assert ann.post(f"assignments/{given['id']}/renew").json()["lease_left_ms"] > 1000
        else:
            draft = {"draft_id": f"d{number}", "base_draft_id": f"d{number - 2}" if number else "", "content": {}}
            assert ann.send("PUT", f"assignments/{given['id']}/draft", draft).json()["lease_left_ms"] > 1000
        assert bob.next("p") is None


def test_a_skipped_task_goes_to_another_and_does_not_come_back(service: Service) -> None:
    service.project()
    service.add(ranking_task(0))
    ann, bob = service.person("ann"), service.person("bob")
    given = ann.next("p")
    refused = ann.post(f"assignments/{given['id']}/skip", {"submission_id": "s", "reason": "  "})
    assert (refused.status_code, refused.json()["field"]) == (400, "reason")
    for _ in range(2):  # sent again, it is answered as the first time
        skipped = ann.post(f"assignments/{given['id']}/skip", {"submission_id": "s", "reason": "in French"})
        assert (skipped.status_code, skipped.json()["state"]) == (200, "skipped")
    assert ann.next("p") is None
    other = bob.next("p")
    assert other["prompt"] == given["prompt"] and bob.submit(other, in_order(other)).status_code == 200


def test_a_closed_project_gives_out_nothing_and_takes_what_it_gave_out(service: Service) -> None:
    service.project()
    service.add(ranking_task(0), ranking_task(1))
    ann, bob = service.person("ann"), service.person("bob")
    given = ann.next("p")
    service.program.update_project(pb.UpdateProjectRequest(name="p", state=pb.PROJECT_STATE_CLOSED))
    refused = bob.post("projects/p/next")
    assert refused.status_code == 409 and "closed" in refused.json()["message"]
    assert ann.submit(given, in_order(given)).status_code == 200


def test_another_overlap_finishes_and_reopens_tasks(either: Service) -> None:
    either.project(overlap=2)
    either.add(ranking_task(0), ranking_task(1))
    ann = either.person("ann")
    given = ann.next("p")
    ann.submit(given, in_order(given))
    assert either.export() == []
    either.program.update_project(pb.UpdateProjectRequest(name="p", overlap=1))
    assert [row.sequence for row in either.export()] == [1]
    either.program.update_project(pb.UpdateProjectRequest(name="p", overlap=3))
    assert either.export() == [] and len(either.export(include_unfinished=True)) == 1


@pytest.mark.parametrize(("passes", "answers"), [(True, "right"), (False, "wrong"), (False, "skipped")])
def test_the_qualification_decides_who_goes_on(service: Service, passes: bool, answers: str) -> None:
    gold = [pb.TieGroup(indices=[0]), pb.TieGroup(indices=[1, 2]), pb.TieGroup(indices=[3])]
    service.project(qualification_pass=0.8)
    service.add(ranking_task(0), ranking_task(1, gold_ranking=gold), ranking_task(2, gold_ranking=gold))
    ann = service.person("ann")
    for _ in range(2):
        given = ann.next("p")
        assert given["prompt"] != "Question 0?"
        label = in_order(given)
        if answers == "skipped":
            ann.post(f"assignments/{given['id']}/skip", {"submission_id": given["prompt"], "reason": "no"})
            continue
        if answers == "wrong":
            label["ranking"].reverse()
        assert ann.submit(given, label).status_code == 200
    mine = ann.get("projects/p").json()["mine"]["qualification"]
    assert mine == {
        "done": 2,
        "wanted": 2,
        "agreeing": 10 if passes else 0,
        "pairs": 10,
        "passed": passes,
    }
    answer = ann.post("projects/p/next")
    if passes:
        assert answer.json()["assignment"]["prompt"] == "Question 0?"
    else:
        assert answer.status_code == 409 and "0 of 10 pairs" in answer.json()["message"]
    assert service.export() == []  # a qualification is no data


def test_gold_answers_cannot_be_found_out_by_trying(either: Service) -> None:
    gold = [pb.TieGroup(indices=[0]), pb.TieGroup(indices=[1, 2, 3])]
    either.project(qualification_pass=0.8)
    either.add(ranking_task(0, gold_ranking=gold), ranking_task(1, gold_ranking=gold), ranking_task(2))
    ann = either.person("ann")
    for done in (1, 2):
        given = ann.next("p")
        sent = ann.submit(given, in_order(given)).json()
        assert sent["undo_left_ms"] == 0
        refused = ann.post(f"assignments/{given['id']}/undo")
        assert refused.status_code == 409 and "qualification" in refused.json()["message"]
        mine = ann.get("projects/p").json()["mine"]["qualification"]
        scored = {1: (0, 0, None), 2: (6, 6, True)}[done]
        assert (mine["done"], mine["agreeing"], mine["pairs"], mine["passed"]) == (done, *scored)
    ann.submit(other := ann.next("p"), in_order(other))
    assert ann.post(f"assignments/{other['id']}/undo").json()["state"] == "leased"


def test_projects_are_told_with_what_the_labeler_did_in_each(either: Service) -> None:
    gold = [pb.TieGroup(indices=[0]), pb.TieGroup(indices=[1, 2, 3])]
    for name in ("a", "b", "c"):
        either.project(name)
    either.add(ranking_task(0), ranking_task(1), project="a")
    either.add(ranking_task(0, gold_ranking=gold), ranking_task(1), project="b")
    ann, bob = either.person("ann"), either.person("bob")
    for name in ("a", "b", "b"):
        given = ann.next(name)
        ann.submit(given, in_order(given))
    skipped = ann.next("a")
    ann.post(f"assignments/{skipped['id']}/skip", {"submission_id": "s", "reason": "hard"})
    told = {one["name"]: one["mine"] for one in ann.get("projects").json()["projects"]}
    counts = {name: (mine["labels"], mine["skips"]) for name, mine in told.items()}
    assert counts == {"a": (1, 1), "b": (2, 0), "c": (0, 0)}
    assert told["b"]["qualification"] == {"done": 1, "wanted": 1, "agreeing": 3, "pairs": 3, "passed": True}
    assert told["a"]["qualification"] == {"done": 0, "wanted": 0, "agreeing": 0, "pairs": 0, "passed": True}
    assert {one["mine"]["labels"] for one in bob.get("projects").json()["projects"]} == {0}


def test_projects_are_told_by_as_many_questions_as_one_is(database: str) -> None:
    opened, asked = filled(database, tasks=1)
    with opened.reading() as connection:
        ann = accounts.by_name(connection, "ann")
        (first,) = projects.page(connection, "", 1)
        asked.clear()
        qualification.qualifications(connection, ann, [first] * 30)
        assert len(asked) == 2
    opened.close()


def test_the_next_task_is_found_without_a_look_at_all_of_them(database: str) -> None:
    opened, asked = filled(database, tasks=300)
    with opened.changing() as connection:
        ann = accounts.by_name(connection, "ann")
        asked.clear()
        assert assignments.give_out(connection, ann, "p") is not None
        looked = [(text, values) for text, values in asked if "LIMIT" in text]
        indexes = ["ix_tasks_qualification", "ix_tasks_open"]
        for (text, values), index in zip(looked, indexes, strict=True):
            told = plan(connection, text, values)
            assert index in told and "sort" not in told.lower() and "order by" not in told.lower(), told
    opened.close()


def filled(database: str, tasks: int) -> tuple[Database, list[tuple[str, Any]]]:
    """A project `p`, the account ann, and what the database is asked from now on."""
    opened = Database(database)
    opened.migrate()
    answers = ("a", "b", "c", "d")
    with opened.changing() as connection:
        accounts.create(
            connection, "test", name="ann", password=accounts.NewPassword.of(PASSWORD), role=accounts.Role.LABELER
        )
        projects.create(
            connection, "test", "p", TaskKind.RANK, wants_ratings=False, fields=projects.ProjectFields(overlap=3)
        )
        new = [Task(prompt=f"Q{number}", answers=answers) for number in range(tasks)]
        imports.add(connection, "test", "p", "i", new, max_characters=100)
    asked: list[tuple[str, Any]] = []
    sa.event.listen(
        opened.engine, "before_cursor_execute", lambda c, cursor, text, values, *_: asked.append((text, values))
    )
    return opened, asked


def plan(connection: sa.Connection, text: str, values: Any) -> str:
    """How the database answers, where it has so many rows that reading all of them costs more."""
    if connection.dialect.name == "sqlite":
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values)
        return "\n".join(row[3] for row in rows)
    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    return "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {text}", values))


def test_what_is_finished_while_unfinished_tasks_are_exported_is_not_missed(
    either: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    either.project(overlap=2)
    either.add(*(ranking_task(number) for number in range(3)))
    ann, bob = either.person("ann"), either.person("bob")
    for _ in range(2):
        given = ann.next("p")
        ann.submit(given, in_order(given))
    waits = [bob.next("p")]
    look = export.unfinished

    def finish_one_then_look(*given: Any, **options: Any) -> export.Page:
        while waits:
            bob.submit(waits[0], in_order(waits.pop()))
        return look(*given, **options)

    monkeypatch.setattr(export, "unfinished", finish_one_then_look)
    rows = either.export(include_unfinished=True)
    assert [(row.task_key, row.sequence) for row in rows] == [("task-1", 0), ("task-0", 1)]
