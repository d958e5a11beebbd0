"""`trimtab labeling export --follow`, stopped by Ctrl-C and called again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from trimtab.v1 import labeling_pb2 as pb

from .people import Service, labeling

# A shell's background jobs, and so their children, do not hear of Ctrl-C by default.
EXPORT = ["env", "--default-signal=INT", sys.executable, "-m", "trimtab", "labeling", "export"]


def label(service: Service, names: tuple[str, ...], numbers: range) -> None:
    """Tasks of two demonstrations each."""
    service.add(*(pb.LabelTask(task_key=str(number), prompt=f"Q{number}") for number in numbers))
    for name in names:
        person = service.person(name)
        while given := person.next("p"):
            assert person.submit(given, {"completion": f"{name} on {given['prompt']}"}).status_code == 200


def follow(target: str, path: Path, rows: int) -> str:
    """Follows until the file has so many rows, then Ctrl-C; what was told."""
    command = [*EXPORT, "p", str(path), "--follow", "--target", target]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    give_up = time.monotonic() + 60
    while not path.exists() or len(path.read_text().splitlines()) < rows:
        assert process.poll() is None and time.monotonic() < give_up
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=30)[1]


def test_an_export_that_follows_is_stopped_and_goes_on_with_every_row_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with labeling(f"sqlite:///{tmp_path}/a.sqlite") as service:
        service.project(kind=pb.TASK_KIND_DEMONSTRATE, overlap=2, undo_ms=0)
        label(service, ("ann", "bob"), range(2))
        assert "4 rows, the last of sequence 2" in follow(service.server.target, path, rows=4)
        label(service, ("cat", "dan"), range(2, 4))
        assert "the last of sequence 4" in follow(service.server.target, path, rows=8)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["completion"] for row in rows] == [
            *(f"{name} on Q{number}" for number in (0, 1) for name in ("ann", "bob")),
            *(f"{name} on Q{number}" for number in (2, 3) for name in ("cat", "dan")),
        ]


def test_what_follows_to_standard_output_is_told_at_ctrl_c(tmp_path: Path) -> None:
    with labeling(f"sqlite:///{tmp_path}/a.sqlite") as service:
        service.project(kind=pb.TASK_KIND_DEMONSTRATE, undo_ms=3000)
        label(service, ("ann",), range(3))
        target = service.server.target
        command = [*EXPORT, "p", "-", "--follow", "--target", target]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline())["prompt"] for _ in range(3)] == ["Q0", "Q1", "Q2"]
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=30)[1].split("\n")
        assert told[0] == "a finished task comes when its labels can no longer be taken back, after 3 s"
        assert "3 rows, the last of sequence 3" in told


def test_who_follows_is_told_how_many_tasks_wait_until_nothing_can_be_taken_back(tmp_path: Path) -> None:
    with labeling(f"sqlite:///{tmp_path}/a.sqlite", sign_of_life_s=5.0) as service:
        service.project(kind=pb.TASK_KIND_DEMONSTRATE, undo_ms=60_000)
        label(service, ("ann",), range(3))
        service.program.withdraw_tasks(pb.WithdrawTasksRequest(project="p", task_keys=["1"]))
        responses = service.program.export_labels(pb.ExportLabelsRequest(project="p", follow=True), timeout_s=60)
        first = next(responses)
        assert (first.row_json, first.unsettled_tasks) == ("", 2)
        service.program.update_project(pb.UpdateProjectRequest(name="p", undo_ms=0))
        seen = [next(responses) for _ in range(3)]
        assert [(one.task_key, one.unsettled_tasks) for one in seen] == [("0", 0), ("2", 0), ("", 0)]
        responses.close()
        request = pb.ExportLabelsRequest(project="p", follow=True, after_sequence=1)
        responses = service.program.export_labels(request, timeout_s=60)
        assert next(responses).task_key == "2"
        begin = time.monotonic()
        assert next(responses).row_json == "" and time.monotonic() - begin < 4.5  # at once, not after sign_of_life_s
        responses.close()
        service.program.update_project(pb.UpdateProjectRequest(name="p", undo_ms=60_000))
        command = [*EXPORT, "p", str(tmp_path / "rows"), "--follow", "--target", service.server.target]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        process.stderr.readline()
        assert process.stderr.readline() == "2 finished tasks wait until their labels can no longer be taken back\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
