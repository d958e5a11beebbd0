"""A run that names projects of the labeling service as its datasets: real labelers over HTTP, a real service."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from click.testing import CliRunner

from certificate_files import make_pair
from links import link_to
from trimtab import Client, TLSConfig
from trimtab.errors import ConfigError, CorruptData, DataError, NotFound, PermissionDenied, TrimtabError, Unavailable
from trimtab.local import LocalServices, read_endpoints
from trimtab.v1 import labeling_pb2 as pb
from trimtab_services.labeling.database import Database
from trimtab_trainer.cli import run as run_command
from trimtab_trainer.config import RunSpec
from trimtab_trainer.context import Orders
from trimtab_trainer.data import read_demonstrations, read_rankings
from trimtab_trainer.data.labeling import _Rows, copy_labels
from trimtab_trainer.report import write_report
from trimtab_trainer.run import RunOutcome, read_outcome, run

from ..services.labeling.people import PASSWORD, Person, Service, labeling

Go = Callable[..., RunOutcome]

GOOD, BAD = ("helpful", "something", "steers"), ("dog", "the", "that")  # a token each, behind a space


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with labeling(f"sqlite:///{tmp_path}/labeling.sqlite") as running:
        yield running


def compared(number: int) -> pb.LabelTask:
    """Two answers of equal length, of which labelers prefer the one with more good words."""
    rng = random.Random(number)
    answers = []
    for good in rng.sample(range(5), 2):
        words = [*rng.choices(GOOD, k=good), *rng.choices(BAD, k=4 - good)]
        answers.append(" ".join(["It", *rng.sample(words, 4)]))
    return pb.LabelTask(task_key=f"t{number}", prompt=f"say something {number}", answers=answers)


def goodness(answer: str) -> int:
    return sum(word in GOOD for word in answer.split())


def compare(person: Person, project: str, *, most: int = 10_000) -> int:
    """What a labeler prefers, until nothing is left."""
    for count in range(most):
        if not (given := person.next(project)):
            return count
        places = sorted(range(len(given["answers"])), key=lambda place: -goodness(given["answers"][place]))
        answer = person.submit(given, {"ranking": [[place] for place in places]})
        assert answer.status_code == 200, answer.text
    return most


def spec_of(folder: Path, model: Path, target: str, **fields: Any) -> RunSpec:
    section = {
        "initial_model": "base",
        "rankings": "labeling:p",
        "demonstrations": None,
        "held_out_fraction": 0.25,
        "batch_size": 8,
        "epochs": 2,
        "optimizer": {"learning_rate": 3e-3},
        "micro_batch_tokens": 1024,
        "checkpoint_every": 1,
        "bootstrap_samples": 100,
    }
    return RunSpec.model_validate(
        {
            "name": "r",
            "directory": folder / "run",
            "model": str(model),
            "stages": ["reward_model"],
            "threads": 1,
            "tensorboard": False,
            "services": {"labeling": {"addresses": [target]}, "start_timeout_s": 1, "patience_s": 1},
            "reward_model": section,
            **fields,
        }
    )


@pytest.mark.timeout(300)
def test_what_people_prefer_becomes_a_reward_model_without_leaving_the_platform(
    tmp_path: Path, llama_folder: Path
) -> None:
    replicas = {"weights": 0, "generation": 0, "reward": 0, "reference": 0, "trainer": 0, "labeling": 1}
    directory = tmp_path / "run"
    with LocalServices(tmp_path / "up", replicas=replicas):
        (replica,) = read_endpoints(tmp_path / "up")["labeling"]
        with Client(replica["grpc"], timeout_s=30) as program:
            program_of(program)
            people = [Person(f"http://{replica['http']}", name) for name in ("ann", "cat", "bob")]
            shares = [compare(person, "p", most=most) for person, most in zip(people, (160, 120, 160), strict=True)]
            assert shares == [160, 120, 40]
            for person in people:
                person.close()
        spec = spec_of(tmp_path, llama_folder, "unused:1").model_dump(mode="json")
        file = tmp_path / "spec.yaml"
        file.write_text(yaml.safe_dump({**spec, "services": None}))
        command = [
            sys.executable,
            "-m",
            "trimtab",
            "run",
            str(file),
            "--endpoints",
            str(tmp_path / "up/endpoints.json"),
        ]
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((directory / "labels/p.json").read_text())
    rows = (directory / "labels/p.jsonl").read_bytes()
    assert (record["kind"], record["rows"], record["tasks"]) == ("compare", 160, 160)
    assert hashlib.sha256(rows).hexdigest() == record["sha256"]
    assert record["sha256"] in (directory / "events.jsonl").read_text()
    result = read_outcome(directory).results["reward_model"]
    # a model that had learnt nothing would be right in half of the pairs, as one is that knows their lengths only
    assert result.metrics["accuracy_low"] > 0.6 and result.metrics["longer_wins"] == 0.5, result.metrics
    assert result.details["accuracy_by_group"]["heldout"]["low"] > 0.6, result.details


def program_of(program: Client) -> None:
    """A project to compare answers, two labels each, and three people, one of whom no model learns from."""
    project = pb.Project(name="p", kind=pb.TASK_KIND_COMPARE, overlap=2, held_out_group="")
    program.create_project(pb.CreateProjectRequest(project=project))
    tasks = [compared(number) for number in range(160)]
    program.import_tasks([pb.ImportTasksRequest(project="p", import_id="i", tasks=tasks)])
    for name, group in (("ann", ""), ("bob", ""), ("cat", "heldout")):
        account = pb.CreateAccountRequest(name=name, password=PASSWORD, role=pb.ACCOUNT_ROLE_LABELER, group=group)
        program.create_account(account)


def test_a_resumed_run_trains_on_the_rows_that_it_began_with(tmp_path: Path, llama_folder: Path, go: Go) -> None:
    with labeling(f"sqlite:///{tmp_path}/labeling.sqlite") as service:
        service.project(kind=pb.TASK_KIND_COMPARE, undo_ms=0)
        service.add(*(compared(number) for number in range(60)))
        ann = service.person("ann")
        compare(ann, "p", most=40)
        spec = spec_of(tmp_path, llama_folder, service.server.target)
        assert go(spec, stop_after=1).state == "STOPPED"
        rows = (spec.directory / "labels/p.jsonl").read_bytes()
        assert len(rows.splitlines()) == 40 and compare(ann, "p") == 20
    outcome = go(spec, resume=True)  # asks nobody: the service is gone
    assert outcome.state == "SUCCEEDED" and (spec.directory / "labels/p.jsonl").read_bytes() == rows
    metrics = outcome.results["reward_model"].metrics
    assert metrics["rankings"] + metrics["rankings_held_out"] == 40


def test_a_run_that_began_without_labels_gets_them_when_it_begins_again(
    service: Service, tmp_path: Path, llama_folder: Path, go: Go
) -> None:
    service.project(kind=pb.TASK_KIND_COMPARE, undo_ms=0)
    service.add(*(compared(number) for number in range(40)))
    spec = spec_of(tmp_path, llama_folder, service.server.target)
    with pytest.raises(DataError, match="none of its 40 tasks has all of its labels; it has 0 labels"):
        go(spec)
    compare(service.person("ann"), "p")
    assert go(spec).results["reward_model"].metrics["rankings"] > 20


def test_a_copy_that_was_changed_is_refused(service: Service, tmp_path: Path, llama_folder: Path) -> None:
    service.project(kind=pb.TASK_KIND_COMPARE, undo_ms=0)
    service.add(compared(0))
    compare(service.person("ann"), "p")
    spec = spec_of(tmp_path, llama_folder, service.server.target)
    told: list[str] = []
    copy_labels(spec, tell=told.append)
    copy_labels(spec, tell=told.append)
    assert len(told) == 1 and told[0].startswith("reward_model.rankings is a copy of 1 rows of labeling project p, ")
    with (spec.directory / "labels/p.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(CorruptData, match="is not the copy that the run made") as caught:
        copy_labels(spec, tell=told.append)
    assert caught.value.field == "reward_model.rankings"


def test_labels_that_can_be_taken_back_are_not_taken(service: Service, tmp_path: Path, llama_folder: Path) -> None:
    service.project(kind=pb.TASK_KIND_COMPARE, undo_ms=60_000)
    service.add(compared(0))
    compare(service.person("ann"), "p")
    spec = spec_of(tmp_path, llama_folder, service.server.target)
    with pytest.raises(DataError, match="labels of its 1 finished tasks can still be taken back, for up to 60 s"):
        copy_labels(spec, tell=print)
    assert not (spec.directory / "labels").exists()


def test_a_held_out_label_that_has_just_come_takes_no_task_from_a_run(service: Service) -> None:
    service.project(kind=pb.TASK_KIND_COMPARE, undo_ms=60_000)
    service.add(*(compared(number) for number in range(3)))
    compare(service.person("ann"), "p")
    opened = Database(service.server.server.runtime.config.database.get_secret_value())
    with opened.changing() as connection:
        connection.execute(sa.text("UPDATE assignments SET done_time = done_time - 3600"))
        connection.execute(sa.text("UPDATE tasks SET finish_time = finish_time - 3600"))
    opened.close()
    compare(service.person("hal", group="heldout"), "p", most=2)
    rows = _Rows()
    for _ in range(2):  # a second try goes on with the last whole task
        rows.take(service.program, "p", timeout_s=60)
        assert {key: len(lines) for key, lines in rows.by_task.items()} == dict.fromkeys(rows.by_task, 1)
        assert len(rows.by_task) == 3
        assert [label["labeler"] for line in rows.lines for label in json.loads(line)["labels"]] == ["ann"] * 3


def test_the_project_and_its_kind_are_named(service: Service, tmp_path: Path, llama_folder: Path) -> None:
    service.project("d", kind=pb.TASK_KIND_DEMONSTRATE)
    spec = spec_of(tmp_path, llama_folder, service.server.target)
    with pytest.raises(TrimtabError, match="reward_model.rankings: labeling at .* no project 'p'"):
        copy_labels(spec, tell=print)
    section = {**spec.reward_model.model_dump(), "rankings": "labeling:d"}
    with pytest.raises(ConfigError, match="labeling project d is of kind demonstrate; allowed here: rank and compare"):
        copy_labels(spec_of(tmp_path, llama_folder, service.server.target, reward_model=section), tell=print)


def check(folder: Path, spec: RunSpec) -> str:
    """What `trimtab run --check` prints of a spec."""
    (file := folder / "spec.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    return CliRunner().invoke(run_command, [str(file), "--check"], catch_exceptions=False).output


def test_a_check_counts_the_rows_that_a_run_would_copy_and_writes_nothing(
    service: Service, tmp_path: Path, llama_folder: Path
) -> None:
    service.project(kind=pb.TASK_KIND_COMPARE, undo_ms=0, overlap=2)
    service.add(*(compared(number) for number in range(7)))
    spec = spec_of(tmp_path, llama_folder, service.server.target)
    with pytest.raises(DataError, match="project p has no rows yet: none of its 7 tasks has all of its labels"):
        check(tmp_path, spec)
    compare(service.person("ann"), "p")
    compare(service.person("bob"), "p", most=5)
    said = check(tmp_path, spec)
    assert "reward_model.rankings: labeling project p, of kind compare, has 5 rows of 5 tasks\n" in said
    assert "all good: reward_model" in said and not spec.directory.exists()
    copy_labels(spec, tell=print)
    compare(service.person("cat"), "p")
    assert "reward_model.rankings: 5 rows of labeling project p, copied when the run began" in check(tmp_path, spec)


def test_a_check_names_the_project_its_kind_and_the_service_that_is_silent(
    service: Service, tmp_path: Path, llama_folder: Path
) -> None:
    service.project("d", kind=pb.TASK_KIND_DEMONSTRATE)
    spec = spec_of(tmp_path, llama_folder, service.server.target)
    with pytest.raises(NotFound, match="reward_model.rankings: labeling at .* no project 'p'"):
        check(tmp_path, spec)
    section = {**spec.reward_model.model_dump(), "rankings": "labeling:d"}
    with pytest.raises(ConfigError, match="labeling project d is of kind demonstrate; allowed here: rank and compare"):
        check(tmp_path, spec_of(tmp_path, llama_folder, service.server.target, reward_model=section))
    began = time.monotonic()
    with pytest.raises(Unavailable, match="reward_model.rankings: the labeling service does not answer for 1 s"):
        check(tmp_path, spec_of(tmp_path, llama_folder, "127.0.0.1:1"))
    assert time.monotonic() - began < 15


def test_a_service_that_does_not_answer_is_waited_for_no_longer_than_the_spec_says(
    tmp_path: Path, llama_folder: Path
) -> None:
    began, told = time.monotonic(), []
    with pytest.raises(Unavailable, match="the labeling service does not answer for 1 s") as caught:
        copy_labels(spec_of(tmp_path, llama_folder, "127.0.0.1:1"), tell=told.append)
    assert caught.value.field == "services.labeling" and time.monotonic() - began < 15
    assert len(told) == 1 and told[0].startswith("waits for the labeling service: ")


def test_a_run_that_waits_for_the_service_can_be_stopped(tmp_path: Path, llama_folder: Path) -> None:
    services = {"labeling": {"addresses": ["127.0.0.1:1"]}, "start_timeout_s": 100}
    spec = spec_of(tmp_path, llama_folder, "", services=services)
    orders = Orders()
    orders.stop()
    assert run(spec, orders=orders).state == "STOPPED"


def test_a_copy_goes_on_where_its_connection_was_cut(service: Service, tmp_path: Path, llama_folder: Path) -> None:
    service.project("d", kind=pb.TASK_KIND_DEMONSTRATE, overlap=2, held_out_group="", undo_ms=0)
    service.add(*(pb.LabelTask(task_key=f"t{n}", prompt=f"Q{n}") for n in range(30)), project="d")
    for person in (service.person("ann"), service.person("bob", group="heldout")):
        while given := person.next("d"):
            assert person.submit(given, {"completion": f"{person.name} {'word ' * 1000}"}).status_code == 200
    port = int(service.server.target.rpartition(":")[2])
    with link_to(port) as link:
        link.most_bytes, link.cuts = 120_000, True
        told: list[str] = []

        def tell(text: str) -> None:
            told.append(text)
            link.most_bytes = None

        section = {"demonstrations": "labeling:d", "pretraining": None, "rl_init": None}
        spec = spec_of(tmp_path, llama_folder, f"127.0.0.1:{link.port}", stages=["sft"], sft=section)
        copy_labels(spec, tell=tell)
    assert len(told) == 2 and told[0].startswith("waits for the labeling service: ")
    rows = [json.loads(line) for line in (spec.directory / "labels/d.jsonl").read_text().splitlines()]
    assert [(row["task_key"], row["labeler"]) for row in rows] == [
        (f"t{n}", name) for n in range(30) for name in ("ann", "bob")
    ]
    assert {row.group for row in read_demonstrations(spec.directory / "labels/d.jsonl")} == {"", "heldout"}


def test_the_token_of_the_run_is_asked_for_its_scope_over_tls(tmp_path: Path, llama_folder: Path) -> None:
    tokens = tmp_path / "tokens.yaml"
    scopes = {"a": ["label"], "b": ["runs"], "c": ["label.read"]}  # the last is what the chart gives to runs
    table = {20 * name: {"name": name, "scopes": one} for name, one in scopes.items()}
    tokens.write_text(yaml.safe_dump(table))
    mine = tmp_path / "token"
    mine.write_text("b" * 20)
    pair = make_pair(tmp_path, "labeling")
    tls = {"certificate_file": pair.certificate, "key_file": pair.key}
    with labeling(f"sqlite:///{tmp_path}/labeling.sqlite", tokens_file=tokens, tls=tls) as service:
        address = {"addresses": [service.server.target]}
        services = {"labeling": address, "token_file": mine, "tls": {"ca_file": pair.certificate}}
        spec = spec_of(tmp_path, llama_folder, "", services=services)
        with pytest.raises(PermissionDenied, match="reward_model.rankings: labeling at .* lacks scope"):
            copy_labels(spec, tell=print)
        with pytest.raises(PermissionDenied, match="reward_model.rankings: labeling at .* lacks scope 'label.read'"):
            check(tmp_path, spec)
        mine.write_text("c" * 20)
        with Client(service.server.target, token="a" * 20, tls=TLSConfig(pair.certificate)) as program:
            project = pb.Project(name="p", kind=pb.TASK_KIND_COMPARE)
            program.create_project(pb.CreateProjectRequest(project=project))
        with pytest.raises(DataError, match="none of its 0 tasks"):
            copy_labels(spec, tell=print)
        with pytest.raises(DataError, match="none of its 0 tasks"):
            check(tmp_path, spec)


def test_labels_of_held_out_labelers_measure_and_are_not_learnt(
    service: Service, tmp_path: Path, llama_folder: Path, go: Go
) -> None:
    service.project(kind=pb.TASK_KIND_COMPARE, held_out_group="", undo_ms=0)
    service.add(*(compared(number) for number in range(60)))
    compare(service.person("cat", group="heldout"), "p", most=15)
    compare(service.person("ann"), "p")
    spec = spec_of(tmp_path, llama_folder, service.server.target)
    section = {**spec.reward_model.model_dump(), "held_out_fraction": 0.0}
    outcome = go(spec_of(tmp_path, llama_folder, service.server.target, reward_model=section))
    metrics, details = (getattr(outcome.results["reward_model"], name) for name in ("metrics", "details"))
    assert (metrics["rankings"], metrics["rankings_held_out"]) == (45, 15)
    assert set(details["accuracy_by_group"]) == {"heldout"}
    write_report(spec.directory)
    page = (spec.directory / "report.html").read_text()
    assert page.index("labelers learnt from</td>") < page.index("no pair held out") < page.index("heldout</td>")
    theirs = [row for row in read_rankings(spec.directory / "labels/p.jsonl") if row.labelings[0].group == "heldout"]
    assert len(theirs) == 15
