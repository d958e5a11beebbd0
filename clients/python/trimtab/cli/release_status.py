"""The status of a release of the Helm chart, as rows: its components, its pods with what they serve, its runs.

What the Kubernetes API knows is always there. What only the services know (state, version, lag, load, runs) is asked
of each pod through a port-forward, all at the same time and each with a deadline; where that fails its columns are
empty and the pod's note says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from trimtab.channel import TLSConfig, Token
from trimtab.cli.port_forward import forwarded
from trimtab.cli.release import Release
from trimtab.cli.replica import NOT_ASKED, SERVED_COLUMNS, Connect, replica_row, run_rows
from trimtab.client import Client
from trimtab.errors import ConfigError, PermissionDenied, TrimtabError
from trimtab.local import SERVICES
from trimtab.pods import is_ready, restarts_of, why_not_ready

__all__ = ["COMPONENT_COLUMNS", "POD_COLUMNS", "status_of"]

COMPONENT_COLUMNS = ("component", "desired", "ready", "scaled_by")
POD_COLUMNS = ("component", "pod", "phase", "ready", "restarts", "node", *SERVED_COLUMNS)

_GRPC_PORT = 50051
_DEADLINE_S = 5.0
_AT_A_TIME = 16
_LABEL = "app.kubernetes.io/component"
_RUN_LABEL = "trimtab.dev/run"
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


def status_of(release: Release, *, token: Token | None, tls: TLSConfig | None) -> dict[str, Any]:
    """`components`, `pods`, `runs` and `notes` of a release; pods that have done their work are left out.

    Args:
        release: which one.
        token: of calls to services; None: the one that the chart made for clients, where the caller may read it.
        tls: how services are reached where the release has TLS.

    Raises:
        NotFound: no such release.
        PermissionDenied: the caller may not list its Deployments or pods.
        Unavailable: the Kubernetes API does not answer.
    """
    deployments = release.deployments()
    notes: list[str] = []
    components = _component_rows(release, deployments, notes)
    notes += _queued_runs(release)
    if token is None:
        token = _client_token(release, deployments[0], notes)
    services = _Services(release, _fullname(deployments[0]), token, tls, has_tls=_has_tls(deployments[0]))
    pods = [pod for pod in release.pods() if pod.status.phase != "Succeeded"]
    pods.sort(key=lambda pod: (_order(_component(pod)), pod.metadata.name))
    with ThreadPoolExecutor(_AT_A_TIME) as executor:
        runs = executor.submit(services.runs, [pod for pod in pods if _component(pod) == "trainer"])
        rows = list(executor.map(services.pod_row, pods))
        run_rows, note = runs.result()
    return {"components": components, "pods": rows, "runs": run_rows, "notes": [*notes, *([note] if note else [])]}


@dataclass(frozen=True)
class _Services:
    """The services of a release, asked in their pods.

    Attributes:
        release: which one.
        fullname: what the names of its objects begin with.
        token: of the calls; None: none.
        tls: towards the services; None: plain text.
        has_tls: whether the services speak TLS.
    """

    release: Release
    fullname: str
    token: Token | None
    tls: TLSConfig | None
    has_tls: bool

    def pod_row(self, pod: Any) -> dict[str, Any]:
        """What the API knows of a pod, and what its service tells."""
        component = _component(pod)
        row = {
            "component": component,
            "pod": pod.metadata.name,
            "phase": "Terminating" if pod.metadata.deletion_timestamp else pod.status.phase,
            "ready": is_ready(pod),
            "restarts": restarts_of(pod),
            "node": pod.spec.node_name or "",
        }
        runs = any(one.state and one.state.running for one in pod.status.container_statuses or [])
        is_service = component in SERVICES and pod.status.phase == "Running" and runs
        served = self._served(pod, component) if is_service else NOT_ASKED
        notes = (why_not_ready(pod), served["note"])
        return row | served | {"note": ": ".join(note for note in notes if note)}

    def runs(self, trainers: list[Any]) -> tuple[list[dict[str, Any]], str]:
        """Runs, and a note where they are unknown."""
        ready = [pod for pod in trainers if is_ready(pod)]
        if not ready:
            return [], "runs are unknown: no pod of the trainer is ready"
        try:
            with self._way_to(ready[0], "trainer") as (address, connect):
                return run_rows(address, connect)
        except TrimtabError as error:
            return [], f"runs are unknown: {error.message}"

    def _served(self, pod: Any, component: str) -> dict[str, Any]:
        try:
            with self._way_to(pod, component) as (address, connect):
                return replica_row(address, connect)
        except TrimtabError as error:
            return NOT_ASKED | {"note": f"what it serves is unknown: {error.message}"}

    @contextmanager
    def _way_to(self, pod: Any, component: str) -> Iterator[tuple[str, Connect]]:
        """Address of a pod's service, and what connects to it."""
        if self.has_tls and self.tls is None:
            raise ConfigError(
                "the release has TLS; give --ca-file, and for mTLS --certificate-file and --key-file", field="tls"
            )
        host = f"{self.fullname}-{component}.{self.release.namespace}.svc"
        tls = replace(self.tls, server_name=host) if self.tls is not None else None
        configuration, namespace = self.release.configuration, self.release.namespace
        with forwarded(configuration, namespace, pod.metadata.name, _GRPC_PORT, timeout_s=_DEADLINE_S) as address:
            yield address, partial(Client, timeout_s=_DEADLINE_S, token=self.token, tls=tls)


def _component_rows(release: Release, deployments: list[Any], notes: list[str]) -> list[dict[str, Any]]:
    try:
        owners = release.autoscalers()
        by_hand = "hand"
    except PermissionDenied as error:
        owners, by_hand = {}, ""
        notes.append(f"who scales is unknown: {error.message}")
    rows = [
        {
            "component": _component(one),
            "desired": one.spec.replicas,
            "ready": one.status.ready_replicas or 0,
            "scaled_by": owners.get(one.metadata.name, by_hand),
        }
        for one in deployments
    ]
    return sorted(rows, key=lambda row: _order(row["component"]))


def _queued_runs(release: Release) -> list[str]:
    """A note on each run that has no pod since its Job is suspended."""
    try:
        jobs = release.suspended_jobs()
    except PermissionDenied as error:
        return [f"runs that wait for admission are unknown: {error.message}"]
    return [
        f"run {job.metadata.labels.get(_RUN_LABEL, job.metadata.name)}: its Job is suspended until queue "
        f"{job.metadata.labels.get(_QUEUE_LABEL, '(none named)')} admits it"
        for job in jobs
    ]


def _client_token(release: Release, deployment: Any, notes: list[str]) -> Token | None:
    """The token that the chart made for clients; None where it made none or the caller may not read it."""
    try:
        text = release.token(f"{_fullname(deployment)}-token-client")
    except PermissionDenied as error:
        notes.append(f"give --token-file, since the token of clients cannot be read: {error.message}")
        return None
    return Token(text) if text else None


def _fullname(deployment: Any) -> str:
    return str(deployment.metadata.name).removesuffix(f"-{_component(deployment)}")


def _has_tls(deployment: Any) -> bool:
    return any(volume.name == "tls" for volume in deployment.spec.template.spec.volumes or [])


def _component(one: Any) -> str:
    return str((one.metadata.labels or {}).get(_LABEL, ""))


def _order(component: str) -> int:
    """Services in their usual order, then whatever else runs."""
    return SERVICES.index(component) if component in SERVICES else len(SERVICES)
