"""Runs that share one claim, with the smaller Role that the chart then gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from launching import Namespace, get, report, spec, start, template, trainer, wait_for, wait_state, why_failed
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.launchers.cluster import ROLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_runs_that_share_a_claim_need_no_right_to_claims(namespace: Namespace, tmp_path: Path) -> None:
    """A run that fails is started again with another spec, which takes its Job away, then stopped and resumed."""
    wanted = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    claim = {"metadata": {"name": "runs"}, "spec": wanted}
    namespace.core.create_namespaced_persistent_volume_claim(namespace.name, claim)
    namespace.allow({call for call in ROLE if call[2] != "persistentvolumeclaims"})
    script = "trap 'exit 130' TERM; grep -q 'seed: 7' /etc/trimtab-run/spec.yaml || exit 3; sleep 600 & wait"
    mended = yaml.safe_dump({**yaml.safe_load(spec()), "seed": 7})
    with trainer(namespace, tmp_path, template(script)) as (_, service):
        start(service, "shared")
        assert "exit code 3" in why_failed(service, "shared")
        start(service, "shared", mended)
        namespace.running_pod("shared")
        step = pb.RunEvent(sequence=1, stage="sft", step=1, step_done=pb.StepDone(total_steps=9))
        report(service, "shared", step)
        service.stop_run(pb.StopRunRequest(name="shared"))
        wait_state(service, "shared", pb.RUN_STATE_STOPPED)
        wait_for(lambda: not namespace.pods("shared"))
        service.resume_run(pb.ResumeRunRequest(name="shared"))
        namespace.running_pod("shared")
        service.stop_run(pb.StopRunRequest(name="shared"))
        wait_state(service, "shared", pb.RUN_STATE_STOPPED)
        assert not get(service, "shared").error
