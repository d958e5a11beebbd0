"""What the chart writes is what the services read: the configuration of each through its own class, the run's spec."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

from helm.rendering import CHART, VALUES_FILES, render, run_template
from trimtab.local import CHANNELS
from trimtab_services.generation.config import GenerationConfig
from trimtab_services.labeling.config import LabelingServiceConfig
from trimtab_services.reward.config import RewardConfig
from trimtab_services.runtime.auth import TokenTable
from trimtab_services.runtime.config import FrozenModelConfig, load_config
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.trainer.launchers.template import RunTemplate
from trimtab_services.weights.config import WeightsServiceConfig
from trimtab_trainer.config import load_run_spec

CLASSES = {
    "generation": GenerationConfig,
    "reward": RewardConfig,
    "reference": FrozenModelConfig,
    "weights": WeightsServiceConfig,
    "trainer": TrainerServiceConfig,
    "labeling": LabelingServiceConfig,
}

SECRET = "postgresql://labels:secret@database/labels"
"""Stands for what is in a Secret that the chart does not make."""


@pytest.mark.parametrize("name", VALUES_FILES)
def test_configurations_load(name: str, tmp_path: Path) -> None:
    manifests = render(name)
    for deployment, one in manifests.of("Deployment").items():
        component = one["metadata"]["labels"]["app.kubernetes.io/component"]
        folder = tmp_path / component
        folder.mkdir()
        text = manifests["ConfigMap", deployment]["data"][f"{component}.yaml"]
        pod = one["spec"]["template"]
        config = load_config(CLASSES[component], component, mounted(folder, text, pod), environment=environment(pod))
        assert (config.grpc_port, config.health_port, config.http_port, config.metrics_port) == (
            50051,
            50052,
            8080,
            9090,
        )
        if component in CHANNELS and config.weights is not None:
            assert config.weights.channel == CHANNELS[component], "the channel that runs publish to"
        if component == "labeling":
            file = "sqlite:////var/lib/trimtab/labeling.sqlite"
            assert config.database.get_secret_value() == (SECRET if name == "labeling-postgresql" else file)


def environment(pod: dict[str, Any]) -> dict[str, str]:
    """Variables of the service's container; what comes from a Secret is `SECRET`."""
    return {one["name"]: one.get("value", SECRET) for one in pod["spec"]["containers"][0]["env"]}


def mounted(folder: Path, config: str, pod: dict[str, Any]) -> Path:
    """The config file, with every file of /etc that it names put into a folder, as the pod's mounts put it into /etc.

    A path that no volume is mounted at is left alone, so that loading it fails.
    """
    mounts = [mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]]

    def moved(found: re.Match[str]) -> str:
        path = found[0]
        if not any(path.startswith(f"{mount}/") for mount in mounts):
            return path
        here = folder / path.strip("/")
        here.parent.mkdir(parents=True, exist_ok=True)
        here.write_text("a: {name: a, scopes: []}\n")
        return str(here)

    file = folder / "config.yaml"
    file.write_text(re.sub(r"/etc/trimtab[\w./-]*", moved, config))
    return file


@pytest.mark.parametrize("name", VALUES_FILES)
def test_tokens_files_load(name: str, tmp_path: Path) -> None:
    secret = render(name).of("Secret").get("rl-trimtab-tokens", {"data": {}})
    for key, content in secret["data"].items():
        (tmp_path / key).write_bytes(base64.b64decode(content))
        TokenTable(tmp_path / key)


def test_every_caller_has_a_token_that_its_services_know(tmp_path: Path) -> None:
    manifests = render({})
    tokens = {
        caller: base64.b64decode(manifests["Secret", f"rl-trimtab-token-{caller}"]["data"]["token"]).decode()
        for caller in ("run", "replica", "client")
    }
    assert len(set(tokens.values())) == 3 and all(len(token) == 40 for token in tokens.values())
    file = tmp_path / "weights.yaml"
    file.write_bytes(base64.b64decode(manifests["Secret", "rl-trimtab-tokens"]["data"]["weights.yaml"]))
    table = TokenTable(file)
    scopes = {caller: table.identify(f"Bearer {token}").scopes for caller, token in tokens.items()}
    assert scopes == {
        "run": {"weights.read", "weights.publish"},
        "replica": {"weights.read"},
        "client": {"weights.read"},
    }


@pytest.mark.parametrize("name", VALUES_FILES)
def test_a_run_finds_the_services(name: str, tmp_path: Path) -> None:
    """The arguments of the run's container put the services of this release into any spec."""
    manifests = render(name)
    for job in run_template(manifests).of("Job").values():
        arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
        assert arguments[:2] == ["run", "/etc/trimtab-run/spec.yaml"]
        overrides = [argument.removeprefix("--set=") for argument in arguments if argument.startswith("--set=")]
        file = tmp_path / "spec.yaml"
        file.write_text((CHART / "files" / "helm_test.yaml").read_text())
        services = load_run_spec(file, overrides).services
        assert services is not None and services.weights is not None
        named = {s: getattr(services, s).server_name.partition(".")[0] for s in ("generation", "reward", "reference")}
        named["weights"] = services.weights.addresses[0].partition(".")[0]
        if services.labeling is not None:
            named["labeling"] = services.labeling.addresses[0].partition(".")[0]
        assert (services.labeling is not None) == ("rl-trimtab-labeling" in manifests.of("Service"))
        assert set(named.values()) <= manifests.of("Service").keys()
        assert bool(services.token_file) == bool([a for a in arguments if a.startswith("--report-token-file=")])


@pytest.mark.parametrize("name", VALUES_FILES)
def test_the_launcher_takes_the_template_of_runs(name: str, tmp_path: Path) -> None:
    maps = [one for key, one in render(name).of("ConfigMap").items() if key.endswith("-run-template")]
    for one in maps:
        file = tmp_path / "template.yaml"
        file.write_text(one["data"]["template.yaml"])
        template = RunTemplate.read(file)
        template.check_name("helm-test-1234567890")
        job = template.job_of("a", config_map="spec-a", resume=True, resumes=1)
        pod = job["spec"]["template"]["spec"]
        assert pod["containers"][0]["args"][-5:] == ["--dir", "/var/lib/trimtab/runs/a", "--name", "a", "--resume"]
        (claim,) = (v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if v["name"] == "runs")
        assert claim == ("shared-runs" if name == "shared-runs" else template.claim_name("a"))
