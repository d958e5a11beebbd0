"""Labelers as their page would act: a session over HTTP each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx

from running import FREE_PORTS, RunningServer, client, wait_serving
from trimtab import Client
from trimtab.v1 import labeling_pb2 as pb
from trimtab_services.labeling import main
from trimtab_services.labeling.config import LabelingServiceConfig

PASSWORD = "correct horse battery"


class Person:
    """A person at a page; calls are relative to the API, and raise nothing."""

    def __init__(self, url: str, name: str, password: str = PASSWORD) -> None:
        self._http = httpx.Client(base_url=f"{url}/labeling/api/", timeout=30, trust_env=False)
        self.name = name
        self.answer = self._http.post("login", json={"name": name, "password": password})
        self.csrf = self.answer.json().get("csrf_token", "")

    def get(self, path: str, **query: Any) -> httpx.Response:
        return self._http.get(path, params=query)

    def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        return self._http.request(method, path, json=body or {}, headers={"x-csrf-token": self.csrf})

    def post(self, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        return self.send("POST", path, body)

    def next(self, project: str) -> dict[str, Any]:
        answer = self.post(f"projects/{project}/next")
        assert answer.status_code == 200, answer.text
        given: dict[str, Any] = answer.json()["assignment"]
        return given

    def submit(self, given: dict[str, Any], label: dict[str, Any], submission_id: str = "") -> httpx.Response:
        body = {"submission_id": submission_id or uuid4().hex, "label": label}
        return self.post(f"assignments/{given['id']}/submit", body)

    def close(self) -> None:
        self._http.close()


class Service:
    """A running labeling service, its program's client, and people."""

    def __init__(self, server: RunningServer, program: Client) -> None:
        self.server = server
        self.program = program
        self.url = server.server.runtime.http_url
        self._people: list[Person] = []

    def project(self, name: str = "p", kind: pb.TaskKind.ValueType = pb.TASK_KIND_RANK, **fields: Any) -> pb.Project:
        fields.setdefault("undo_ms", 60_000)
        project = pb.Project(name=name, kind=kind, **fields)
        return self.program.create_project(pb.CreateProjectRequest(project=project)).project

    def add(self, *tasks: pb.LabelTask, project: str = "p", import_id: str = "") -> int:
        request = pb.ImportTasksRequest(project=project, import_id=import_id or uuid4().hex, tasks=tasks)
        return self.program.import_tasks([request]).added_tasks

    def account(self, name: str, role: pb.AccountRole.ValueType = pb.ACCOUNT_ROLE_LABELER, group: str = "") -> None:
        request = pb.CreateAccountRequest(name=name, password=PASSWORD, role=role, group=group)
        self.program.create_account(request)

    def person(self, name: str, role: pb.AccountRole.ValueType = pb.ACCOUNT_ROLE_LABELER, group: str = "") -> Person:
        self.account(name, role, group)
        person = Person(self.url, name)
        assert person.answer.status_code == 200, person.answer.text
        self._people.append(person)
        return person

    def export(self, project: str = "p", **options: Any) -> list[pb.ExportLabelsResponse]:
        return list(self.program.export_labels(pb.ExportLabelsRequest(project=project, **options)))

    def progress(self, project: str = "p") -> pb.ProjectProgress:
        return self.program.get_project(pb.GetProjectRequest(name=project)).project.progress

    def close(self) -> None:
        for person in self._people:
            person.close()


@contextmanager
def labeling(database: str, **settings: Any) -> Iterator[Service]:
    """A labeling service in this process over a database."""
    config = LabelingServiceConfig(**{**FREE_PORTS, "drain_s": 5.0, "database": database, **settings})
    server = RunningServer(config, "labeling", main.SERVICE, main.build)
    try:
        wait_serving(server)
        with client(server) as program:
            service = Service(server, program)
            yield service
            service.close()
    finally:
        server.stop()


def ranking_task(number: int, answers: int = 4, **fields: Any) -> pb.LabelTask:
    texts = [f"answer {index} to {number}" for index in range(answers)]
    return pb.LabelTask(task_key=f"task-{number}", prompt=f"Question {number}?", answers=texts, **fields)


def in_order(given: dict[str, Any]) -> dict[str, Any]:
    """The label of who ranks the answers by their text: the answer of index 0 is best."""
    texts = given["answers"]
    return {"ranking": [[texts.index(text)] for text in sorted(texts)]}
