"""The image built and run as a cluster runs it: not root, a read-only root file system, no capabilities, no network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CONFINED = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none", "--tmpfs=/tmp"]
DRAIN_S = 10

ASK_HEALTH = """
import sys, grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
with grpc.insecure_channel("127.0.0.1:50052") as channel:
    request = health_pb2.HealthCheckRequest(service=sys.argv[1])
    answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10, wait_for_ready=True)
print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
"""

# The first one builds the image, with torch to install where its layer is not cached.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def podman(*arguments: str | Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["podman", *arguments], capture_output=True, text=True, timeout=timeout_s)


def in_image(image: str, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of the image instead of trimtab, confined."""
    return podman("run", "--rm", *CONFINED, f"--entrypoint={command}", image, *arguments)


@pytest.fixture
def weights_service(image: str, tmp_path: Path) -> Iterator[str]:
    """The name of a container that runs `trimtab serve weights`."""
    tmp_path.chmod(0o755)
    config = tmp_path / "weights.yaml"
    config.write_text(yaml.safe_dump({"store": "/var/lib/trimtab/weights", "drain_s": DRAIN_S}))
    name = f"trimtab-test-{uuid.uuid4().hex[:8]}"
    started = podman(
        "run", "--detach", f"--name={name}", *CONFINED, "--volume=/var/lib/trimtab",
        f"--volume={tmp_path}:/etc/trimtab:ro", image, "serve", "weights", "--config", "/etc/trimtab/weights.yaml",
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    try:
        yield name
    finally:
        podman("rm", "--force", "--volumes", "--time=0", name)


def test_tells_its_version_and_has_it_as_a_label(image: str) -> None:
    told = podman("run", "--rm", *CONFINED, image, "--version")
    assert told.stdout == f"trimtab, version {VERSION}\n", told.stderr
    [found] = json.loads(podman("image", "inspect", image).stdout)
    assert found["Labels"]["org.opencontainers.image.version"] == VERSION
    assert found["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert f"localhost/trimtab:{VERSION}" in found["RepoTags"]  # podman's name of trimtab:VERSION


def test_is_not_root_and_has_no_tools_to_build_with(image: str) -> None:
    assert in_image(image, "id", "-u", "-n").stdout == "trimtab\n"
    assert in_image(image, "id", "-u").stdout == "65532\n"
    assert in_image(image, "sh", "-c", "command -v cc gcc c++ g++ make uv hatchling cyclonedx-py").stdout == ""
    assert "Read-only file system" in in_image(image, "sh", "-c", "echo > /opt/trimtab/x").stderr


def test_serves_weights_becomes_ready_and_drains_on_sigterm(weights_service: str) -> None:
    give_up = time.monotonic() + 60
    answer = None
    while not (answer and answer.stdout == "SERVING\n"):
        assert time.monotonic() < give_up, (answer, podman("logs", weights_service))
        answer = podman("exec", weights_service, "python", "-c", ASK_HEALTH, "readiness")
        time.sleep(0.2)
    for name in ("startup", "liveness"):
        assert podman("exec", weights_service, "python", "-c", ASK_HEALTH, name).stdout == "SERVING\n"
    stopped = podman("stop", f"--time={4 * DRAIN_S}", weights_service)
    assert stopped.returncode == 0, stopped.stderr
    [state] = json.loads(podman("inspect", "--format", "[{{json .State}}]", weights_service).stdout)
    assert state["ExitCode"] == 0, podman("logs", weights_service)


def test_a_control_process_does_not_import_torch(image: str) -> None:
    """Weights and trainer start in a second, and take little memory, since they load no model library."""
    for name in ("weights", "trainer"):
        code = f"import sys, trimtab.cli.services, trimtab_services.{name}.main as m; print('torch' in sys.modules)"
        assert in_image(image, "python", "-c", code).stdout == "False\n"


def test_bytecode_is_there_since_it_cannot_be_written_later(image: str) -> None:
    code = "import trimtab, torch, os; print([os.path.exists(m.__cached__) for m in (trimtab, torch)])"
    assert in_image(image, "python", "-c", code).stdout == "[True, True]\n"


def test_the_sbom_says_what_is_installed(image: str) -> None:
    sbom = json.loads(in_image(image, "cat", "/opt/trimtab/sbom.cdx.json").stdout)
    assert sbom["bomFormat"] == "CycloneDX"
    listed = {component["name"]: component["version"].partition("+")[0] for component in sbom["components"]}
    assert listed.pop("trimtab") == VERSION
    code = "from importlib.metadata import distributions as d; print(*sorted({x.metadata['Name'] for x in d()}))"
    assert sorted([*listed, "trimtab"]) == in_image(image, "python", "-c", code).stdout.split()
    pinned = dict(line.split("==") for line in (ROOT / "images/versions.txt").read_text().splitlines() if "==" in line)
    assert "torch" in listed
    assert {
        name: version for name, version in listed.items() if pinned.get(name.lower().replace("_", "-")) != version
    } == {}


def test_the_wheel_of_an_equal_tree_has_equal_bytes(tmp_path: Path) -> None:
    wheels = []
    for name in ("one", "two"):
        tree = tmp_path / name / "tree"
        for part in ("clients/python/trimtab", "models", "services", "trainer"):
            shutil.copytree(
                ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copy
            )
        for file in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / file, tree)
        made = subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / name, tree],
            env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
            capture_output=True,
            text=True,
        )
        assert made.returncode == 0, made.stderr
        [wheel] = (tmp_path / name).glob("*.whl")
        wheels.append(wheel.read_bytes())
    assert wheels[0] == wheels[1]
