"""The platform on Kubernetes: how fast it installs, starts, scales, and what pods cost a run.

- `render`: every values file of the chart through Helm's engine, and every different object through the schemas of a
  Kubernetes version.
- `install`: `helm install` of the default values until all is Ready, and where each service's cold start goes: from
  the pod's creation to its container, to `live` (Python, imports), to a model that serves, to Ready.
- `iteration`: the tiny PPO-ptx run of `helm test`, longer, as local processes and in pods, on the same machine.
- `keda`: from zero replicas; seconds from the first waiting rollouts to the first completion of a new replica, and from
  the run's end to zero again.

    python benchmarks/cluster.py [--kubeconfig FILE] [--image localhost/trimtab:dev] [--parts render install ...]

Needs a throw-away cluster of one node on this machine, with the image loaded, and KEDA for `keda`. Claim: an iteration
in pods takes at most 1.1 times that of local processes, and every service is Ready within 10 s of its pod's creation.
The last line is one JSON object; `ratio` is local over pods.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml
from workloads.release import CHART, COMPONENTS, Release

from trimtab import Client
from trimtab.local import LocalServices
from trimtab.v1 import trainer_pb2 as pb
from trimtab_trainer.reporter import EventKind, read_events

GOAL = 1 / 1.1
PARTS = ("render", "install", "iteration", "keda")
KUBE_MINOR = "1.34"
ITERATIONS = 60
LONG = 10_000
"""Iterations of a run that is stopped."""

_RUN_S = 900.0
_KEDA = {
    "kind": "keda",
    "minReplicas": 0,
    "maxReplicas": 2,
    "keda": {"pollingInterval": 5, "cooldownPeriod": 10, "queue": {"targetQueuedRollouts": 16}},
}


def render() -> dict[str, float]:
    """Seconds for all values files, and for the schemas of all different objects."""
    names, began = sorted((CHART / "ci").glob("*.yaml")), time.monotonic()
    different: dict[str, dict[str, Any]] = {}
    with helm_python.Chart.load(CHART) as chart:
        for path in names:
            for text in chart.render(yaml.safe_load(path.read_text()) or {}, name="rl", namespace="prod").values():
                for one in yaml.load_all(text, Loader=yaml.CSafeLoader) if "apiVersion" in text else ():
                    if one:
                        different.setdefault(json.dumps(one, sort_keys=True), one)
    rendered, began = time.monotonic() - began, time.monotonic()
    for one in different.values():
        try:
            kubernetes_validate.validate(one, KUBE_MINOR, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            continue  # a custom resource
    return {
        "values_files": len(names),
        "render_s": round(rendered, 2),
        "different_objects": len(different),
        "validate_s": round(time.monotonic() - began, 2),
    }


def install(release: Release) -> dict[str, Any]:
    """Where the cold start of each service went. Kubernetes tells whole seconds, the services' logs thousandths."""
    services = {}
    for component in COMPONENTS:
        (pod,) = release.pods(component)
        created = at(pod["metadata"]["creationTimestamp"])
        container = at(pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"])
        ready = next(c for c in pod["status"]["conditions"] if c["type"] == "Ready")
        states = release.states(pod["metadata"]["name"])
        live, serving = states["live"], states["SERVING"]
        services[component] = {
            "container_s": container - created,
            "live_s": round(live - container, 2),
            "serving_s": round(serving - live, 2),
            "ready_s": at(ready["lastTransitionTime"]) - created,
        }
    return {"all_ready_s": round(release.seconds_to_ready, 1), "services": services}


def iteration_in_pods(release: Release) -> float:
    """Median seconds of an iteration."""
    with release.client("trainer") as client:
        client.start_run(pb.StartRunRequest(name="bench", spec_yaml=spec(ITERATIONS)))
        ends = [event.time.ToNanoseconds() / 1e9 for event in events(client, "bench") if is_iteration(event)]
    return pace(ends)


def iteration_of_processes(directory: Path) -> float:
    """Median seconds of an iteration with services of one thread each, as the chart has them."""
    settings = {name: {"threads": 1} for name in ("generation", "reward", "reference")}
    services = LocalServices(directory / "services", settings=settings)
    services.start()
    try:
        spec_file, run = directory / "spec.yaml", directory / "run"
        spec_file.write_text(spec(ITERATIONS))
        endpoints = services.directory / "endpoints.json"
        options = ["run", spec_file, "--endpoints", endpoints, "--dir", run]
        subprocess.run(
            [sys.executable, "-m", "trimtab", *map(str, options)], check=True, stdout=subprocess.DEVNULL, timeout=_RUN_S
        )
    finally:
        services.stop()
    done = (event for event in read_events(run / "events.jsonl") if event.event is EventKind.STEP_DONE)
    return pace([event.time for event in done if event.stage == "ppo"])


def keda(release: Release) -> dict[str, float]:
    """Seconds between what happened in one run and what KEDA made of it."""
    assert not release.pods("generation"), "generation is not at zero before the run"
    with release.client("trainer") as client:
        started = time.monotonic()
        client.start_run(pb.StartRunRequest(name="bench", spec_yaml=spec(LONG)))
        first = wait(lambda: released(release, 1), "a first completion")
        second = wait(lambda: released(release, 2), "a completion of a second replica")
        client.stop_run(pb.StopRunRequest(name="bench"))
        events(client, "bench", pb.RUN_STATE_STOPPED)
        ended = time.monotonic()
        zero = wait(lambda: not release.pods("generation"), "no replica")
    return {
        "start_to_first_completion_s": round(first - started, 1),
        "start_to_completion_of_second_replica_s": round(second - started, 1),
        "end_to_zero_s": round(zero - ended, 1),
    }


def released(release: Release, replicas: int) -> bool:
    """Whether that many replicas have answered something."""
    ready = [pod for pod in release.pods("generation") if is_ready(pod)]
    names = [pod["metadata"]["name"] for pod in ready]
    return sum(release.metric(name, "trimtab_generated_tokens_total") > 0 for name in names) >= replicas


def is_ready(pod: dict[str, Any]) -> bool:
    """Whether it works and is to stay."""
    if "deletionTimestamp" in pod["metadata"]:
        return False
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


def wait(condition: Callable[[], bool], what: str) -> float:
    """When it came true, by the monotonic clock."""
    deadline = time.monotonic() + _RUN_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {_RUN_S:.0f} s: {what}")
        time.sleep(0.3)
    return time.monotonic()


def spec(iterations: int) -> str:
    content = yaml.safe_load((CHART / "files" / "helm_test.yaml").read_text())
    content["ppo"]["iterations"] = iterations
    return yaml.safe_dump(content)


def events(client: Client, name: str, end: int = pb.RUN_STATE_SUCCEEDED) -> list[pb.RunEvent]:
    """All events of a run, which must end so."""
    found = [answer.event for answer in client.watch_run(pb.WatchRunRequest(name=name), timeout_s=_RUN_S)]
    ended = found[-1].run_ended
    if ended.state != end:
        raise SystemExit(f"the run in pods ended {pb.RunState.Name(ended.state)}: {ended.error}")
    return found


def is_iteration(event: pb.RunEvent) -> bool:
    return event.stage == "ppo" and event.WhichOneof("event") == "step_done"


def pace(ends: list[float]) -> float:
    """Median seconds between two ends; the first iterations warm up the value model."""
    return statistics.median(later - earlier for earlier, later in zip(ends[1:], ends[2:], strict=False))


def at(time_of_kubernetes: str) -> float:
    return datetime.fromisoformat(time_of_kubernetes).timestamp()


def main() -> None:
    """Measures the parts and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kubeconfig", type=Path, default=Path(os.environ.get("KUBECONFIG", "kubeconfig")))
    parser.add_argument("--image", default="localhost/trimtab:dev", help="that its node has")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "cluster", "goal": round(GOAL, 3)}
    if "render" in args.parts:
        result["render"] = render()
    if "install" in args.parts:
        with Release(args.kubeconfig, args.image, {}) as release:
            result["install"] = install(release)
    if "iteration" in args.parts:
        with tempfile.TemporaryDirectory() as name:
            local = iteration_of_processes(Path(name))
        with Release(args.kubeconfig, args.image, {}) as release:
            pods = iteration_in_pods(release)
        result |= {"iteration_local_s": round(local, 3), "iteration_in_pods_s": round(pods, 3)}
        result["ratio"] = round(local / pods, 3)
    if "keda" in args.parts:
        with Release(args.kubeconfig, args.image, {"generation": {"autoscaling": _KEDA}}) as release:
            wait(lambda: not release.pods("generation"), "no replica before the run")
            result["keda"] = keda(release)
    print(json.dumps({**result, "load_1m": round(os.getloadavg()[0], 2)}))


if __name__ == "__main__":
    main()
