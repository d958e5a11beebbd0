"""Makes every kind of call with every token. Arguments: a JSON map of hosts by service, and one of tokens by caller,
where null is no token. Prints how each call ended, by caller and call: OK, or the error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

from trimtab import Client
from trimtab.errors import TrimtabError
from trimtab.types import (
    GenerateRequest,
    GenerationPrompt,
    LogProbsItem,
    LogProbsRequest,
    SamplingParams,
    ScoreItem,
    ScoreRequest,
)
from trimtab.v1 import labeling_pb2, trainer_pb2, weights_pb2
from trimtab.weights import TensorData, publish_version

DIGEST_OF_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
HTTP_ERRORS = {401: "Unauthenticated", 403: "PermissionDenied"}

Calls = dict[str, tuple[str, Callable[[Client], Any]]]


def generate(client: Client) -> list[Any]:
    prompt = GenerationPrompt(prompt_id="0", prompt="Hello")
    return list(client.generate(GenerateRequest(prompts=(prompt,), sampling=SamplingParams(max_new_tokens=2))))


def publish(client: Client) -> Any:
    tensor = TensorData.from_array("weight", np.zeros(2, dtype=np.float32))
    return publish_version(client, [tensor], {"config.json": b"{}"}, channels=["access/latest"])


WORK: Calls = {
    "generate": ("generation", generate),
    "score": ("reward", lambda client: client.score(ScoreRequest(items=(ScoreItem(token_ids=(1, 2)),)))),
    "logprobs": ("reference", lambda client: client.logprobs(LogProbsRequest(items=(LogProbsItem(token_ids=(1, 2)),)))),
    "runs": ("trainer", lambda client: client.list_runs(trainer_pb2.ListRunsRequest())),
    "label": ("labeling", lambda client: client.list_accounts(labeling_pb2.ListAccountsRequest())),
    "label.read": ("labeling", lambda client: client.list_projects(labeling_pb2.ListProjectsRequest())),
    "weights.read": ("weights", lambda client: client.list_channels(weights_pb2.ListChannelsRequest())),
    "weights.publish": ("weights", publish),
}
"""Service and call of each scope."""

PUBLISHING: Calls = {
    "AcquireLease": ("weights", lambda client: client.acquire_lease(weights_pb2.AcquireLeaseRequest())),
    "ReleaseLease": ("weights", lambda client: client.release_lease(weights_pb2.ReleaseLeaseRequest())),
    "FindMissingBlobs": ("weights", lambda client: client.find_missing_blobs(weights_pb2.FindMissingBlobsRequest())),
    "Publish": ("weights", lambda client: client.publish(weights_pb2.PublishRequest())),
    "SetChannel": ("weights", lambda client: client.set_channel(weights_pb2.SetChannelRequest())),
    "Pin": ("weights", lambda client: client.pin(weights_pb2.PinRequest())),
    "Prune": ("weights", lambda client: client.prune(weights_pb2.PruneRequest())),
}
"""Every method by which a version comes, goes or is pointed to; empty, for those who may call none of them."""


def over_grpc(host: str, token: str | None, call: Callable[[Client], Any]) -> str:
    try:
        with Client(f"{host}:50051", token=token, insecure=True, timeout_s=30) as client:
            call(client)
    except TrimtabError as error:
        return type(error).__name__
    return "OK"


def over_http(host: str, token: str | None, path: str, method: str = "GET") -> str:
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    try:
        urlopen(Request(f"http://{host}:8080{path}", headers=headers, method=method), timeout=30).close()
    except HTTPError as error:
        return HTTP_ERRORS.get(error.code, str(error.code))
    return "OK"


def outcomes(hosts: dict[str, str], token: str | None) -> dict[str, str]:
    """How every call with a token ends, of the services that there are."""
    found = {name: over_grpc(hosts[service], token, call) for name, (service, call) in WORK.items() if service in hosts}
    if found["weights.publish"] != "OK":
        found |= {name: over_grpc(hosts[service], token, call) for name, (service, call) in PUBLISHING.items()}
    found["upload"] = over_http(hosts["weights"], token, f"/blobs/{DIGEST_OF_NOTHING}", "PUT")
    for service, host in hosts.items():
        found[f"info of {service}"] = over_grpc(host, token, lambda client: client.info())
        found[f"info of {service} over HTTP"] = over_http(host, token, "/info")
        found[f"health of {service}"] = over_grpc(host, token, lambda client: require(client.health("readiness")))
        found[f"health of {service} over HTTP"] = over_http(host, token, "/health")
    return found


def require(healthy: bool) -> None:
    if not healthy:
        raise TrimtabError("not SERVING")


def main(hosts: str, tokens: str) -> None:
    print(json.dumps({caller: outcomes(json.loads(hosts), token) for caller, token in json.loads(tokens).items()}))


main(*sys.argv[1:])
