"""Projects and imports for programs: made once, checked, all or nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import InvalidRequest, NotFound, Reason, TrimtabError
from trimtab.v1 import info_pb2
from trimtab.v1 import labeling_pb2 as pb

from .people import Service, labeling, ranking_task


def refused(work: Any, *arguments: Any, **fields: Any) -> TrimtabError:
    with pytest.raises(TrimtabError) as caught:
        work(*arguments, **fields)
    return caught.value


def test_a_project_has_the_defaults_that_the_proto_states_and_is_made_once(either: Service) -> None:
    made = either.program.create_project(
        pb.CreateProjectRequest(project=pb.Project(name="p", kind=pb.TASK_KIND_RANK, instructions="# Be kind"))
    ).project
    assert (made.overlap, made.lease_ms, made.undo_ms, made.state) == (1, 1_800_000, 0, pb.PROJECT_STATE_OPEN)
    again = either.program.create_project(
        pb.CreateProjectRequest(project=pb.Project(name="p", kind=pb.TASK_KIND_RANK, instructions="# Be kind"))
    ).project
    assert again == made
    error = refused(either.project, overlap=2)
    assert isinstance(error, InvalidRequest) and error.reason is Reason.DUPLICATE_ID
    assert "with other instructions, overlap, undo_ms;" in error.message
    changed = either.program.update_project(pb.UpdateProjectRequest(name="p", overlap=3, instructions="")).project
    assert (changed.overlap, changed.instructions, changed.lease_ms) == (3, "", 1_800_000)


def test_who_names_no_held_out_group_makes_a_project_of_any_group_again(service: Service) -> None:
    made = service.project(held_out_group="")
    assert service.project() == made
    assert "with other held_out_group;" in refused(service.project, held_out_group="heldout").message
    assert service.project("q").held_out_group == "heldout"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"kind": pb.TASK_KIND_UNSPECIFIED}, "project.kind"),
        ({"kind": 99}, "project.kind"),
        ({"overlap": 101}, "overlap"),
        ({"overlap": -1}, "overlap"),
        ({"lease_ms": 999}, "lease_ms"),
        ({"undo_ms": -1}, "undo_ms"),
        ({"qualification_pass": 1.1}, "qualification_pass"),
        ({"qualification_pass": float("nan")}, "qualification_pass"),
        ({"instructions": "x" * 200_001}, "instructions"),
        ({"kind": pb.TASK_KIND_DEMONSTRATE, "wants_ratings": True}, "wants_ratings"),
    ],
)
def test_a_wrong_project_is_refused_by_field(service: Service, fields: dict[str, Any], field: str) -> None:
    error = refused(service.project, **fields)
    assert isinstance(error, InvalidRequest) and error.field == field, error.message


def test_projects_are_listed_by_page(service: Service) -> None:
    for name in ("c", "a", "b"):
        service.project(name)
    first = service.program.list_projects(pb.ListProjectsRequest(page_size=2))
    rest = service.program.list_projects(pb.ListProjectsRequest(page_size=2, page_token=first.next_page_token))
    assert [one.name for one in (*first.projects, *rest.projects)] == ["a", "b", "c"]
    assert refused(service.program.list_projects, pb.ListProjectsRequest(page_size=1001)).field == "page_size"
    assert isinstance(refused(service.program.get_project, pb.GetProjectRequest(name="")), NotFound)
    assert isinstance(refused(service.export, "nothing"), NotFound)
    assert isinstance(refused(service.add, ranking_task(0), project="nothing"), NotFound)


def test_an_import_sent_again_is_added_once_and_needs_the_same_tasks(either: Service) -> None:
    either.project()
    tasks = [ranking_task(number) for number in range(3)]
    assert either.add(*tasks, import_id="i") == 3
    assert either.add(*tasks, import_id="i") == 3
    assert either.progress().tasks == 3
    assert refused(either.add, ranking_task(9), import_id="i").reason is Reason.DUPLICATE_ID
    error = refused(either.add, ranking_task(8), ranking_task(1, category="chat"), import_id="j")
    assert (error.reason, error.field) == (Reason.DUPLICATE_ID, "tasks[1].task_key")
    assert error.message == "tasks[1].task_key: 'task-1' is in the project already, with other category"
    error = refused(either.add, ranking_task(8), ranking_task(7), ranking_task(8), import_id="j")
    assert error.field == "tasks[2].task_key" and "tasks[0]" in error.message
    assert either.progress().tasks == 3


def test_tasks_without_a_key_are_named_by_their_content(service: Service) -> None:
    service.project()
    answers = ["a", "b", "c", "d"]
    service.add(pb.LabelTask(prompt="Q", answers=answers), pb.LabelTask(prompt="Q", answers=answers[::-1]))
    assert service.add(pb.LabelTask(prompt="Q", answers=answers)) == 0
    same = pb.LabelTask(prompt="R", answers=answers)
    assert refused(service.add, same, same).reason is Reason.DUPLICATE_ID


def test_an_import_adds_what_is_new_and_tells_what_was_there(either: Service) -> None:
    either.project()
    sources = [pb.AnswerSource(model="m", temperature=0.7, seed=2**64 - 1)] * 4
    old = ranking_task(0, sources=sources, gold_ranking=[pb.TieGroup(indices=[0, 1]), pb.TieGroup(indices=[2, 3])])
    either.add(old, ranking_task(1, overlap=2))
    request = pb.ImportTasksRequest(
        project="p", import_id="j", tasks=[old, ranking_task(2), ranking_task(1, overlap=2)]
    )
    for was_added_before in (False, True):  # sent again, it is answered with what the first call did
        told = either.program.import_tasks([request])
        assert (told.added_tasks, told.known_tasks, told.was_added_before) == (1, 2, was_added_before)
    assert refused(either.add, ranking_task(1, overlap=3)).message.endswith("with other overlap")
    assert either.progress().tasks == 2


GOOD = ["a", "b", "c", "d"]
WRONG_TASKS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "Q", "answers": GOOD[:3]}, "answers"),
    ({"prompt": "Q", "answers": GOOD * 3}, "answers"),
    ({"prompt": "Q", "answers": ["a", "b", "", "d"]}, "answers[2]"),
    ({"prompt": "Q", "answers": ["a", "b", "c\0", "d"]}, "answers[2]"),
    ({"prompt": "Q", "answers": ["a", "b", "c", "d" * 100_001]}, "answers[3]"),
    ({"prompt": " ", "answers": GOOD}, "prompt"),
    ({"answers": GOOD, "messages": [{"role": "assistant", "content": "A"}]}, "messages"),
    ({"answers": GOOD, "messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
    ({"answers": GOOD, "messages": [{"role": "robot", "content": "Q"}]}, "messages[0].role"),
    ({"prompt": "Q", "answers": GOOD, "messages": [{"role": "user", "content": "Q"}]}, "messages"),
    ({"prompt": "Q", "answers": GOOD, "sources": [{"model": "m"}]}, "sources"),
    (
        {"prompt": "Q", "answers": GOOD, "sources": [{}, {}, {}, {"temperature": float("nan")}]},
        "sources[3].temperature",
    ),
    ({"prompt": "Q", "answers": GOOD, "overlap": 101}, "overlap"),
    ({"prompt": "Q", "answers": GOOD, "category": "x" * 201}, "category"),
    ({"prompt": "Q", "answers": GOOD, "gold_ranking": [{"indices": [0, 1]}]}, "gold_ranking"),
    ({"prompt": "Q", "answers": GOOD, "gold_ranking": [{"indices": [0, 1, 2, 3]}]}, "gold_ranking"),
]


@pytest.mark.parametrize(("fields", "field"), WRONG_TASKS)
def test_a_bad_task_is_named_and_nothing_of_its_import_is_added(
    service: Service, fields: dict[str, Any], field: str
) -> None:
    service.project()
    error = refused(service.add, ranking_task(0), pb.LabelTask(**fields))
    assert isinstance(error, InvalidRequest) and error.field == f"tasks[1].{field}", error.message
    assert error.message.startswith(f"tasks[1].{field}: ")
    assert service.progress().tasks == 0


def test_imports_are_bounded(tmp_path: Any) -> None:
    with labeling(f"sqlite:///{tmp_path}/a.sqlite", max_import_tasks=2, max_import_bytes=2000) as service:
        service.project()
        error = refused(service.add, *(ranking_task(number) for number in range(3)))
        assert (error.reason, error.limit) == (Reason.TOO_MANY_ITEMS, "2")
        error = refused(service.add, pb.LabelTask(prompt="x" * 3000, answers=GOOD))
        assert (error.reason, error.limit) == (Reason.TOO_MANY_ITEMS, "2000")
        assert refused(service.add).reason is Reason.FIELD_MISSING


def test_the_same_made_at_the_same_moment_is_made_once(either: Service) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: either.project("q"), range(8)))
        list(pool.map(lambda _: either.account("ann"), range(8)))
    assert all(project == made[0] for project in made)
    events = either.program.list_audit_events(pb.ListAuditEventsRequest()).events
    assert sorted(event.action for event in events) == ["account.create", "project.create"]


def test_a_drain_ends_an_export_that_follows(tmp_path: Path) -> None:
    ended: list[TrimtabError] = []
    with labeling(f"sqlite:///{tmp_path}/a.sqlite", sign_of_life_s=1.0) as service:
        service.project()
        responses = service.program.export_labels(pb.ExportLabelsRequest(project="p", follow=True), timeout_s=60)
        assert next(responses).row_json == ""  # a sign of life

        def follow() -> None:
            try:
                list(responses)
            except TrimtabError as error:
                ended.append(error)

        thread = threading.Thread(target=follow)
        thread.start()
        service.server.run(service.server.server.runtime.set_state(info_pb2.SERVICE_STATE_DRAINING))
        thread.join(30)
    assert [error.reason for error in ended] == [Reason.DRAINING]
