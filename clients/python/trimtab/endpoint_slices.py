"""Where the replicas of a Service on Kubernetes are, as the API tells it: by its EndpointSlices, watched.

Against DNS of a headless Service, which is asked every second and changes some seconds after the pods do, a new replica
is known as soon as it has an address, and one that is being ended as soon as that is decided. The price is a
ServiceAccount that may list and watch `endpointslices.discovery.k8s.io`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError

__all__ = ["EndpointSliceResolver"]

_CALL_S = 10.0
_WATCH_S = 30
"""Most seconds that a watch lasts before it goes on from where it was; a silent connection ends soon after."""

_AGAIN_S = 2.0
_GONE = 410


class EndpointSliceResolver:
    """Every endpoint of a Service that may get work.

    That is each one that is ready, as the Service defines it (one with `publishNotReadyAddresses` counts all as ready),
    and not being ended. Where none is ready, those that were known and are still there stay: all replicas of a busy
    service may miss their probes at once, and who sends work finds out itself which replica is well. An empty list says
    that there are none.

    A thread of its own lists the slices, then watches them from that version on; a watch that ends goes on from where
    it was, and one whose version is too old (410 Gone) begins with a new list. While the API is away or refuses, the
    last addresses stay in force and `problem` says why. `close` ends the thread. Of a Service with addresses of both
    families only those of IPv4 count, since the same replica has one of each.

    Args:
        namespace: of the Service.
        service: its name.
        port: name of one of its ports, which may have another number in each slice, or the pods' own port number.
        kubeconfig: to reach the cluster from outside; None: by the ServiceAccount of this pod.

    Raises:
        ConfigError: a part is missing, the Kubernetes client is not installed, or there is no cluster around this
            process and no such kubeconfig.
    """

    def __init__(self, namespace: str, service: str, port: str, *, kubeconfig: Path | None = None) -> None:
        if not (namespace and service and port):
            target = f"{namespace}/{service}:{port}"
            raise ConfigError(
                f"endpoint_slices: {target!r} is no namespace/service:port", field="endpoint_slices", value=target
            )
        self._what = f"EndpointSlices of Service {namespace}/{service}"
        self._discovery = _discovery_api(kubeconfig)
        self._namespace = namespace
        self._selector = f"kubernetes.io/service-name={service}"
        self._port = port
        self._slices: dict[str, Any] = {}
        self._addresses: list[str] = []
        self._problem = ""
        self._asked = threading.Event()
        self._closed = threading.Event()
        self._open_watch: Any = None
        self._thread = threading.Thread(target=self._follow, name=f"endpoint slices {service}", daemon=True)
        self._starting = threading.Lock()

    @classmethod
    def of(cls, target: str) -> EndpointSliceResolver:
        """The resolver of a `namespace/service:port`.

        Raises:
            ConfigError: it is none, or as for the class.
        """
        name, _, port = target.rpartition(":")
        namespace, _, service = name.partition("/")
        return cls(namespace, service, port)

    @property
    def problem(self) -> str:
        """Why the last call failed; empty when it did not."""
        return self._problem

    def addresses(self) -> list[str]:
        """The addresses last known; only the first call waits, for the first answer of the API, good or bad."""
        with self._starting:
            if self._thread.ident is None and not self._closed.is_set():
                self._thread.start()
        self._asked.wait(_CALL_S)
        return list(self._addresses)

    def close(self) -> None:
        """Ends the watch and its thread; the last addresses stay. At once, unless a call to the API hangs (10 s)."""
        with self._starting:
            self._closed.set()
            self._asked.set()
        self._interrupt()
        if self._thread.ident is not None:
            self._thread.join(_CALL_S)

    def _follow(self) -> None:
        """Lists and watches until `close`."""
        version = ""
        while not self._closed.is_set():
            try:
                version = version or self._list()
                self._asked.set()
                version = self._watch(version)
                self._problem = ""
            except Exception as error:  # whatever it is, the addresses stay and the next try follows
                self._problem = f"{self._what}: {_why(error)}"
                self._asked.set()
                if getattr(error, "status", None) == _GONE:
                    version = ""
                else:
                    self._closed.wait(_AGAIN_S)

    def _list(self) -> str:
        """Takes all slices as they are now; returns the version of the list."""
        listed = self._discovery.list_namespaced_endpoint_slice(
            self._namespace, label_selector=self._selector, _request_timeout=_CALL_S
        )
        self._slices = {one.metadata.name: one for one in listed.items}
        self._take()
        return str(listed.metadata.resource_version)

    def _watch(self, version: str) -> str:
        """Takes each change after a version until the server ends the watch; returns the version to go on from."""
        from kubernetes import watch

        untyped: Any = watch
        watcher = untyped.Watch()
        for event in watcher.stream(
            self._interruptible(),
            self._namespace,
            label_selector=self._selector,
            resource_version=version,
            allow_watch_bookmarks=True,
            timeout_seconds=_WATCH_S,
            _request_timeout=(_CALL_S, _WATCH_S + _CALL_S),
        ):
            if event is None or event["type"] == "BOOKMARK":
                continue
            one = event["object"]
            if event["type"] == "DELETED":
                self._slices.pop(one.metadata.name, None)
            else:
                self._slices[one.metadata.name] = one
            self._take()
        return str(watcher.resource_version)

    def _interruptible(self) -> Any:
        """The call that a watch makes, its answer kept so that `close` need not wait for the next event."""
        ask: Any = self._discovery.list_namespaced_endpoint_slice

        @functools.wraps(ask)  # the watch reads in its docstring what the events are
        def call(*args: Any, **options: Any) -> Any:
            self._open_watch = ask(*args, **options)
            if self._closed.is_set():
                self._interrupt()
            return self._open_watch

        return call

    def _interrupt(self) -> None:
        if (answer := self._open_watch) is not None:
            with suppress(OSError, RuntimeError, ValueError):  # it has ended by itself
                answer.shutdown()

    def _take(self) -> None:
        """Makes the addresses of the slices."""
        for family in ("IPv4", "IPv6"):
            found = [
                pair for one in self._slices.values() if one.address_type == family for pair in self._endpoints(one)
            ]
            if found:
                break
        ready = {address for address, is_ready in found if is_ready}
        there = {address for address, _ in found}
        self._addresses = sorted(ready or there & set(self._addresses))
        self._problem = ""

    def _endpoints(self, one: Any) -> Iterable[tuple[str, bool]]:
        """host:port of the endpoints of a slice that are not being ended, and whether each is ready."""
        port = self._port_of(one)
        for endpoint in one.endpoints or []:
            conditions = endpoint.conditions
            if port is not None and not (conditions is not None and conditions.terminating):
                host = endpoint.addresses[0]  # of several the API says that they are the same
                is_ready = conditions is None or conditions.ready is not False  # unknown means ready
                yield f"[{host}]:{port}" if one.address_type == "IPv6" else f"{host}:{port}", is_ready

    def _port_of(self, one: Any) -> int | None:
        """The number of the port in a slice; None where it has none of that name."""
        if self._port.isdecimal():
            return int(self._port)
        return next((port.port for port in one.ports or [] if port.name == self._port), None)


def _discovery_api(kubeconfig: Path | None) -> Any:
    try:
        from kubernetes import client, config
    except ModuleNotFoundError:
        raise ConfigError(
            "endpoint_slices needs kubernetes: pip install 'trimtab[kubernetes]'", field="endpoint_slices"
        ) from None
    configuration = client.Configuration()
    configuration.retries = False
    loader: Any = config  # untyped
    try:
        if kubeconfig is not None:
            loader.load_kube_config(str(kubeconfig), client_configuration=configuration)
        else:
            loader.load_incluster_config(client_configuration=configuration)
    except config.ConfigException as error:
        raise ConfigError(
            f"endpoint_slices: {kubeconfig or 'this process has no ServiceAccount of a pod'}: {error}",
            field="endpoint_slices",
        ) from None
    return client.DiscoveryV1Api(client.ApiClient(configuration))


def _why(error: Exception) -> str:
    status = getattr(error, "status", None)
    if status is None:
        return f"the Kubernetes API does not answer: {type(error).__name__}: {error}"
    if status in (401, 403):
        return f"no permission to list and watch endpointslices.discovery.k8s.io ({status})"
    return f"the Kubernetes API answers {status}: {getattr(error, 'reason', '')}"
