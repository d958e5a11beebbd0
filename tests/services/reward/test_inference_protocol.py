"""The Open Inference Protocol over HTTP and gRPC, byte for byte, against a real server."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from running import RunningServer, client, running
from trimtab.errors import REASONS, TrimtabError
from trimtab.rpc_errors import from_rpc_error
from trimtab.types import ScoreItem, ScoreRequest, TruncationSide
from trimtab_services.reward.fronts.inference import open_inference_pb2 as pb
from trimtab_services.reward.fronts.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub

PROMPTS, COMPLETIONS = ["say something", "the dög"], ["helpful", "It sleeps, twice. \N{DOG FACE}"]
INFER = "/v2/models/reward/infer"
LENGTH = "Inference-Header-Content-Length"


def texts_as_bytes(texts: Sequence[str]) -> bytes:
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


def texts(name: str, values: Sequence[str], **fields: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": list(values), **fields}


PAIR = [texts("prompt", PROMPTS), texts("completion", COMPLETIONS)]


@pytest.fixture(scope="module")
def served(reward_folder: Path) -> Iterator[RunningServer]:
    with running("reward", model_folder=reward_folder, max_items_per_request=8, deterministic=True) as server:
        yield server


@pytest.fixture(scope="module")
def http(served: RunningServer) -> Iterator[httpx.Client]:
    runtime = served.server.runtime
    with httpx.Client(base_url=f"http://{runtime.address(runtime.ports.http)}", timeout=30) as session:
        yield session


@pytest.fixture(scope="module")
def stub(served: RunningServer) -> Iterator[Any]:
    with grpc.insecure_channel(served.target) as channel:
        yield GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def rewards(served: RunningServer) -> list[float]:
    items = tuple(ScoreItem(prompt=p, completion=c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True))
    with client(served) as own:
        return [score.reward for score in own.score(ScoreRequest(items=items)).scores]


def outputs(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {output["name"]: output for output in answer.json()["outputs"]}


def test_pairs_as_json(http: httpx.Client, rewards: list[float]) -> None:
    answer = http.post(INFER, json={"id": "q", "inputs": PAIR})
    found = outputs(answer)
    assert found["reward"] == {"name": "reward", "datatype": "FP32", "shape": [2], "data": rewards}
    assert found["token_count"]["datatype"] == "INT32" and min(found["token_count"]["data"]) > 5
    assert (answer.json()["id"], answer.json()["model_name"], answer.json()["model_version"]) == ("q", "reward", "0")


def test_pairs_as_binary_and_back(http: httpx.Client, rewards: list[float]) -> None:
    raw = [texts_as_bytes(PROMPTS), texts_as_bytes(COMPLETIONS)]
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [2, 1], "parameters": {"binary_data_size": len(data)}}
        for name, data in zip(("prompt", "completion"), raw, strict=True)
    ]
    header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    answer = http.post(INFER, content=header + b"".join(raw), headers={LENGTH: str(len(header))})
    assert answer.status_code == 200, answer.text
    length = int(answer.headers[LENGTH])
    described = json.loads(answer.content[:length])["outputs"]
    assert [output["parameters"]["binary_data_size"] for output in described] == [8, 8]
    assert np.frombuffer(answer.content[length : length + 8], "<f4").tolist() == rewards
    assert np.frombuffer(answer.content[length + 8 :], "<i4").min() > 5


def test_an_output_says_itself_how_it_comes(http: httpx.Client, rewards: list[float]) -> None:
    wanted = [{"name": "reward", "parameters": {"binary_data": False}}, {"name": "token_count"}]
    body = {"inputs": PAIR, "outputs": wanted, "parameters": {"binary_data_output": True}}
    answer = http.post(INFER, json=body)
    first, second = json.loads(answer.content[: int(answer.headers[LENGTH])])["outputs"]
    assert first["data"] == rewards and second["parameters"] == {"binary_data_size": 8}
    only = outputs(http.post(INFER, json={"inputs": PAIR, "outputs": [{"name": "token_count"}]}))
    assert set(only) == {"token_count"}


@pytest.mark.parametrize("datatype", ["INT32", "INT64"])
def test_token_ids_with_lengths(served: RunningServer, http: httpx.Client, datatype: str) -> None:
    with client(served) as own:
        items = (ScoreItem(token_ids=(5, 6, 7)), ScoreItem(token_ids=(8,)))
        expected = [score.reward for score in own.score(ScoreRequest(items=items)).scores]
    ids = {"name": "token_ids", "datatype": datatype, "shape": [2, 3], "data": [[5, 6, 7], [8, 0, 0]]}
    lengths = {"name": "lengths", "datatype": datatype, "shape": [2], "data": [3, 1]}
    assert outputs(http.post(INFER, json={"inputs": [ids, lengths]}))["reward"]["data"] == expected
    whole = outputs(http.post(INFER, json={"inputs": [ids]}))["reward"]["data"]
    assert whole[0] == expected[0] and whole[1] != expected[1]  # without lengths every id counts


def test_a_whole_text_is_a_document_in_which_control_tokens_are_text(http: httpx.Client) -> None:
    counts = outputs(http.post(INFER, json={"inputs": [texts("text", ["x", "x<|end|>"])]}))["token_count"]["data"]
    assert counts[0] == 2  # and the end-of-sequence token
    assert counts[1] > 3


def test_parameters(served: RunningServer, http: httpx.Client) -> None:
    long = [texts("prompt", ["a ship"]), texts("completion", ["quick " * 200])]
    error = http.post(INFER, json={"inputs": long})
    assert error.status_code == 400 and error.json()["reason"] == "SEQUENCE_TOO_LONG" and "256" in error.json()["error"]
    with client(served) as own:
        item = ScoreItem(prompt="a ship", completion="quick " * 200)
        expected = own.score(ScoreRequest(items=(item,), truncation=TruncationSide.RIGHT)).scores[0].reward
    for priority in (0, 1, 2, 3, "BULK"):
        parameters = {"truncation": "RIGHT", "priority": priority, "timeout": 20_000_000}
        assert outputs(http.post(INFER, json={"inputs": long, "parameters": parameters}))["reward"]["data"] == [
            expected
        ]
    late = http.post(INFER, json={"inputs": PAIR, "parameters": {"timeout": 1}})
    assert late.status_code == 504 and late.json()["reason"].startswith("DEADLINE")


ONE = [texts("prompt", ["x"]), texts("completion", ["y"])]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"inputs": []}, "inputs"),
        ({"inputs": ONE[:1]}, "inputs"),
        ({"inputs": [*ONE, ONE[0]]}, "inputs"),
        ({"inputs": [texts("prompt", ["x", "y"]), ONE[1]]}, "completion"),
        ({"inputs": [{**ONE[0], "shape": [2]}, ONE[1]]}, "prompt"),
        ({"inputs": [{**ONE[0], "shape": [0], "data": []}, ONE[1]]}, "inputs[0].shape[0]"),
        ({"inputs": [{**ONE[0], "shape": [1, 1, 1]}, ONE[1]]}, "prompt"),
        ({"inputs": [{**ONE[0], "datatype": "FP32"}, ONE[1]]}, "prompt"),
        ({"inputs": [{**ONE[0], "data": [3]}, ONE[1]]}, "prompt[0]"),
        ({"inputs": [texts("prompt", [""]), ONE[1]]}, "items[0].prompt"),
        ({"inputs": [texts("text", ["x", ""])]}, "text[1]"),
        ({"inputs": [texts("text", ["x"] * 9)]}, "items"),
        ({"inputs": [{**ONE[0], "data": None}, ONE[1]]}, "inputs[0].data"),
        ({"inputs": [{**ONE[0], "parameters": {"binary_data_size": 5}}, ONE[1]]}, "inputs[0].data"),
        (
            {"inputs": [{**ONE[0], "data": None, "parameters": {"binary_data_size": 5}}, ONE[1]]},
            "inputs[0].parameters.binary_data_size",
        ),
        ({"inputs": [{"name": "token_ids", "datatype": "INT32", "shape": [1], "data": [1]}]}, "token_ids"),
        ({"inputs": [{"name": "token_ids", "datatype": "INT32", "shape": [1, 1], "data": [2**31]}]}, "token_ids[0]"),
        (
            {"inputs": [{"name": "token_ids", "datatype": "INT64", "shape": [1, 1], "data": [-1]}]},
            "items[0].token_ids[0]",
        ),
        ({"inputs": ONE, "outputs": [{"name": "loss"}]}, "outputs[0].name"),
        (
            {"inputs": ONE, "outputs": [{"name": "reward", "parameters": {"classification": 3}}]},
            "outputs[0].parameters.classification",
        ),
        ({"inputs": ONE, "parameters": {"sequence_id": 3}}, "parameters.sequence_id"),
        ({"inputs": ONE, "parameters": {"priority": 4}}, "parameters.priority"),
        ({"inputs": ONE, "parameters": {"priority": True}}, "parameters.priority"),
        ({"inputs": ONE, "parameters": {"truncation": "MIDDLE"}}, "parameters.truncation"),
        ({"inputs": ONE, "parameters": {"timeout": -1}}, "parameters.timeout"),
        ({"inputs": ONE, "parameters": {"binary_data_output": 1}}, "parameters.binary_data_output"),
        ({"inputs": ONE, "model_name": "other"}, "model_name"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, body: Any, field: str) -> None:
    answer = http.post(INFER, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["field"] == field and answer.json()["error"].startswith(f"{field}: ")


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "999999", "9" * 5000, "0" * 5000, ""])
def test_a_wrong_length_of_the_header_is_refused(http: httpx.Client, length: str) -> None:
    answer = http.post(INFER, content=b"{}", headers={LENGTH: length})
    assert answer.status_code == 400, answer.text


def test_bytes_that_nothing_claims_are_refused(http: httpx.Client) -> None:
    header = json.dumps({"inputs": ONE}).encode()
    answer = http.post(INFER, content=header + b"rest", headers={LENGTH: str(len(header))})
    assert answer.status_code == 400 and "4 bytes behind the last tensor" in answer.json()["error"]


def test_versions_of_the_path(http: httpx.Client, rewards: list[float]) -> None:
    found = outputs(http.post("/v2/models/reward/versions/0/infer", json={"inputs": PAIR}))
    assert found["reward"]["data"] == rewards
    assert http.post("/v2/models/reward/versions/7/infer", json={"inputs": PAIR}).status_code == 409
    assert http.post("/v2/models/reward/versions/new/infer", json={"inputs": PAIR}).status_code == 400
    assert http.post("/v2/models/nobody/infer", json={"inputs": PAIR}).status_code == 404


def test_metadata_and_health(http: httpx.Client) -> None:
    assert http.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True}
    model = http.get("/v2/models/reward/versions/0").json()
    assert model["versions"] == ["0"] and model["platform"] == "LlamaForSequenceClassification"
    assert [tensor["name"] for tensor in model["inputs"]] == ["prompt", "completion", "text", "token_ids", "lengths"]
    assert http.get("/v2/models/reward/ready").json()["ready"] is True
    assert http.get("/v2/models/nobody/ready").status_code == 404
    assert http.get("/v2/models/reward/versions/8/ready").status_code == 404


@pytest.mark.parametrize("version", ["0" * 5000, "9" * 5000, "9" * 20, str(2**63), "\N{ARABIC-INDIC DIGIT THREE}"])
def test_a_version_of_any_length_is_read_or_refused(http: httpx.Client, stub: Any, version: str) -> None:
    for answer in (
        http.get(f"/v2/models/reward/versions/{version}"),
        http.post(f"/v2/models/reward/versions/{version}/infer", json={"inputs": ONE}),
    ):
        assert (answer.status_code, answer.json()["field"]) == (400, "version"), answer.text
    request = message(ONE)
    request.model_version = version
    assert failed(stub, request).field == "version"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_page_of_another_origin_can_send_is_refused(http: httpx.Client, kind: str) -> None:
    headers = {"content-type": kind} if kind else {"origin": "https://elsewhere.example"}
    answer = http.post(INFER, content=json.dumps({"inputs": ONE}), headers=headers)
    assert answer.status_code == 400 and answer.json()["field"] == "content-type", answer.text


@pytest.mark.parametrize(
    "kind", ["application/octet-stream", "application/json", "application/json; charset=utf-8", ""]
)
@pytest.mark.parametrize("has_length", [True, False])
def test_what_clients_of_the_protocol_send_is_read(http: httpx.Client, kind: str, has_length: bool) -> None:
    content = json.dumps({"inputs": ONE}).encode()
    headers = ({"content-type": kind} if kind else {}) | ({LENGTH: str(len(content))} if has_length else {})
    assert outputs(http.post(INFER, content=content, headers=headers))["reward"]["shape"] == [1]


def test_a_body_that_does_not_come_is_not_waited_for(reward_folder: Path) -> None:
    with running("reward", model_folder=reward_folder, http_idle_s=0.5) as server:
        runtime = server.server.runtime
        address = ("127.0.0.1", runtime.ports.http)
        with socket.create_connection(address, timeout=30) as connection:
            connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{{".encode())
            answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 504") and b"DEADLINE_EXCEEDED" in answer and b"http_idle_s" in answer


def message(inputs: Sequence[dict[str, Any]], **fields: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="reward", **fields)
    for one in inputs:
        tensor = request.inputs.add(name=one["name"], datatype=one["datatype"], shape=one["shape"])
        if one["datatype"] == "BYTES":
            tensor.contents.bytes_contents.extend(text.encode() for text in one["data"])
        else:
            getattr(tensor.contents, {"INT32": "int_contents", "INT64": "int64_contents"}[one["datatype"]]).extend(
                one["data"]
            )
    return request


def failed(stub: Any, request: pb.ModelInferRequest) -> TrimtabError:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=30)
    error = from_rpc_error(caught.value, target="server", method="ModelInfer", timeout_s=30)
    assert caught.value.code() == REASONS[error.reason][0]
    return error


def test_grpc_with_typed_contents(stub: Any, rewards: list[float]) -> None:
    answer = stub.ModelInfer(message(PAIR, id="q"), timeout=30)
    assert (answer.id, answer.model_name, answer.model_version) == ("q", "reward", "0")
    reward, count = answer.outputs
    assert list(reward.contents.fp32_contents) == rewards and list(reward.shape) == [2]
    assert len(count.contents.int_contents) == 2 and not answer.raw_output_contents


def test_grpc_with_raw_contents(stub: Any, rewards: list[float]) -> None:
    request = message([{**one, "data": []} for one in PAIR])
    for one in request.inputs:
        one.ClearField("contents")
    request.raw_input_contents.extend([texts_as_bytes(PROMPTS), texts_as_bytes(COMPLETIONS)])
    answer = stub.ModelInfer(request, timeout=30)
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == rewards
    assert [output.HasField("contents") for output in answer.outputs] == [False, False]


def test_grpc_token_ids(served: RunningServer, stub: Any) -> None:
    with client(served) as own:
        expected = own.score(ScoreRequest(items=(ScoreItem(token_ids=(5, 6)),))).scores[0].reward
    ids = {"name": "token_ids", "datatype": "INT64", "shape": [1, 3], "data": [5, 6, 0]}
    lengths = {"name": "lengths", "datatype": "INT32", "shape": [1], "data": [2]}
    answer = stub.ModelInfer(message([ids, lengths]), timeout=30)
    assert list(answer.outputs[0].contents.fp32_contents) == [expected]


def test_grpc_parameters_and_errors(stub: Any) -> None:
    long = message([texts("prompt", ["a ship"]), texts("completion", ["quick " * 200])])
    error = failed(stub, long)
    assert (error.reason.value, error.field) == ("SEQUENCE_TOO_LONG", "items[0].token_ids")
    long.parameters["truncation"].string_param = "LEFT"
    long.parameters["priority"].uint64_param = 3
    assert stub.ModelInfer(long, timeout=30).outputs[1].contents.int_contents[0] == 256
    long.parameters["priority"].uint64_param = 2**64 - 1
    assert failed(stub, long).field == "parameters.priority"
    long.parameters["priority"].double_param = float("nan")
    assert failed(stub, long).field == "parameters.priority"


def test_grpc_raw_and_typed_together_are_refused(stub: Any) -> None:
    both = message(ONE)
    both.raw_input_contents.extend([b"", b""])
    assert failed(stub, both).field == "inputs[0].contents"
    both.raw_input_contents.append(b"")
    assert failed(stub, both).field == "raw_input_contents"


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"\x01\x00\x00", "text[0]"),
        (b"\xff\xff\xff\xffx", "text[0]"),
        (texts_as_bytes(["x", "y"]), "text"),
        (b"\x02\x00\x00\x00\xff\xfe", "text[0]"),
    ],
)
def test_grpc_raw_texts_are_checked(stub: Any, raw: bytes, field: str) -> None:
    request = pb.ModelInferRequest(model_name="reward", raw_input_contents=[raw])
    request.inputs.add(name="text", datatype="BYTES", shape=[1])
    assert failed(stub, request).field == field


@pytest.mark.parametrize("is_raw", [False, True])
@pytest.mark.parametrize(
    ("shape", "limit"),
    [([2**62] * 300_000, "8"), ([1] * 9, "8"), ([1, *[2**62] * 7], str(2**31 - 1)), ([1, 2**31], str(2**31 - 1))],
    ids=["long", "nine", "large", "wide"],
)
def test_grpc_shapes_are_bounded(stub: Any, shape: list[int], limit: str, is_raw: bool) -> None:
    request = message([{**texts("text", ["x"]), "shape": shape}])
    if is_raw:
        request.inputs[0].ClearField("contents")
        request.raw_input_contents.append(texts_as_bytes(["x"]))
    began = time.monotonic()
    error = failed(stub, request)
    assert (error.field, error.limit) == ("text", limit)
    assert time.monotonic() - began < 5  # to multiply that many dimensions takes minutes


def test_grpc_tensors_are_counted_before_they_are_read(stub: Any) -> None:
    request = message(ONE * 5)
    assert (failed(stub, request).field, failed(stub, request).value) == ("inputs", "10")
    request = message(ONE)
    for _ in range(9):
        request.outputs.add(name="reward")
    assert failed(stub, request).field == "outputs"


def test_grpc_metadata_and_health(stub: Any) -> None:
    assert stub.ServerLive(pb.ServerLiveRequest(), timeout=30).live
    assert stub.ServerReady(pb.ServerReadyRequest(), timeout=30).ready
    assert stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=30).name == "trimtab"
    assert stub.ModelReady(pb.ModelReadyRequest(name="reward", version="0"), timeout=30).ready
    model = stub.ModelMetadata(pb.ModelMetadataRequest(name="reward"), timeout=30)
    assert [(one.name, list(one.shape)) for one in model.outputs] == [("reward", [-1]), ("token_count", [-1])]
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelReady(pb.ModelReadyRequest(name="nobody"), timeout=30)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_grpc_needs_the_scope_to_score_and_any_token_to_ask(reward_folder: Path, tmp_path: Path) -> None:
    tokens = {"good": {"name": "a", "scopes": ["score"]}, "other": {"name": "b", "scopes": ["runs"]}}
    (tmp_path / "tokens").write_text(json.dumps(tokens))
    with (
        running("reward", model_folder=reward_folder, tokens_file=tmp_path / "tokens") as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)

        def code(method: Any, request: Any, token: str) -> grpc.StatusCode:
            try:
                method(request, timeout=30, metadata=[("authorization", f"Bearer {token}")])
            except grpc.RpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        asked = [code(stub.ModelInfer, message(ONE), token) for token in ("good", "other", "bad")]
        assert [found.name for found in asked] == ["OK", "PERMISSION_DENIED", "UNAUTHENTICATED"]
        asked = [code(stub.ServerReady, pb.ServerReadyRequest(), token) for token in ("good", "other", "bad")]
        assert [found.name for found in asked] == ["OK", "OK", "UNAUTHENTICATED"]


def test_a_server_without_a_model_is_live_and_not_ready(tmp_path: Path) -> None:
    weights = {"address": "127.0.0.1:9", "channel": "reward/serving"}
    with (
        running("reward", serving=False, weights=weights) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(pb.ServerLiveRequest(), timeout=30).live
        assert not stub.ServerReady(pb.ServerReadyRequest(), timeout=30).ready
        runtime = server.server.runtime
        url = f"http://{runtime.address(runtime.ports.http)}"
        assert httpx.get(f"{url}/v2/health/live", timeout=10).status_code == 200
        assert httpx.get(f"{url}/v2/health/ready", timeout=10).status_code == 503
        assert httpx.get(f"{url}/v2/models/reward/ready", timeout=10).status_code == 503
        assert httpx.post(f"{url}{INFER}", json={"inputs": ONE}, timeout=10).status_code == 503
        assert failed(stub, message(ONE)).reason.value == "WAITING_FOR_VERSION"
