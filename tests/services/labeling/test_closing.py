"""The end of tasks and projects: withdrawn, archived, and a qualification that is tried again. Nothing is deleted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trimtab.errors import InvalidRequest, NotFound, Reason
from trimtab.v1 import labeling_pb2 as pb

from .people import Person, Service, in_order, ranking_task

GOLD = [pb.TieGroup(indices=[0]), pb.TieGroup(indices=[1, 2, 3])]


def withdraw(service: Service, *keys: str, restore: bool = False) -> tuple[int, int]:
    request = pb.WithdrawTasksRequest(project="p", task_keys=keys, restore=restore)
    done = service.program.withdraw_tasks(request)
    return done.changed_tasks, done.labels


def label_next(person: Person, *, backwards: bool = False) -> str:
    given = person.next("p")
    label = in_order(given)
    if backwards:
        label["ranking"].reverse()
    assert person.submit(given, label).status_code == 200
    prompt: str = given["prompt"]
    return prompt


def test_withdrawn_tasks_are_not_given_out_counted_or_exported_and_come_back(either: Service) -> None:
    either.project(overlap=2)
    either.add(*(ranking_task(number) for number in range(3)), ranking_task(3, overlap=1))
    ann, bob = either.person("ann"), either.person("bob")
    for person in (ann, ann, bob):
        label_next(person)
    assert withdraw(either, "task-0", "task-2", "task-0") == (2, 2)
    assert withdraw(either, *["task-0"] * 501) == (0, 2)  # named over and over, it still has as many labels
    told = either.progress()
    assert (told.tasks, told.finished_tasks, told.labels, told.withdrawn_tasks) == (2, 0, 1, 2)
    assert either.export() == []
    assert [row.task_key for row in either.export(include_withdrawn=True)] == ["task-0"]
    assert [row.task_key for row in either.export(include_unfinished=True)] == ["task-1"]
    assert either.program.get_agreement(pb.GetAgreementRequest(project="p")).agreement.count == 0
    assert [label_next(bob), label_next(bob)] == ["Question 1?", "Question 3?"] and bob.next("p") is None
    rita = either.person("rita", pb.ACCOUNT_ROLE_REVIEWER)
    seen = {one["task_key"]: one["is_withdrawn"] for one in rita.get("projects/p/labels").json()["labels"]}
    assert seen == {"task-0": True, "task-1": False, "task-3": False}
    assert withdraw(either, "task-0", "task-2", restore=True) == (2, 2)
    assert [row.task_key for row in either.export()] == ["task-1", "task-3", "task-0"]  # who follows sees it again
    assert label_next(bob) == "Question 2?"
    events = either.program.list_audit_events(pb.ListAuditEventsRequest(page_size=1000)).events
    actions = [event.action for event in events]
    assert (actions.count("task.withdraw"), actions.count("task.restore")) == (2, 2)


def test_a_withdrawn_task_is_not_handed_to_its_holder_again_and_its_label_is_still_kept(service: Service) -> None:
    service.project()
    service.add(ranking_task(0), ranking_task(1))
    ann = service.person("ann")
    given = ann.next("p")
    assert service.progress().leased_tasks == 1
    withdraw(service, "task-0")
    assert service.progress().leased_tasks == 0
    at = f"assignments/{given['id']}"
    draft = {"draft_id": "d", "base_draft_id": "", "content": {}}
    told = [ann.get(at), ann.post(f"{at}/renew"), ann.send("PUT", f"{at}/draft", draft)]
    assert [answer.json()["is_withdrawn"] for answer in told] == [True] * 3
    following = ann.next("p")
    assert (following["prompt"], following["is_withdrawn"]) == ("Question 1?", False)
    assert ann.submit(given, in_order(given)).status_code == 200
    assert service.export() == [] and len(service.export(include_withdrawn=True)) == 1


@pytest.mark.parametrize(
    ("project", "keys", "field", "kind"),
    [
        ("q", ["task-0"], "name", NotFound),
        ("p", ["task-0", "task-9"], "task_keys[1]", NotFound),
        ("p", [], "task_keys", InvalidRequest),
        ("p", ["task-0"] * 10_001, "task_keys", InvalidRequest),
    ],
)
def test_what_cannot_be_withdrawn_changes_nothing(
    service: Service, project: str, keys: list[str], field: str, kind: type[Exception]
) -> None:
    service.project()
    service.add(ranking_task(0))
    with pytest.raises(kind) as caught:
        service.program.withdraw_tasks(pb.WithdrawTasksRequest(project=project, task_keys=keys))
    assert caught.value.field == field  # type: ignore[attr-defined]
    assert service.progress().withdrawn_tasks == 0


def test_an_archived_project_is_hidden_from_labelers_exported_and_can_be_opened_again(either: Service) -> None:
    either.project()
    either.project("other")
    either.add(ranking_task(0), ranking_task(1))
    ann, rita = either.person("ann"), either.person("rita", pb.ACCOUNT_ROLE_REVIEWER)
    label_next(ann)

    def set_state(state: pb.ProjectState.ValueType) -> None:
        told = either.program.update_project(pb.UpdateProjectRequest(name="p", state=state)).project
        assert told.state == state

    def seen_by(person: Person) -> dict[str, Any]:
        return {one["name"]: one["state"] for one in person.get("projects").json()["projects"]}

    set_state(pb.PROJECT_STATE_ARCHIVED)
    assert (seen_by(ann), seen_by(rita)) == ({"other": "open"}, {"other": "open", "p": "archived"})
    refused = ann.post("projects/p/next")
    assert refused.status_code == 409 and "archived" in refused.json()["message"]
    assert len(either.export()) == 1
    set_state(pb.PROJECT_STATE_OPEN)
    assert label_next(ann) == "Question 1?" and seen_by(ann)["p"] == "open"
    with pytest.raises(InvalidRequest) as caught:
        set_state(9)  # type: ignore[arg-type]
    assert caught.value.field == "state"


def test_who_failed_may_try_again_with_the_same_tasks(either: Service) -> None:
    either.project(qualification_pass=0.8)
    either.add(*(ranking_task(number, gold_ranking=GOLD) for number in range(2)), ranking_task(2))
    ann, rita = either.person("ann"), either.person("rita", pb.ACCOUNT_ROLE_REVIEWER)
    failed = {label_next(ann, backwards=True) for _ in range(2)}
    refused = ann.post("projects/p/next")
    assert refused.status_code == 409 and "not passed: 0 of 6 pairs" in refused.json()["message"]
    label_next(either.person("ben"), backwards=True)
    labelers = either.program.get_agreement(pb.GetAgreementRequest(project="p")).labelers
    assert [(one.labeler, one.HasField("passed"), one.passed) for one in labelers] == [
        ("ann", True, False),
        ("ben", False, False),  # has not done all
    ]
    assert ann.post("projects/p/qualification/ann").status_code == 403
    assert rita.post("projects/p/qualification/nobody").status_code == 404
    assert rita.post("projects/p/qualification/ann").json() == {"reset_tasks": 2}
    told = ann.get("projects/p").json()["mine"]
    assert (told["labels"], told["qualification"]["done"], told["qualification"]["passed"]) == (0, 0, None)
    assert {label_next(ann) for _ in range(2)} == failed
    assert label_next(ann) == "Question 2?"
    reset = pb.ResetQualificationRequest(project="p", account="ann")
    assert either.program.reset_qualification(reset).reset_tasks == 2
    assert either.program.reset_qualification(reset).reset_tasks == 0
    events = either.program.list_audit_events(pb.ListAuditEventsRequest(page_size=1000)).events
    kept = [event for event in events if event.action == "qualification.reset"]
    assert [event.actor for event in kept][:2] == ["account:rita"] * 2 and len(kept) == 4
    detail = json.loads(kept[0].detail_json)
    assert (detail["account"], detail["gold_agreeing"], detail["label"]["ranking"]) == ("ann", 0, [[3], [2], [1], [0]])


def test_a_withdrawn_qualification_task_bars_nobody(either: Service) -> None:
    either.project(qualification_pass=1.0)
    either.add(ranking_task(0, gold_ranking=GOLD), ranking_task(1, gold_ranking=GOLD), ranking_task(2))
    ann = either.person("ann")
    assert label_next(ann, backwards=True) == "Question 0?"
    assert label_next(ann) == "Question 1?"
    assert ann.post("projects/p/next").status_code == 409
    withdraw(either, "task-0")
    assert label_next(ann) == "Question 2?"
    assert either.progress().qualification_tasks == 1


def test_an_import_of_a_withdrawn_task_adds_none(service: Service) -> None:
    service.project()
    service.add(ranking_task(0))
    withdraw(service, "task-0")
    again = pb.ImportTasksRequest(project="p", import_id="i", tasks=[ranking_task(0), ranking_task(1)])
    for was_added_before in (False, True):
        done = service.program.import_tasks([again])
        assert (done.added_tasks, done.known_tasks, done.withdrawn_tasks) == (1, 1, 1)
        assert done.was_added_before == was_added_before
    with pytest.raises(InvalidRequest) as caught:
        service.add(ranking_task(0, category="chat"))
    assert caught.value.reason is Reason.DUPLICATE_ID
