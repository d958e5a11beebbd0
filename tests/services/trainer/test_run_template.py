"""The template of runs: what is refused, and what the launcher sets in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab.errors import ConfigError, InvalidRequest
from trimtab_services.runtime.config import load_config
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.trainer.launchers.template import RunTemplate

JOB: dict[str, Any] = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "release-run", "labels": {"app.kubernetes.io/component": "run"}},
    "spec": {
        "ttlSecondsAfterFinished": 600,
        "template": {
            "spec": {
                "containers": [{"name": "side"}, {"name": "run", "args": ["run", "/etc/trimtab-run/spec.yaml"]}],
                "volumes": [
                    {"name": "spec", "configMap": {"name": "x"}},
                    {"name": "runs", "persistentVolumeClaim": {"claimName": "shared"}},
                ],
            }
        },
    },
}
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "release-run"},
    "spec": {"accessModes": ["ReadWriteOnce"]},
}


def read(directory: Path, *documents: object) -> RunTemplate:
    path = directory / "template.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return RunTemplate.read(path)


def without(*path: str | int) -> dict[str, Any]:
    job = yaml.safe_load(yaml.safe_dump(JOB))
    at = job
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return job


def test_what_is_set_and_what_is_left_alone(tmp_path: Path) -> None:
    template = read(tmp_path, JOB, CLAIM)
    job = template.job_of("a", config_map="release-run-a-1234", resume=True, resumes=2, goes_on=True)
    assert job["metadata"] == {
        "name": "release-run-a",
        "labels": {"app.kubernetes.io/component": "run", "trimtab.dev/run": "a"},
        "annotations": {"trimtab.dev/resumes": "2", "trimtab.dev/goes-on": "true"},
    }
    assert job["spec"]["backoffLimit"] == 0 and job["spec"]["ttlSecondsAfterFinished"] == 600
    pod = job["spec"]["template"]
    assert pod["metadata"]["labels"] == {"trimtab.dev/run": "a"} and pod["spec"]["restartPolicy"] == "Never"
    side, run = pod["spec"]["containers"]
    assert "args" not in side
    assert run["args"][2:] == ["--dir", "/var/lib/trimtab/runs/a", "--name", "a", "--resume"]
    assert [volume.get("configMap") or volume["persistentVolumeClaim"] for volume in pod["spec"]["volumes"]] == [
        {"name": "release-run-a-1234"},
        {"claimName": "release-run-a"},
    ]
    claim = template.claim_of("a")
    assert claim is not None and claim["metadata"] == {"name": "release-run-a", "labels": {"trimtab.dev/run": "a"}}
    assert claim["spec"] == CLAIM["spec"]
    again = template.job_of("b", config_map="x", resume=False)
    assert again["metadata"]["annotations"] == {"trimtab.dev/resumes": "0", "trimtab.dev/goes-on": "false"}
    assert template.shared_claim is None
    assert again["spec"]["template"]["spec"]["containers"][1]["args"][-1] == "b"


def test_a_shared_claim_stays_the_one_of_the_template(tmp_path: Path) -> None:
    template = read(tmp_path, JOB)
    job = template.job_of("a", config_map="x", resume=False)
    assert job["spec"]["template"]["spec"]["volumes"][1] == {
        "name": "runs",
        "persistentVolumeClaim": {"claimName": "shared"},
    }
    assert template.claim_of("a") is None and template.claim_name("a") is None
    assert template.shared_claim == "shared"


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ([CLAIM], "it has 0 Job documents; exactly one is allowed"),
        ([JOB, JOB], "it has 2 Job documents; exactly one is allowed"),
        ([JOB, CLAIM, CLAIM], "it has 2 PersistentVolumeClaim documents; at most one is allowed"),
        ([JOB, {"kind": "Service"}], "a document of kind 'Service'; allowed are Job and PersistentVolumeClaim"),
        ([JOB, "text"], "a document of kind None"),
        ([without("metadata", "name")], "Job: metadata.name is missing"),
        (
            [without("spec", "template", "spec", "containers", 1)],
            "Job: its pod needs a container 'run' whose `args` begin",
        ),
        ([without("spec", "template", "spec", "containers", 1, "args")], "a container 'run' whose `args` begin with"),
        ([without("spec", "template", "spec", "volumes", 0)], "a volume 'spec' of type configMap"),
        ([without("spec", "template", "spec", "volumes", 1)], "a volume 'runs' of type persistentVolumeClaim"),
    ],
)
def test_a_wrong_template_is_refused(tmp_path: Path, documents: list[object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, *documents)
    assert words in caught.value.message
    assert caught.value.message.startswith(f"launcher.template_file: {tmp_path}/template.yaml: ")


def test_a_file_that_is_not_there_and_one_that_is_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        RunTemplate.read(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"launcher\.template_file: .*broken\.yaml: while parsing"):
        RunTemplate.read(tmp_path / "broken.yaml")


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a.b", "n" * 52])
def test_names_that_become_no_job(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"1\.\.51 lower-case letters") as caught:
        read(tmp_path, JOB).check_name(name)
    assert (caught.value.field, caught.value.limit) == ("name", "51")
    read(tmp_path, JOB).check_name("n" * 51)


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        ({"kind": "slurm"}, "launcher"),
        ({"kind": "kubernetes"}, "launcher.template_file"),
        ({"kind": "kubernetes", "template_file": "t.yaml", "resumes": -1}, "-1"),
        ({"kind": "local", "namespace": "x"}, "namespace"),
    ],
)
def test_a_wrong_launcher_configuration_names_its_key(tmp_path: Path, launcher: dict[str, Any], words: str) -> None:
    path = tmp_path / "trainer.yaml"
    path.write_text(yaml.safe_dump({"launcher": launcher}))
    with pytest.raises(ConfigError) as caught:
        load_config(TrainerServiceConfig, "trainer", path, environment={})
    assert words in caught.value.message and str(path) in caught.value.message, caught.value.message


def test_jobs_outlive_the_service(tmp_path: Path) -> None:
    path = tmp_path / "trainer.yaml"
    launcher = {"kind": "kubernetes", "template_file": "t.yaml"}
    path.write_text(yaml.safe_dump({"launcher": launcher, "stop_runs_on_drain": True}))
    with pytest.raises(ConfigError, match="`stop_runs_on_drain` is for `launcher.kind: local`"):
        load_config(TrainerServiceConfig, "trainer", path, environment={})


def test_the_last_rank_of_a_run_has_room_for_its_number(tmp_path: Path) -> None:
    job = yaml.safe_load(yaml.safe_dump(JOB))
    job["spec"] |= {"completionMode": "Indexed", "completions": 12, "parallelism": 12}
    template = read(tmp_path, job, CLAIM)
    longest = (63 - len("release-run-") - len("-11")) * "a"
    template.check_name(longest)
    with pytest.raises(InvalidRequest, match=f"must have 1..{len(longest)} lower-case"):
        template.check_name(longest + "a")
