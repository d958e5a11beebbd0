"""A release of the Helm chart, as the commands reach it: by the caller's own kubeconfig, never by the services'."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from trimtab.errors import ConfigError, FailedPrecondition, NotFound, PermissionDenied, TrimtabError, Unavailable
from trimtab.local import SERVICES

__all__ = ["Release", "release_options"]

Command = TypeVar("Command", bound=Callable[..., Any])

_CALL_S = 10.0


def release_options(command: Command) -> Command:
    """Adds --release and how its cluster is reached."""
    for option in (
        click.option("--release", help="Helm release on a Kubernetes cluster, instead of local services."),
        click.option("--namespace", help="Namespace of the release. Default: that of the kubeconfig's context."),
        click.option(
            "--kubeconfig", type=click.Path(path_type=Path), help="Default: $KUBECONFIG, else ~/.kube/config."
        ),
        click.option("--context", help="Context of the kubeconfig. Default: its current one."),
    ):
        command = option(command)
    return command


class Release:
    """One release.

    Args:
        name: of the release.
        namespace: None means that of the kubeconfig's context.
        kubeconfig: None means where kubectl looks.
        context: None means the current one.

    Attributes:
        configuration: of the Kubernetes client.

    Raises:
        ConfigError: the Kubernetes client is not installed, or there is no such kubeconfig or context.
    """

    def __init__(self, name: str, *, namespace: str | None, kubeconfig: Path | None, context: str | None) -> None:
        try:
            from kubernetes import client, config
        except ModuleNotFoundError:
            raise ConfigError(
                "--release needs kubernetes: pip install 'trimtab[kubernetes]'", field="release", value=name
            ) from None
        configuration = client.Configuration()
        configuration.retries = False
        file = str(kubeconfig) if kubeconfig else None
        loader: Any = config  # untyped
        try:
            loader.load_kube_config(file, context, client_configuration=configuration)
            contexts, active = loader.list_kube_config_contexts(file)
        except config.ConfigException as error:
            raise ConfigError(f"kubeconfig: {error}", field="kubeconfig", value=kubeconfig) from None
        used = active if context is None else next(one for one in contexts if one["name"] == context)
        self.name = name
        self.namespace = namespace or used["context"].get("namespace", "default")
        self.configuration = configuration
        api = client.ApiClient(configuration)
        self._apps: Any = client.AppsV1Api(api)
        self._autoscaling: Any = client.AutoscalingV2Api(api)
        self._batch: Any = client.BatchV1Api(api)
        self._core: Any = client.CoreV1Api(api)

    def deployments(self, component: str = "") -> list[Any]:
        """Deployments of a component, or of all; at least one.

        Raises:
            NotFound: there is none in the namespace.
            PermissionDenied: the caller may not list them.
            Unavailable: the API does not answer.
        """
        selector = self._selector(component)
        with self._errors(f"Deployments with {selector}"):
            found: list[Any] = self._apps.list_namespaced_deployment(
                self.namespace, label_selector=selector, _request_timeout=_CALL_S
            ).items
        if not found:
            raise NotFound(
                f"release: namespace {self.namespace} has no Deployment {f'of {component} ' if component else ''}"
                f"of release {self.name!r}",
                field="release",
                value=self.name,
            )
        return found

    def pods(self) -> list[Any]:
        """Pods of the release, those of its runs among them.

        Raises:
            PermissionDenied: the caller may not list them.
            Unavailable: the API does not answer.
        """
        selector = self._selector()
        with self._errors(f"Pods with {selector}"):
            found: list[Any] = self._core.list_namespaced_pod(
                self.namespace, label_selector=selector, _request_timeout=_CALL_S
            ).items
        return found

    def suspended_jobs(self) -> list[Any]:
        """Jobs of runs that wait for a queue to admit them.

        Raises:
            PermissionDenied: the caller may not list them.
            Unavailable: the API does not answer.
        """
        selector = self._selector("run")
        with self._errors(f"Jobs with {selector}"):
            found = self._batch.list_namespaced_job(
                self.namespace, label_selector=selector, _request_timeout=_CALL_S
            ).items
        return [job for job in found if job.spec.suspend]

    def autoscalers(self) -> dict[str, str]:
        """What sets the number of replicas, by the name of the Deployment; one that is not there is scaled by hand.

        Raises:
            PermissionDenied: the caller may not list HorizontalPodAutoscalers.
            Unavailable: the API does not answer.
        """
        with self._errors(f"HorizontalPodAutoscalers in namespace {self.namespace}"):
            scalers = self._autoscaling.list_namespaced_horizontal_pod_autoscaler(
                self.namespace, _request_timeout=_CALL_S
            ).items
        owners = {}
        for scaler in scalers:
            target = scaler.spec.scale_target_ref
            if target.kind == "Deployment":
                by_keda = (scaler.metadata.labels or {}).get("scaledobject.keda.sh/name")
                owner = f"ScaledObject {by_keda}" if by_keda else f"HorizontalPodAutoscaler {scaler.metadata.name}"
                owners[target.name] = owner
        return owners

    def token(self, secret: str) -> str:
        """The `token` that a Secret holds; empty where there is no such Secret.

        Raises:
            PermissionDenied: the caller may not read it.
            Unavailable: the API does not answer.
        """
        try:
            with self._errors(f"Secret {self.namespace}/{secret}"):
                found = self._core.read_namespaced_secret(secret, self.namespace, _request_timeout=_CALL_S)
        except NotFound:
            return ""
        return base64.b64decode((found.data or {}).get("token", "")).decode()

    def scale(self, component: str, count: int) -> None:
        """Sets the number of replicas of a component.

        Raises:
            NotFound: the release has no such Deployment.
            FailedPrecondition: an autoscaler owns the number.
            PermissionDenied: the caller may not.
            Unavailable: the API does not answer.
        """
        deployment = self.deployments(component)[0].metadata.name
        if owner := self.autoscalers().get(deployment):
            raise FailedPrecondition(
                f"{component}: {owner} sets the number of replicas of Deployment {self.namespace}/{deployment}; "
                f"change {component}.autoscaling of the release instead",
                field=component,
            )
        with self._errors(f"Deployment {self.namespace}/{deployment}"):
            self._apps.patch_namespaced_deployment_scale(
                deployment, self.namespace, {"spec": {"replicas": count}}, _request_timeout=_CALL_S
            )

    def _selector(self, component: str = "") -> str:
        """By what no value of the chart changes; a release may hold other charts beside it."""
        components = component or ", ".join((*SERVICES, "run"))
        return f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component in ({components})"

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turns the Kubernetes client's errors into ours."""
        from kubernetes import client
        from urllib3.exceptions import HTTPError

        try:
            yield
        except client.ApiException as error:
            raise _as_ours(error, what) from None
        except HTTPError as error:
            raise Unavailable(f"{what}: the Kubernetes API does not answer: {error}") from None


def _as_ours(error: Any, what: str) -> TrimtabError:
    try:
        said = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        said = error.body or error.reason
    message = f"{what}: {said} ({error.status})"
    if error.status in (401, 403):
        return PermissionDenied(message)
    if error.status == 429 or error.status >= 500:
        return Unavailable(message)
    return NotFound(message) if error.status == 404 else FailedPrecondition(message)
