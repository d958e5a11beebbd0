"""Files that a spec names are those of the run's pod; the TrainerService, which starts it, does not have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from launching import Namespace, get, start, template, trainer, wait_for, why_failed
from trimtab.v1 import trainer_pb2 as pb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MODEL = "/tmp/models/x"
MAKE_MODEL = f"mkdir -p {MODEL}; echo '{{}}' > {MODEL}/config.json; touch {MODEL}/model.safetensors; "
RUN = 'exec trimtab "$@"'
CHECK = 'trimtab "$@" --check && sleep 600'


def spec(data: str) -> str:
    """Of a run that names a model and a data set."""
    stages = {"stages": ["sft"], "sft": {"demonstrations": data, "pretraining": data}}
    return yaml.safe_dump({"name": "x", "directory": "unused", "model": MODEL, **stages})


def test_a_model_of_the_pod_alone(namespace: Namespace, tmp_path: Path) -> None:
    data = "/tmp/models/data.jsonl"
    with trainer(namespace, tmp_path, template(f"{MAKE_MODEL} touch {data}; {CHECK}", claim=True)) as (_, service):
        run = start(service, "found", spec(data))
        log = Path(run.directory) / "run.log"
        wait_for(lambda: log.exists() and "all good: sft" in log.read_text(), "the pod's own check")
        assert get(service, "found").state == pb.RUN_STATE_STARTING
        service.stop_run(pb.StopRunRequest(name="found"))


@pytest.mark.parametrize(
    ("prepare", "says"),
    [("", f"model: {MODEL}: no such folder"), (MAKE_MODEL, "sft.demonstrations: /absent/data.jsonl: no such file")],
)
def test_a_file_that_is_not_there(namespace: Namespace, tmp_path: Path, prepare: str, says: str) -> None:
    name = "no-model" if not prepare else "no-data"
    with trainer(namespace, tmp_path, template(prepare + RUN, claim=True)) as (_, service):
        start(service, name, spec("/absent/data.jsonl"))
        error = why_failed(service, name)
    assert f"ended with exit code 2: error: {says}" in error, error
