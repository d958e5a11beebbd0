"""The logs of runs in pods, followed to their last line, and runs deleted with all that is theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launching import Namespace, report, start, template, trainer, wait_for, wait_state, why_failed
from trimtab.errors import FailedPrecondition
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.launchers.cluster import ROLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SLEEP = "trap 'exit 130' TERM; sleep 600 & wait"


def of_run(listed: Any, run: str) -> list[str]:
    return [one.metadata.name for one in listed.items if (one.metadata.labels or {}).get("trimtab.dev/run") == run]


def test_a_log_is_followed_to_its_last_line(namespace: Namespace, tmp_path: Path) -> None:
    """100,000 lines near the end; a container runtime may lose what is written in its very last moment."""
    script = "echo begins; sleep 3; seq 100000; sleep 2; exit 3"
    with trainer(namespace, tmp_path, template(script, claim=True)) as (_, service):
        log = Path(start(service, "chatty").directory) / "run.log"
        request = pb.WatchRunLogRequest(name="chatty", follow=True)
        told = b"".join(piece.data for piece in service.watch_run_log(request, timeout_s=120))
        assert "exit code 3" in why_failed(service, "chatty")
    assert told == log.read_bytes()
    assert told.decode().splitlines() == ["begins", *map(str, range(1, 100_001))]


def test_a_deleted_run_leaves_nothing(namespace: Namespace, tmp_path: Path) -> None:
    namespace.allow(ROLE)
    core, batch = namespace.core, namespace.batch
    with trainer(namespace, tmp_path, template(SLEEP, claim=True)) as (_, service):
        run = start(service, "old")
        namespace.running_pod("old")
        report(service, "old", pb.RunEvent(sequence=1, stage="sft", step=1, step_done=pb.StepDone(total_steps=9)))
        with pytest.raises(FailedPrecondition, match="'old' is RUNNING; only one that has ended can be deleted"):
            service.delete_run(pb.DeleteRunRequest(name="old"))
        assert of_run(batch.list_namespaced_job(namespace.name), "old")
        service.stop_run(pb.StopRunRequest(name="old"))
        wait_state(service, "old", pb.RUN_STATE_STOPPED)
        assert of_run(core.list_namespaced_persistent_volume_claim(namespace.name), "old")
        gone = service.delete_run(pb.DeleteRunRequest(name="old"), timeout_s=120)
        assert gone.deleted and gone.freed_claim_bytes == 2**20 and not gone.left
        for listed in (
            batch.list_namespaced_job(namespace.name),
            core.list_namespaced_persistent_volume_claim(namespace.name),
        ):
            assert not of_run(listed, "old")
        wait_for(lambda: not of_run(core.list_namespaced_config_map(namespace.name), "old"))
        assert not namespace.pods("old") and not Path(run.directory).exists()
        assert not service.delete_run(pb.DeleteRunRequest(name="old")).deleted


def test_a_folder_on_a_shared_claim_is_named(namespace: Namespace, tmp_path: Path) -> None:
    wanted = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    namespace.core.create_namespaced_persistent_volume_claim(
        namespace.name, {"metadata": {"name": "runs"}, "spec": wanted}
    )
    with trainer(namespace, tmp_path, template("exit 3")) as (_, service):
        start(service, "sharing")
        why_failed(service, "sharing")
        gone = service.delete_run(pb.DeleteRunRequest(name="sharing"), timeout_s=120)
    assert gone.deleted and not gone.freed_claim_bytes
    assert gone.left == (
        f"folder /var/lib/trimtab/runs/sharing on PersistentVolumeClaim {namespace.name}/runs, which runs share: only "
        "a pod that mounts it can remove it"
    )
