"""Who gets which task, on both kinds of database: overlap, leases, nobody twice, nobody in vain."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from trimtab.v1 import labeling_pb2 as pb

from .people import Person, Service, in_order, ranking_task


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
    progress = either.program.get_project(pb.GetProjectRequest(name="p")).project.progress
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
