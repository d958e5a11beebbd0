"""Whatever is thrown at the fronts, the server answers with a typed error and goes on as before.

The server is a process of its own: a crash is seen as one, and its memory is measured.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from running import FREE_PORTS
from trimtab.client import Client
from trimtab.errors import Reason
from trimtab.types import ScoreItem, ScoreRequest
from trimtab.v1 import reward_pb2, types_pb2
from trimtab_services.reward.fronts.inference import open_inference_pb2 as pb

pytestmark = pytest.mark.slow

MEBIBYTE = 1024 * 1024
MARGIN_BYTES = 150 * MEBIBYTE
"""What a server may hold more after all of it than before: freed pages that the allocator keeps."""

LONGEST_WAIT_S = 3.0
"""What an answer to /health may take while all of this goes on, on a machine that is busy with it."""

FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


FIELDS = st.sampled_from(
    "items item_id prompt completion messages token_ids role content model truncation priority version exactly "
    "at_least request_id answers query prompts labels inputs outputs name datatype shape data parameters timeout "
    "binary_data_size per_item_errors id model_name".split()
) | st.text(max_size=5)
JSON_TYPE = {"content-type": "application/json"}
ROUTES = ("/v1/score", "/v1/rank", "/get_reward", "/v2/models/reward/infer", "/v2/models/reward/versions/0/infer")


@dataclass
class Fuzzed:
    """The server under test, and what it answered before."""

    process: subprocess.Popen[bytes]
    grpc: str
    http: str
    rewards: list[float]
    memory: int
    waits: list[float] = field(default_factory=list)

    def score(self) -> list[float]:
        items = (ScoreItem(prompt="the dog", completion="sleeps"), ScoreItem(token_ids=(7,)))
        with Client(self.grpc, timeout_s=60) as client:
            return [score.reward for score in client.score(ScoreRequest(items=items)).scores]

    def check(self) -> None:
        """It lives, and answers as before."""
        assert self.process.poll() is None, f"the server has ended with {self.process.returncode}"
        assert self.score() == self.rewards

    def watch_health(self, until: threading.Event) -> None:
        """Notes how long every answer to /health took; endless where there was none."""
        with httpx.Client(base_url=self.http, timeout=60) as http:
            while not until.wait(0.05):
                began = time.monotonic()
                try:
                    healthy = http.get("/health").status_code == 200
                except httpx.HTTPError:
                    healthy = False
                self.waits.append(time.monotonic() - began if healthy else float("inf"))


def resident(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.fixture(scope="module")
def fuzzed(reward_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    folder = tmp_path_factory.mktemp("fuzzed")
    ready, config = folder / "ready.json", folder / "config.yaml"
    settings_ = {
        **FREE_PORTS,
        "model_folder": str(reward_folder),
        "ready_file": str(ready),
        "max_items_per_request": 64,
        "deterministic": True,
        "log": {"calls": False},
        "drain_s": 5,
    }
    config.write_text(yaml.safe_dump(settings_))
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "trimtab", "serve", "reward", "--config", str(config)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 90
        while not ready.exists():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        addresses = json.loads(ready.read_text())
        server = Fuzzed(process, addresses["grpc"], f"http://{addresses['http']}", [], 0)
        while httpx.get(f"{server.http}/health", timeout=10).status_code != 200:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        for _ in range(20):  # buffers of the libraries reach their size
            server.rewards = server.score()
        server.memory = resident(process.pid)
        over = threading.Event()
        watching = threading.Thread(target=server.watch_health, args=(over,))
        watching.start()
        try:
            yield server
        finally:
            over.set()
            watching.join(90)
        faults = [line for line in (folder / "log").read_text().splitlines() if "fault while serving" in line]
        assert not faults, faults[0]  # what is none of our errors, with its trace
    finally:
        process.terminate()
        process.wait(30)
    assert process.returncode == 0


def check_typed(answer: httpx.Response) -> None:
    """An answer is a success, or an error whose reason is in the contract; a fault of the server is none."""
    if answer.status_code == 200:
        return
    if answer.headers["content-type"].startswith("application/json"):
        reason = Reason(answer.json()["reason"])
        assert reason is not Reason.INTERNAL, answer.text
    else:
        assert answer.status_code in (400, 404, 405, 413, 415), answer.text


@pytest.mark.timeout(300)
def test_requests_made_from_the_document(fuzzed: Fuzzed) -> None:
    """Schemathesis: what the document allows and what it forbids, at every route."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [
        *(Path(sys.executable).with_name("schemathesis"), "run", f"{fuzzed.http}/openapi.json"),
        *("--checks", f"{checks},negative_data_rejection", "--max-examples", "25", "--seed", "1"),
        *("--phases", "examples,coverage,fuzzing", "--request-timeout", "30", "--no-color"),
        *("--generation-database", "none"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    fuzzed.check()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["\ud800", "", "\x00", "<|end|>", 2**63, -(2**63), 1e308, float("nan"), float("inf")]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=12,
)


@given(route=st.sampled_from(ROUTES), body=st.dictionaries(FIELDS, JSON, max_size=4))
@FUZZ
def fuzz_json(fuzzed: Fuzzed, route: str, body: Any) -> None:
    raw = json.dumps(body).encode("utf-8", "surrogatepass")
    check_typed(post(fuzzed, route, raw))


def post(fuzzed: Fuzzed, route: str, raw: bytes, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{fuzzed.http}{route}", content=raw, headers={"content-type": "application/json", **headers}, timeout=60
    )


def test_json_of_every_shape(fuzzed: Fuzzed) -> None:
    fuzz_json(fuzzed=fuzzed)
    fuzzed.check()


ITEM = {"prompt": "x", "completion": "y"}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe{}",
        b'{"items": [{"prompt": "\xc3\x28", "completion": "y"}]}',
        b'{"query": ["\\ud800"], "items": [{"prompt": "\\ud800", "completion": "\\udfff"}]}',
        b'{"items": [{"token_ids": [1e400]}], "query": [NaN], "inputs": [-Infinity]}',
        b'{"items": [{"token_ids": [' + b"9" * 5000 + b"]}]}",
        b'{"items": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        json.dumps({"items": [{}] * 100_000, "query": [""] * 100_000, "answers": [1] * 100_000}).encode(),
        json.dumps({"items": [{"token_ids": ["x"] * 300_000}]}).encode(),
    ],
    ids=range(13),
)
def test_bodies_that_are_wrong(fuzzed: Fuzzed, route: str, raw: bytes) -> None:
    answer = post(fuzzed, route, raw)
    assert answer.status_code == 400 and answer.json()["reason"] in Reason.__members__, answer.text
    assert len(answer.content) < 10_000  # of a hundred thousand errors one is told


@pytest.mark.parametrize("route", ROUTES)
def test_a_hundred_megabytes_are_refused_and_not_kept(fuzzed: Fuzzed, route: str) -> None:
    def body() -> Iterator[bytes]:
        yield b'{"items": [{"prompt": "'
        for _ in range(100):
            yield b"x" * MEBIBYTE
        yield b'", "completion": "y"}]}'

    try:  # it may hang up before all has been sent
        answer = httpx.post(f"{fuzzed.http}{route}", content=body(), headers=JSON_TYPE, timeout=60)
        assert answer.status_code in (400, 413), answer.text
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        pass
    fuzzed.check()


@pytest.mark.parametrize("length", [1, 255, 256, 257, 100_000])
def test_lengths_at_and_beyond_the_limit(fuzzed: Fuzzed, length: int) -> None:
    body = {"items": [{"token_ids": [5] * length}]}
    answer = post(fuzzed, "/v1/score", json.dumps(body).encode())
    assert answer.status_code == (200 if length <= 256 else 400), answer.text
    if length > 256:
        assert answer.json()["reason"] == "SEQUENCE_TOO_LONG"


DIGITS = ["0" * 5000, "9" * 5000, "1" + "0" * 5000, "-" + "9" * 5000]


@pytest.mark.parametrize("digits", DIGITS, ids=range(len(DIGITS)))
def test_numbers_of_thousands_of_digits(fuzzed: Fuzzed, digits: str) -> None:
    body = b'{"inputs": []}'
    raw = b'{"items": [{"token_ids": [%s]}], "version": {"exactly": %s}, "inputs": [{"shape": [%s]}]}'
    answers = [
        post(fuzzed, "/v2/models/reward/infer", body, **{"Inference-Header-Content-Length": digits}),
        post(fuzzed, f"/v2/models/reward/versions/{digits}/infer", body),
        httpx.get(f"{fuzzed.http}/v2/models/reward/versions/{digits}/ready", timeout=60),
        *(post(fuzzed, route, raw.replace(b"%s", digits.encode())) for route in ROUTES),
    ]
    for answer in answers:
        assert answer.status_code == 400
        check_typed(answer)


LARGE_TEXTS = {
    "letters": "x" * 10_000_000,
    "words": "quick brown " * 20_000,
    "spaces": " " * 200_000,
    "control tokens": "<|end|>" * 30_000,
    "dogs": "\N{DOG FACE}" * 100_000,
}


@pytest.mark.parametrize("side", ["NONE", "LEFT"])
@pytest.mark.parametrize("text", LARGE_TEXTS.values(), ids=LARGE_TEXTS)
def test_large_texts(fuzzed: Fuzzed, text: str, side: str) -> None:
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "y"}]
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/score", {"items": [{"prompt": text, "completion": text}], "truncation": side}),
        ("/v1/score", {"items": [{"messages": turns}], "truncation": side}),
        ("/v1/rank", {"prompt": text, "answers": ["x", text], "truncation": side}),
        ("/get_reward", {"query": [text], "truncation": side}),
        ("/v2/models/reward/infer", {"inputs": [tensor], "parameters": {"truncation": side}}),
    ]
    for route, body in asked:
        answer = post(fuzzed, route, json.dumps(body).encode())
        check_typed(answer)
        may_pass = side == "LEFT" and len(text) <= 256 * 1024
        assert (answer.status_code == 200) is may_pass, answer.text
        assert may_pass or answer.json()["reason"] == "SEQUENCE_TOO_LONG"
    fuzzed.check()


def test_half_a_request_and_a_hang_up(fuzzed: Fuzzed) -> None:
    host, port = fuzzed.http.removeprefix("http://").rsplit(":", 1)
    for route in ROUTES:
        for end in ("close", "shut"):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                head = (
                    f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
                )
                connection.sendall(head.encode() + b'{"items": [')
                if end == "shut":
                    connection.shutdown(socket.SHUT_WR)
                    connection.settimeout(10)
                    connection.recv(1000)
    fuzzed.check()


def test_callers_that_hang_up_while_they_wait(fuzzed: Fuzzed) -> None:
    body = json.dumps({"items": [{"token_ids": [5] * 250}] * 64})
    host, port = fuzzed.http.removeprefix("http://").rsplit(":", 1)
    lines = ["POST /v1/score HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    for _ in range(10):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall("\r\n".join([*lines, "", body]).encode())
    fuzzed.check()


INFER_PARAMETER = st.builds(pb.InferParameter, string_param=st.text(max_size=5)) | st.builds(
    pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)
)
TENSOR = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["prompt", "completion", "text", "token_ids", "lengths", "x", ""]),
    datatype=st.sampled_from(["BYTES", "INT32", "INT64", "FP32", ""]),
    shape=st.lists(st.integers(-1, 3) | st.sampled_from([2**62, -(2**63)]), max_size=4),
    contents=st.builds(
        pb.InferTensorContents,
        bytes_contents=st.lists(st.binary(max_size=8), max_size=4),
        int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
        int64_contents=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
        fp32_contents=st.lists(st.floats(width=32), max_size=2),
    ),
)
INFER = st.builds(
    pb.ModelInferRequest,
    model_name=st.sampled_from(["reward", "", "x"]),
    model_version=st.sampled_from(["", "0", "-1", "9" * 30, "\u0663", "x", *DIGITS]),
    id=st.text(max_size=5),
    inputs=st.lists(TENSOR, max_size=3) | TENSOR.map(lambda tensor: [tensor] * 50),
    outputs=st.lists(
        st.builds(pb.ModelInferRequest.InferRequestedOutputTensor, name=st.sampled_from(["reward", "x"])), max_size=2
    ),
    raw_input_contents=st.lists(st.binary(max_size=16), max_size=3),
    parameters=st.dictionaries(
        st.sampled_from(["truncation", "priority", "timeout", "x"]), INFER_PARAMETER, max_size=2
    ),
)
TOKENS = st.builds(types_pb2.TokenIds, ids=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4))
PROMPT = (
    st.builds(types_pb2.Prompt, text=st.text(max_size=9))
    | st.builds(types_pb2.Prompt, token_ids=TOKENS)
    | st.just(types_pb2.Prompt())
)
PAIR = st.builds(reward_pb2.PromptCompletion, prompt=PROMPT, text=st.text(max_size=9)) | st.builds(
    reward_pb2.PromptCompletion, prompt=PROMPT, token_ids=TOKENS
)
TURNS = st.builds(
    types_pb2.ChatMessage, role=st.sampled_from(["system", "user", "assistant", "x"]), content=st.text(max_size=5)
)
CHATS = st.builds(types_pb2.ChatMessages, messages=st.lists(TURNS, max_size=3))
ITEMS = (
    st.builds(reward_pb2.ScoreItem, item_id=st.text(max_size=3), pair=PAIR)
    | st.builds(reward_pb2.ScoreItem, token_ids=TOKENS)
    | st.builds(reward_pb2.ScoreItem, messages=CHATS)
)
SCORE = st.builds(
    reward_pb2.ScoreRequest,
    model=st.sampled_from(["", "reward", "x"]),
    items=st.lists(ITEMS, max_size=4),
    truncation=st.integers(-5, 5),
    priority=st.integers(-5, 5),
    per_item_errors=st.booleans(),
)
MADE = INFER.map(lambda message: ("/inference.GRPCInferenceService/ModelInfer", message.SerializeToString()))
SCORED = SCORE.map(lambda message: ("/trimtab.v1.RewardService/Score", message.SerializeToString()))
RANDOM = st.tuples(
    st.sampled_from(
        [
            "/inference.GRPCInferenceService/ModelInfer",
            "/inference.GRPCInferenceService/ModelMetadata",
            "/trimtab.v1.RewardService/Score",
            "/trimtab.v1.RewardService/Rank",
            "/trimtab.v1.RewardService/Nothing",
        ]
    ),
    st.binary(max_size=64),
)
FAULTS = (
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


@given(calls=st.lists(MADE | SCORED | RANDOM, min_size=1, max_size=8))
@FUZZ
def fuzz_grpc(channel: grpc.Channel, calls: list[tuple[str, bytes]]) -> None:
    for method, raw in calls:
        try:
            channel.unary_unary(method)(raw, timeout=60)
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            timed_out = code is grpc.StatusCode.DEADLINE_EXCEEDED and b"timeout" in raw  # it asked for microseconds
            assert timed_out or code not in FAULTS, (method, raw, code, details)


def test_messages_and_random_bytes_over_grpc(fuzzed: Fuzzed) -> None:
    with grpc.insecure_channel(fuzzed.grpc) as channel:
        fuzz_grpc(channel=channel)
    fuzzed.check()


@pytest.mark.parametrize("shape", [[1] * 9, [1] * 300_000, [2] * 300_000, [1, *[2**62] * 100_000]], ids=range(4))
@pytest.mark.parametrize("raw", [b"", b"\x01\x00\x00\x00x"], ids=["typed", "raw"])
def test_tensors_of_many_dimensions(fuzzed: Fuzzed, shape: list[int], raw: bytes) -> None:
    tensor = pb.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=shape)
    request = pb.ModelInferRequest(model_name="reward", inputs=[tensor], raw_input_contents=[raw] if raw else [])
    with grpc.insecure_channel(fuzzed.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(request.SerializeToString(), timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()


def test_raw_bytes_on_the_ports(fuzzed: Fuzzed) -> None:
    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings_frame = struct.pack(">I", 0)[1:] + b"\x04\x00\x00\x00\x00\x00"
    huge_frame = b"\xff\xff\xff\x00\x00\x00\x00\x00\x01"
    for address in (fuzzed.grpc, fuzzed.http.removeprefix("http://")):
        host, port = address.rsplit(":", 1)
        for raw in (b"\x00" * 1000, bytes(range(256)) * 40, hello, hello + settings_frame + huge_frame, hello[:7]):
            with socket.create_connection((host, int(port)), timeout=10) as connection, suppress(OSError):
                connection.sendall(raw)  # it may have hung up before all is sent
                connection.shutdown(socket.SHUT_WR)
    fuzzed.check()


def test_streams_that_end_half_way(fuzzed: Fuzzed) -> None:
    item = reward_pb2.ScoreItem(item_id="x", token_ids=types_pb2.TokenIds(ids=[5] * 200))
    request = reward_pb2.ScoreStreamRequest(item=item).SerializeToString()
    for wrong in (b"\xff\xff\xff", request[:-3]):
        with grpc.insecure_channel(fuzzed.grpc) as channel:
            stream = channel.stream_stream("/trimtab.v1.RewardService/ScoreStream")
            for requests in ([request, wrong], [request] * 5):
                call = stream(iter(requests), timeout=60)
                next(call, None) if requests[-1] is request else None
                call.cancel()
    fuzzed.check()


def test_it_answers_as_before_and_holds_no_more_memory(fuzzed: Fuzzed) -> None:
    """The last test of this file: what all of it has left behind."""
    fuzzed.check()
    deadline = time.monotonic() + 20
    while (grown := resident(fuzzed.process.pid) - fuzzed.memory) > MARGIN_BYTES and time.monotonic() < deadline:
        time.sleep(0.5)
    assert grown < MARGIN_BYTES, f"{grown / MEBIBYTE:.0f} MiB more than before"
    with httpx.Client(base_url=fuzzed.http, timeout=30) as http:
        assert http.post("/v1/score", json={"items": [ITEM]}).status_code == 200
    assert max(fuzzed.waits, default=float("inf")) < LONGEST_WAIT_S, sorted(fuzzed.waits)[-10:]
