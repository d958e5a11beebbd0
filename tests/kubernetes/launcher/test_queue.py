"""Jobs of a Kueue queue. Kueue itself is not here: the test suspends Jobs and lets them go as its controller does, by
`spec.suspend`, and the Job controller that acts on it is the real one."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from launching import Namespace, get, report, start, template, trainer, wait_for, wait_state, why_failed
from trimtab.v1 import trainer_pb2 as pb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

QUEUE = "kueue.x-k8s.io/queue-name"
WORK = "echo \"args: $*\"; trap 'echo saved; exit 130' TERM; sleep 600 & wait"


def queued(script: str = WORK, **pod: Any) -> str:
    """A run template as the chart makes it with a queue."""
    job, *others = yaml.safe_load_all(template(script, claim=True, **pod))
    job["metadata"]["labels"] = {QUEUE: "team-a"}
    job["spec"]["suspend"] = True
    return yaml.safe_dump_all([job, *others])


def suspend(namespace: Namespace, run: str, value: bool) -> None:
    namespace.batch.patch_namespaced_job(f"t-{run}", namespace.name, {"spec": {"suspend": value}})


def job(namespace: Namespace, run: str) -> Any:
    return namespace.batch.read_namespaced_job(f"t-{run}", namespace.name)


def begin(service: Any, run: str) -> None:
    """Reports a first step, as the run does that works now."""
    report(service, run, pb.RunEvent(sequence=1, stage="sft", step=1, step_done=pb.StepDone(total_steps=9)))
    wait_state(service, run, pb.RUN_STATE_RUNNING)


def test_a_run_waits_for_admission_as_long_as_it_takes(
    namespace: Namespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with trainer(namespace, tmp_path, queued(), start_timeout_s=4) as (_, service):
        run = start(service, "patient")
        found = job(namespace, "patient")
        assert found.spec.suspend and found.metadata.labels[QUEUE] == "team-a"
        time.sleep(9)  # twice the time that a run gets to report
        assert get(service, "patient").state == pb.RUN_STATE_STARTING and not namespace.pods("patient")
        waits = [one.__dict__["why"] for one in caplog.records if one.getMessage() == "run waits in a queue"]
        says = "is suspended: it waits for admission by queue 'team-a'"
        assert waits == [f"Job {namespace.name}/t-patient {says}"]
        suspend(namespace, "patient", False)
        namespace.running_pod("patient")
        begin(service, "patient")
        log = Path(run.directory) / "run.log"
        wait_for(lambda: log.exists() and "args: " in log.read_text())
        assert "--resume" not in log.read_text()
        service.stop_run(pb.StopRunRequest(name="patient"))
        wait_state(service, "patient", pb.RUN_STATE_STOPPED)


def test_an_admitted_run_has_to_report_in_time(namespace: Namespace, tmp_path: Path) -> None:
    with trainer(namespace, tmp_path, queued(), start_timeout_s=4) as (_, service):
        start(service, "mute")
        suspend(namespace, "mute", False)
        assert "did not report within 4 s" in why_failed(service, "mute")


def test_a_run_that_is_stopped_while_it_waits(namespace: Namespace, tmp_path: Path) -> None:
    with trainer(namespace, tmp_path, queued()) as (_, service):
        start(service, "unloved")
        service.stop_run(pb.StopRunRequest(name="unloved"))
        wait_state(service, "unloved", pb.RUN_STATE_STOPPED)
        wait_for(lambda: "t-unloved" not in namespace.jobs())


def test_a_run_that_kueue_preempts_waits_again_and_resumes(namespace: Namespace, tmp_path: Path) -> None:
    """More often than `resumes` allows for disruptions that are nobody's plan."""
    with trainer(namespace, tmp_path, queued(), resumes=0, start_timeout_s=30) as (_, service):
        run = start(service, "ousted")
        before = job(namespace, "ousted").metadata.uid
        suspend(namespace, "ousted", False)
        namespace.running_pod("ousted")
        begin(service, "ousted")
        log = Path(run.directory) / "run.log"
        for times in (1, 2):
            suspend(namespace, "ousted", True)
            wait_for(lambda before=before: is_new(namespace, "ousted", before), "a Job in the queue again")
            assert log.read_text().count("saved") == times
            before = job(namespace, "ousted").metadata.uid
            assert get(service, "ousted").state == pb.RUN_STATE_STARTING and not namespace.pods("ousted")
            suspend(namespace, "ousted", False)
            namespace.running_pod("ousted")
            wait_for(lambda times=times: log.read_text().count("--name ousted --resume") == times, log.read_text())
        service.stop_run(pb.StopRunRequest(name="ousted"))
        wait_state(service, "ousted", pb.RUN_STATE_STOPPED)


def is_new(namespace: Namespace, run: str, before: str) -> bool:
    if f"t-{run}" not in namespace.jobs():
        return False
    found = job(namespace, run)
    return bool(found.metadata.uid != before and found.spec.suspend)


def test_a_run_that_is_preempted_while_the_service_is_away(namespace: Namespace, tmp_path: Path) -> None:
    with trainer(namespace, tmp_path, queued()) as (_, service):
        start(service, "unseen")
        suspend(namespace, "unseen", False)
        namespace.running_pod("unseen")
        begin(service, "unseen")
    before = job(namespace, "unseen").metadata.uid
    suspend(namespace, "unseen", True)
    wait_for(lambda: not namespace.pods("unseen"))
    with trainer(namespace, tmp_path, queued()) as (_, service):
        wait_for(lambda: is_new(namespace, "unseen", before), "a Job in the queue again")
        found = job(namespace, "unseen")
        assert found.spec.template.spec.containers[0].args[-1] == "--resume"
        service.stop_run(pb.StopRunRequest(name="unseen"))
        wait_state(service, "unseen", pb.RUN_STATE_STOPPED)
