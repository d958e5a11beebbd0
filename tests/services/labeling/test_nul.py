"""The character U+0000, which PostgreSQL keeps in no text: refused by field, by every call and on both databases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trimtab.errors import InvalidRequest, Reason
from trimtab.v1 import labeling_pb2 as pb
from trimtab.v1.types_pb2 import ChatMessage

from .people import PASSWORD, Service, ranking_task

TEXT = "a\0b"
GOOD = ["a", "b", "c", "d"]
REQUESTS: list[tuple[str, Any, str]] = [
    ("create_project", pb.CreateProjectRequest(project=pb.Project(name=TEXT)), "project.name"),
    ("create_project", pb.CreateProjectRequest(project=pb.Project(held_out_group=TEXT)), "project.held_out_group"),
    ("get_project", pb.GetProjectRequest(name=TEXT), "name"),
    ("list_projects", pb.ListProjectsRequest(page_token=TEXT), "page_token"),
    ("update_project", pb.UpdateProjectRequest(name="p", instructions=TEXT), "instructions"),
    ("withdraw_tasks", pb.WithdrawTasksRequest(project="p", task_keys=["a", TEXT]), "task_keys[1]"),
    ("reset_qualification", pb.ResetQualificationRequest(project="p", account=TEXT), "account"),
    ("get_agreement", pb.GetAgreementRequest(project=TEXT), "project"),
    ("create_account", pb.CreateAccountRequest(name="ann", password=PASSWORD, group=TEXT), "group"),
    ("update_account", pb.UpdateAccountRequest(name="ann", password=f"{PASSWORD}\0"), "password"),
    ("list_accounts", pb.ListAccountsRequest(page_token=TEXT), "page_token"),
]


@pytest.mark.parametrize(("method", "request_", "field"), REQUESTS, ids=[f"{one[0]}-{one[2]}" for one in REQUESTS])
def test_a_call_refuses_it_by_field(service: Service, method: str, request_: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        getattr(service.program, method)(request_)
    error = caught.value
    assert (error.reason, error.field) == (Reason.FIELD_INVALID, field)
    assert error.message == f"{field}: has the character U+0000 at {error.value}, which databases cannot keep"
    assert error.limit == "no U+0000" and str(error.value).isdigit()


def test_streams_refuse_it_by_the_place_in_the_whole_stream(either: Service) -> None:
    either.project()
    turns = [ChatMessage(role="user", content="Q"), ChatMessage(role="user", content=TEXT)]
    first = pb.ImportTasksRequest(project="p", import_id="i", tasks=[ranking_task(0), ranking_task(1)])
    second = pb.ImportTasksRequest(tasks=[ranking_task(2), pb.LabelTask(messages=turns, answers=GOOD)])
    with pytest.raises(InvalidRequest) as caught:
        either.program.import_tasks([first, second])
    assert caught.value.field == "tasks[3].messages[1].content"
    with pytest.raises(InvalidRequest) as caught:
        either.export(groups=["x", TEXT])
    assert caught.value.field == "groups[1]"
    assert either.progress().tasks == 0


def test_the_page_is_never_told_of_a_fault(either: Service) -> None:
    either.project(kind=pb.TASK_KIND_DEMONSTRATE)
    either.add(pb.LabelTask(task_key="t"))
    ann, root = either.person("ann"), either.person("root", pb.ACCOUNT_ROLE_ADMIN)
    given = ann.next("p")
    at = f"assignments/{given['id']}"
    draft = {"draft_id": "d", "base_draft_id": "", "content": {"label": {"completion": "x"}}}
    sent: dict[str, Callable[[], Any]] = {
        "draft_id": lambda: ann.send("PUT", f"{at}/draft", draft | {"draft_id": TEXT}),
        "submission_id": lambda: ann.submit(given, {"completion": "x", "prompt": "y"}, TEXT),
        "label.completion": lambda: ann.submit(given, {"completion": TEXT, "prompt": "y"}),
        "reason": lambda: ann.post(f"{at}/skip", {"submission_id": "s", "reason": TEXT}),
        "labeler": lambda: root.get("projects/p/labels", labeler=TEXT),
        "name": lambda: root.post("accounts", {"name": TEXT, "password": PASSWORD, "role": "labeler"}),
        "group": lambda: root.post("accounts/ann", {"group": TEXT}),
        "instructions": lambda: root.post("projects/p", {"instructions": TEXT}),
        "held_out_group": lambda: root.post("projects/p", {"held_out_group": TEXT}),
    }
    for field, send in sent.items():
        answer = send()
        assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text
    kept = ann.send("PUT", f"{at}/draft", draft | {"content": {"label": {"completion": TEXT}}})
    assert kept.status_code == 200  # a draft loses nothing; the label is refused
