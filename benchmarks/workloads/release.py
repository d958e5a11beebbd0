"""A release of the chart in a cluster: installed, timed, spoken to from this machine, and removed."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import helm_python

from trimtab import Client

__all__ = ["CHART", "COMPONENTS", "Release"]

CHART = Path(__file__).resolve().parents[2] / "helm" / "trimtab"
COMPONENTS = ("weights", "generation", "reward", "reference", "trainer")
NAME = "rl"
_KUBECTL = Path(sys.executable).parent / "kubectl"
_INSTALL_S = 300


class Release:
    """The release `rl` in a namespace of its own.

    Args:
        kubeconfig: of a throw-away cluster.
        image: name of the image, which the nodes have.
        values: over those of the chart.
    """

    def __init__(self, kubeconfig: Path, image: str, values: Mapping[str, Any]) -> None:
        registry, _, name = image.rpartition("/")
        repository, _, tag = name.partition(":")
        self._kubeconfig = kubeconfig
        self._values = {"image": {"registry": registry, "repository": repository, "tag": tag}, **values}
        self.namespace = f"bench-{uuid.uuid4().hex[:8]}"
        self.installed_at = 0.0
        self.seconds_to_ready = 0.0

    def __enter__(self) -> Release:
        self.kubectl("create", "namespace", self.namespace)
        helm = helm_python.Config(kubeconfig_path=self._kubeconfig, namespace=self.namespace)
        self.installed_at, began = time.time(), time.monotonic()
        try:
            helm.install(CHART, NAME, self._values, wait="watcher", timeout=_INSTALL_S)
        except BaseException:
            self.__exit__()
            raise
        self.seconds_to_ready = time.monotonic() - began
        return self

    def __exit__(self, *of_error: object) -> None:
        self.kubectl("delete", "namespace", self.namespace, "--wait=false")

    def kubectl(self, *arguments: str, timeout_s: float = 120) -> str:
        """Standard output of kubectl in the release's namespace."""
        command = [_KUBECTL, f"--kubeconfig={self._kubeconfig}", f"--namespace={self.namespace}", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout_s).stdout

    def pods(self, component: str) -> list[dict[str, Any]]:
        """The component's pods, oldest first."""
        selector = f"--selector=app.kubernetes.io/component={component}"
        listed = self.kubectl("get", "pods", selector, "--sort-by=.metadata.creationTimestamp", "--output=json")
        return json.loads(listed)["items"]

    def states(self, pod: str) -> dict[str, float]:
        """When a service's log first told each of its states, and that it was live; seconds since the epoch."""
        found: dict[str, float] = {}
        for line in self.kubectl("logs", pod).splitlines():
            record = json.loads(line) if line.startswith("{") else {}
            if told := re.fullmatch(r"state (\w+)|(live)", record.get("message", "")):
                found.setdefault(told[1] or told[2], datetime.fromisoformat(record["time"]).timestamp())
        return found

    def metric(self, pod: str, name: str) -> float:
        """Sum of a counter over its labels, as the pod tells it now."""
        ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9090/metrics', timeout=5).read().decode())"
        lines = self.kubectl("exec", pod, "--", "python", "-c", ask).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[ {{]", line))

    @contextmanager
    def client(self, component: str) -> Iterator[Client]:
        """A client with the token of people, through a forwarded port."""
        secret = json.loads(self.kubectl("get", "secret", f"{NAME}-trimtab-token-client", "--output=json"))
        token = base64.b64decode(secret["data"]["token"]).decode()
        forward = [_KUBECTL, f"--kubeconfig={self._kubeconfig}", f"--namespace={self.namespace}", "port-forward"]
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(
                [*forward, f"service/{NAME}-trimtab-{component}", ":50051"],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as process,
        ):
            try:
                assert process.stdout is not None
                port = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
                if port is None:
                    errors.seek(0)
                    raise SystemExit(f"kubectl port-forward: {errors.read().decode().strip()}")
                with Client(f"127.0.0.1:{port[1]}", token=token) as client:
                    yield client
            finally:
                process.terminate()
