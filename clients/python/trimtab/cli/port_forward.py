"""A way to a pod from outside its cluster: a port of this machine, through the Kubernetes API to a port of the pod.

It begins in the pod's own network, so no NetworkPolicy stands in its way, and needs the permission for
`pods/portforward` alone.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from trimtab.errors import PermissionDenied, Unavailable

__all__ = ["forwarded"]

_CHUNK_BYTES = 65536
_REFUSED = re.compile(r"Handshake status (\d+)")
_SAID = re.compile(r"\{\"kind\":\"Status\".*\}")


@contextmanager
def forwarded(configuration: Any, namespace: str, pod: str, port: int, *, timeout_s: float) -> Iterator[str]:
    """127.0.0.1:port, from which one connection leads to the port of the pod.

    Args:
        configuration: of the Kubernetes client.
        namespace: of the pod.
        pod: its name.
        port: of the pod.
        timeout_s: for the API server to open the way, and for the caller to take it.

    Raises:
        PermissionDenied: the caller may not forward ports of pods.
        Unavailable: the API server or the node's kubelet refuses or does not answer.
    """
    forward = _open(configuration, namespace, pod, port, timeout_s)
    far = forward.socket(port)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(timeout_s)
    threading.Thread(target=_relay, args=(listener, far), name=f"port-forward {pod}", daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        _end(far)


def _open(configuration: Any, namespace: str, pod: str, port: int, timeout_s: float) -> Any:
    import websocket
    from kubernetes import client
    from kubernetes.stream import portforward

    websocket.setdefaulttimeout(timeout_s)  # the client passes no time limit on
    # A client of its own: while it connects, the library changes how the client calls.
    core = client.CoreV1Api(client.ApiClient(configuration))
    try:
        return portforward(core.connect_get_namespaced_pod_portforward, pod, namespace, ports=str(port))
    except client.ApiException as error:
        reason = str(error.reason)
        said, refused = _message(reason), _REFUSED.search(reason)
        if refused and refused[1] in ("401", "403"):
            raise PermissionDenied(f"port-forward to Pod {namespace}/{pod}: {said}") from None
        raise Unavailable(f"port-forward to Pod {namespace}/{pod}: {said}") from None


def _message(reason: str) -> str:
    """What the API server said, of the text that the library made of its refusal."""
    found = _SAID.search(reason)
    with suppress(ValueError, KeyError):
        return str(json.loads(found[0])["message"]) if found else reason.partition(" -+-+- ")[0]
    return reason.partition(" -+-+- ")[0]


def _relay(listener: socket.socket, far: Any) -> None:
    """Takes one connection and copies both ways until either side ends."""
    with listener:
        try:
            near, _ = listener.accept()
        except OSError:  # nobody came
            return
    with near:
        threading.Thread(target=_copy, args=(far, near), daemon=True).start()
        _copy(near, far)


def _copy(source: Any, target: Any) -> None:
    with suppress(OSError):
        while data := source.recv(_CHUNK_BYTES):
            target.sendall(data)
    _end(target)


def _end(end: Any) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
