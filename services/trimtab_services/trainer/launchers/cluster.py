"""Calls of the Kubernetes API that the launcher makes: each with a deadline, and with an error of ours that names the
object, and for a missing permission the verb and the resource that a Role must allow.

The asyncio half of the official client is used, so nothing here blocks the event loop. `ROLE` lists every call that is
made; a ServiceAccount needs no more.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from kubernetes.aio import client, config, watch

from trimtab.errors import ConfigError, FailedPrecondition, NotFound, Reason, Unavailable

__all__ = ["ROLE", "Cluster", "Conflict", "Model"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

Model = Any
"""A generated model of an API object; in its types every field may be None, also those that the API always sets."""

ROLE = frozenset(
    {
        ("create", "batch", "jobs"),
        ("get", "batch", "jobs"),
        ("delete", "batch", "jobs"),
        ("create", "", "configmaps"),
        ("create", "", "persistentvolumeclaims"),
        ("get", "", "persistentvolumeclaims"),
        ("delete", "", "persistentvolumeclaims"),
        ("list", "", "pods"),
        ("watch", "", "pods"),
        ("get", "", "pods/log"),
        ("list", "", "events"),
    }
)
"""(verb, API group, resource) of every call."""

_CALL_S = 10.0
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Conflict(FailedPrecondition):
    """An object of that name is there already, or is not the one that was meant."""


class Cluster:
    """One namespace of a cluster.

    Args:
        api: client of the cluster; closed by `close`.
        namespace: where everything is.
    """

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.namespace = namespace
        self._api = api
        self._batch = client.BatchV1Api(api)
        self._core = client.CoreV1Api(api)

    @classmethod
    async def connect(cls, namespace: str, kubeconfig: Path | None) -> Cluster:
        """Reads how to reach the cluster; makes no call.

        Args:
            namespace: empty means that of this pod, or of the kubeconfig's context.
            kubeconfig: from outside; None is the pod's own ServiceAccount, whose token is read again as it is renewed.

        Raises:
            ConfigError: no such file, no cluster around this process, or no namespace.
        """
        configuration = client.Configuration()
        configuration.retries = 0
        try:
            if kubeconfig is not None:
                await config.load_kube_config(str(kubeconfig), client_configuration=configuration)
            else:
                config.load_incluster_config(client_configuration=configuration)
                namespace = namespace or _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
        except (config.ConfigException, OSError) as error:
            where = f"launcher.kubeconfig: {kubeconfig}" if kubeconfig else "launcher.kubeconfig: not set, and no pod"
            raise ConfigError(f"{where}: {error}", field="launcher.kubeconfig", value=kubeconfig) from None
        if not namespace:
            raise ConfigError("launcher.namespace: must be set with launcher.kubeconfig", field="launcher.namespace")
        return cls(client.ApiClient(configuration), namespace)

    async def close(self) -> None:
        """Closes the connections."""
        await self._api.close()

    def named(self, kind: str, name: str) -> str:
        """How messages name an object."""
        return f"{kind} {self.namespace}/{name}"

    async def create_job(self, body: Model) -> Model:
        """Creates a Job. Raises: Conflict, FailedPrecondition, Unavailable."""
        return await self._call(
            "create",
            "jobs.batch",
            self.named("Job", body["metadata"]["name"]),
            self._batch.create_namespaced_job(self.namespace, body, _request_timeout=_CALL_S),
        )

    async def job(self, name: str) -> Model:
        """A Job. Raises: NotFound, FailedPrecondition, Unavailable."""
        return await self._call(
            "get",
            "jobs.batch",
            self.named("Job", name),
            self._batch.read_namespaced_job(name, self.namespace, _request_timeout=_CALL_S),
        )

    async def delete_job(self, name: str, uid: str | None = None) -> None:
        """Deletes a Job after its pods, which get SIGTERM and their grace period; what it owns goes with it.

        Args:
            name: of the Job.
            uid: only the Job with this uid; None: whichever has the name.

        Raises: NotFound, Conflict (another uid), FailedPrecondition, Unavailable.
        """
        options: Model = {"propagationPolicy": "Foreground"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        await self._call(
            "delete",
            "jobs.batch",
            self.named("Job", name),
            self._batch.delete_namespaced_job(name, self.namespace, body=options, _request_timeout=_CALL_S),
        )

    async def create_config_map(self, body: Model) -> None:
        """Creates a ConfigMap. Raises: Conflict, FailedPrecondition, Unavailable."""
        await self._call(
            "create",
            "configmaps",
            self.named("ConfigMap", body["metadata"]["name"]),
            self._core.create_namespaced_config_map(self.namespace, body, _request_timeout=_CALL_S),
        )

    async def create_claim(self, body: Model) -> None:
        """Creates a PersistentVolumeClaim. Raises: Conflict, FailedPrecondition, Unavailable."""
        await self._call(
            "create",
            "persistentvolumeclaims",
            self.named("PersistentVolumeClaim", body["metadata"]["name"]),
            self._core.create_namespaced_persistent_volume_claim(self.namespace, body, _request_timeout=_CALL_S),
        )

    async def claim(self, name: str) -> Model:
        """A PersistentVolumeClaim. Raises: NotFound, FailedPrecondition, Unavailable."""
        return await self._call(
            "get",
            "persistentvolumeclaims",
            self.named("PersistentVolumeClaim", name),
            self._core.read_namespaced_persistent_volume_claim(name, self.namespace, _request_timeout=_CALL_S),
        )

    async def delete_claim(self, name: str) -> None:
        """Deletes a PersistentVolumeClaim with its data. Raises: NotFound, FailedPrecondition, Unavailable."""
        await self._call(
            "delete",
            "persistentvolumeclaims",
            self.named("PersistentVolumeClaim", name),
            self._core.delete_namespaced_persistent_volume_claim(name, self.namespace, _request_timeout=_CALL_S),
        )

    async def last_event(self, kind: str, name: str, *reasons: str) -> str:
        """The newest event message of an object for one of the reasons; empty where there is none.

        Raises: FailedPrecondition, Unavailable.
        """
        events = await self._call(
            "list",
            "events",
            self.named(kind, name),
            self._core.list_namespaced_event(
                self.namespace,
                field_selector=f"involvedObject.kind={kind},involvedObject.name={name}",
                _request_timeout=_CALL_S,
            ),
        )
        found = [event for event in events.items if event.reason in reasons]
        found.sort(key=lambda event: str(event.last_timestamp or event.event_time or event.metadata.creation_timestamp))
        return found[-1].message or "" if found else ""

    async def watch_pods(self, selector: str, *, every_s: float) -> AsyncGenerator[dict[str, Model]]:
        """The pods of a label selector, by name: at once, after each change, and at least every `every_s` seconds.

        A watch that the server ends goes on from where it was; one that is too old (410 Gone) begins with a new list.

        Raises: FailedPrecondition, Unavailable.
        """
        what = f"pods with {selector} in namespace {self.namespace}"
        version: str | None = None
        pods: dict[str, Model] = {}
        stream: Any = watch.Watch()  # makes a client with a TLS context of its own: once, not for every look
        while True:
            if version is None:
                listed: Model = await self._call(
                    "list",
                    "pods",
                    what,
                    self._core.list_namespaced_pod(self.namespace, label_selector=selector, _request_timeout=_CALL_S),
                )
                pods = {pod.metadata.name: pod for pod in listed.items}
                version = listed.metadata.resource_version
            yield dict(pods)
            try:
                async with _errors("watch", "pods", what), stream:
                    async for event in stream.stream(
                        self._core.list_namespaced_pod,
                        self.namespace,
                        label_selector=selector,
                        resource_version=version,
                        timeout_seconds=max(1, round(every_s)),
                        _request_timeout=every_s + _CALL_S,
                    ):
                        pod = event["object"]
                        version = stream.resource_version
                        if event["type"] == "DELETED":
                            pods.pop(pod.metadata.name, None)
                        elif event["type"] in ("ADDED", "MODIFIED"):
                            pods[pod.metadata.name] = pod
                        yield dict(pods) if event["type"] != "DELETED" else pods | {pod.metadata.name: pod}
            except _TooOld:
                version = None

    @asynccontextmanager
    async def pod_log(self, pod: str, container: str, *, timeout_s: float) -> AsyncIterator[aiohttp.StreamReader]:
        """The log of a container from its beginning, each line behind its time, followed until it ends.

        Raises: FailedPrecondition, Unavailable; TimeoutError after `timeout_s`.
        """
        what = self.named("Pod", pod)
        async with _errors("get", "pods/log", what):
            response: Any = await self._core.read_namespaced_pod_log_without_preload_content(
                pod, self.namespace, container=container, follow=True, timestamps=True, _request_timeout=timeout_s
            )
            try:
                if response.status >= 400:
                    raise client.ApiException(status=response.status, body=await response.text())
                yield response.content
            finally:
                response.close()

    async def _call(self, verb: str, resource: str, what: str, call: Awaitable[T]) -> T:
        async with _errors(verb, resource, what):
            return await call


class _TooOld(Exception):
    """A watch's resource version is gone."""


@asynccontextmanager
async def _errors(verb: str, resource: str, what: str) -> AsyncIterator[None]:
    """Turns the client's errors into ours."""
    try:
        yield
    except client.ApiException as error:
        raise _as_ours(error, verb, resource, what) from None
    except aiohttp.ClientError as error:
        raise _unreachable(f"{verb} {resource}: {what}: {type(error).__name__}: {error}") from None
    except TimeoutError:
        if resource == "pods/log":
            raise  # a log may be followed for longer than any one call
        raise _unreachable(f"{verb} {resource}: {what}: no answer in time") from None


def _unreachable(message: str) -> Unavailable:
    return Unavailable(f"the Kubernetes API does not answer: {message}", reason=Reason.UNREACHABLE)


def _as_ours(error: client.ApiException, verb: str, resource: str, what: str) -> Exception:
    said = _message(error)
    status = error.status or 0
    if status == 410:
        return _TooOld(said)
    if status == 404:
        return NotFound(f"{what}: {said}", field=what)
    if status == 409:
        return Conflict(f"{what}: {said}", field=what)
    if status == 403 and "exceeded quota" in said:
        return FailedPrecondition(f"{what}: quota exceeded: {said}", field=what)
    if status in (401, 403):
        return FailedPrecondition(
            f"{what}: no permission to {verb} {resource}, which the Role of the trainer's ServiceAccount must allow: "
            f"{said}",
            field=what,
        )
    if status == 429 or status >= 500:
        return _unreachable(f"{verb} {resource}: {what}: {status}: {said}")
    return FailedPrecondition(f"{what}: the Kubernetes API refuses to {verb} {resource}: {status}: {said}", field=what)


def _message(error: client.ApiException) -> str:
    """What the API server said, of its JSON or plain answer."""
    body = error.body
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or error.reason or "")
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()
