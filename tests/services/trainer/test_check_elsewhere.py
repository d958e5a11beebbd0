"""Specs of runs that work elsewhere: what the spec itself tells is checked at once, files are left to the run's pod."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab.errors import InvalidRequest
from trimtab_services.trainer.config import KubernetesLauncherConfig
from trimtab_services.trainer.launchers.kubernetes import KubernetesLauncher

SERVICES = {name: {"dns": f"rl-{name}:50051"} for name in ("generation", "reward", "reference", "weights")}
SPEC = {
    "name": "a",
    "directory": "unused",
    "model": "/models/x",
    "data_directory": "/data",
    "stages": ["sft", "reward_model", "ppo"],
}


def check(folder: Path, spec: dict[str, Any], *options: str) -> None:
    """Checks a spec as the launcher does whose template gives these options; no cluster is asked for it."""
    container = {"name": "run", "args": ["run", "/etc/trimtab-run/spec.yaml", *options]}
    volumes = [{"name": "spec", "configMap": {}}, {"name": "runs", "persistentVolumeClaim": {}}]
    pod = {"spec": {"containers": [container], "volumes": volumes}}
    (folder / "template.yaml").write_text(
        yaml.safe_dump({"kind": "Job", "metadata": {"name": "t"}, "spec": {"template": pod}})
    )
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    cluster = {"cluster": {"server": "https://127.0.0.1:9"}, "name": "c"}
    context = {"context": {"cluster": "c", "user": "u"}, "name": "c"}
    kubeconfig = {
        "clusters": [cluster],
        "contexts": [context],
        "current-context": "c",
        "users": [{"name": "u", "user": {}}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))

    async def connect_and_check() -> None:
        launcher = await KubernetesLauncher.connect(
            KubernetesLauncherConfig(
                kind="kubernetes",
                template_file=folder / "template.yaml",
                namespace="n",
                kubeconfig=folder / "kubeconfig",
            )
        )
        try:
            await launcher.check(folder / "spec.yaml")
        finally:
            await launcher.close()

    asyncio.run(connect_and_check())


def test_files_of_the_pod_are_not_looked_for_here(tmp_path: Path) -> None:
    check(tmp_path, SPEC, f"--set=services={json.dumps(SERVICES)}", "--report-token-file=/etc/token")


def test_what_the_spec_itself_tells_is_refused(tmp_path: Path) -> None:
    services = f"--set=services={json.dumps(SERVICES)}"
    with pytest.raises(InvalidRequest, match="spec_yaml: services: not set, but ppo work with services"):
        check(tmp_path, SPEC)
    with pytest.raises(InvalidRequest, match="spec_yaml: .*iteration"):
        check(tmp_path, {**SPEC, "ppo": {"iteration": 3}}, services)
    with pytest.raises(InvalidRequest, match="spec_yaml: .*stages"):
        check(tmp_path, {**SPEC, "stages": ["pop"]}, services)
