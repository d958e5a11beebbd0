"""Clients of other projects, unmodified, against a real server: Triton's, KServe's, and what OpenRLHF's trainer sends.

Triton's and KServe's packages both register the protocol's messages, as this server does, so each of them runs in a
process of its own, from an environment of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from running import RunningServer, client, running
from trimtab.types import ScoreItem, ScoreRequest

PROMPTS, COMPLETIONS = ["say something", "the dög"], ["helpful", "It sleeps, twice."]
PACKAGES = ("tritonclient[http,grpc]>=2.60", "kserve>=0.15")

TRITON = """
import importlib, json, sys
import numpy as np
from google.protobuf import json_format
from tritonclient.utils import InferenceServerException

kind, address, prompts, completions = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
triton = importlib.import_module(f"tritonclient.{kind}")
client = triton.InferenceServerClient(address)

def tensor(name, values, **options):
    values = np.array([value.encode() for value in values], dtype=object)
    made = triton.InferInput(name, list(values.shape), "BYTES")
    made.set_data_from_numpy(values, **options)
    return made

def infer(prompts, completions, options={}, **asked):
    inputs = [tensor("prompt", prompts, **options), tensor("completion", completions, **options)]
    return client.infer("reward", inputs, **asked)

def plain(metadata):
    return metadata if isinstance(metadata, dict) else json_format.MessageToDict(metadata)

found = infer(prompts, completions)
ids = triton.InferInput("token_ids", [1, 3], "INT32")
ids.set_data_from_numpy(np.array([[5, 6, 7]], dtype=np.int32))
by_ids = client.infer("reward", [ids], outputs=[triton.InferRequestedOutput("reward")])
cut = infer(["a"], ["quick " * 200], parameters={"truncation": "LEFT"}, priority=1, request_id="q")
told = {
    "rewards": found.as_numpy("reward").tolist(),
    "dtypes": [str(found.as_numpy(name).dtype) for name in ("reward", "token_count")],
    "token_ids": by_ids.as_numpy("reward").tolist(),
    "cut": cut.as_numpy("token_count").tolist(),
    "health": [client.is_server_live(), client.is_server_ready(), client.is_model_ready("reward")],
    "extensions": plain(client.get_server_metadata())["extensions"],
    "inputs": [one["name"] for one in plain(client.get_model_metadata("reward"))["inputs"]],
}
if kind == "http":
    zipped = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"}
    told["as_json"] = infer(prompts, completions, {"binary_data": False}).as_numpy("reward").tolist()
    told["compressed"] = infer(prompts, completions, **zipped).as_numpy("reward").tolist()
    told["nobody_is_ready"] = client.is_model_ready("nobody")
try:
    infer(["a"], ["quick " * 200])
except InferenceServerException as error:
    told["error"] = [error.status(), error.message()]
print(json.dumps(told))
"""

KSERVE = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

kind, address, prompts, completions = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])

def request(binary):
    inputs = []
    for name, values in (("prompt", prompts), ("completion", completions)):
        made = InferInput(name=name, shape=[len(values)], datatype="BYTES", data=None if binary else values)
        if binary:
            made.set_data_from_numpy(np.array([value.encode() for value in values], dtype=object), binary_data=True)
        inputs.append(made)
    return InferRequest(model_name="reward", infer_inputs=inputs, request_id="q")

async def ask(client, *where, named):
    model = {"model_name": "reward"} if named else {}
    answers = [await client.infer(*where, request(binary), **model) for binary in (False, True)]
    return {
        "rewards": [np.asarray(answer.get_output_by_name("reward").as_numpy()).tolist() for answer in answers],
        "health": [
            await client.is_server_live(*where),
            await client.is_server_ready(*where),
            await client.is_model_ready(*where, "reward"),
        ],
    }

async def main():
    if kind == "rest":
        return await ask(InferenceRESTClient(RESTConfig(protocol="v2")), f"http://{address}", named=True)
    async with InferenceGRPCClient(url=address) as client:
        return await ask(client, named=False)

print(json.dumps(asyncio.run(main())))
"""


@pytest.fixture(scope="session")
def foreign_python(request: pytest.FixtureRequest) -> Path:
    """The Python of an environment that has the clients; made once, kept in pytest's cache folder."""
    folder = Path(request.config.cache.mkdir("foreign_clients")) / "venv"  # type: ignore[union-attr]
    wanted, stamp = "\n".join(PACKAGES), folder / "packages.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, timeout=120)
        subprocess.run([folder / "bin/pip", "install", "--quiet", *PACKAGES], check=True, timeout=540)
        stamp.write_text(wanted)
    return folder / "bin/python"


@pytest.fixture(scope="module")
def served(reward_folder: Path) -> Iterator[RunningServer]:
    with running("reward", model_folder=reward_folder, deterministic=True) as server:
        yield server


@pytest.fixture(scope="module")
def rewards(served: RunningServer) -> list[float]:
    items = tuple(ScoreItem(prompt=p, completion=c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True))
    with client(served) as own:
        return [score.reward for score in own.score(ScoreRequest(items=items)).scores]


def asked(python: Path, script: str, kind: str, address: str) -> dict:
    command = [python, "-c", script, kind, address, json.dumps(PROMPTS), json.dumps(COMPLETIONS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def http_address(served: RunningServer) -> str:
    return served.server.runtime.address(served.server.runtime.ports.http)


@pytest.mark.slow  # the first time it installs the clients
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_tritonclient(foreign_python: Path, served: RunningServer, rewards: list[float], kind: str) -> None:
    found = asked(foreign_python, TRITON, kind, http_address(served) if kind == "http" else served.target)
    with client(served) as own:
        by_ids = own.score(ScoreRequest(items=(ScoreItem(token_ids=(5, 6, 7)),))).scores[0].reward
    assert found["rewards"] == rewards and found["dtypes"] == ["float32", "int32"]
    assert found.get("as_json", rewards) == rewards and found.get("compressed", rewards) == rewards
    assert found["token_ids"] == [by_ids] and found["cut"] == [256]
    assert found["health"] == [True, True, True] and not found.get("nobody_is_ready", False)
    assert found["extensions"] == ["binary_tensor_data"]
    assert found["inputs"] == ["prompt", "completion", "text", "token_ids", "lengths"]
    status, text = found["error"]
    assert status == {"http": "400", "grpc": "StatusCode.INVALID_ARGUMENT"}[kind]
    assert text.startswith("items[0].token_ids: ") and text.endswith("tokens; allowed: 256")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_kserve(foreign_python: Path, served: RunningServer, rewards: list[float], kind: str) -> None:
    address = http_address(served) if kind == "rest" else served.target
    found = asked(foreign_python, KSERVE, kind, address)
    assert found == {"rewards": [rewards, rewards], "health": [True, True, True]}


async def _as_openrlhf(url: str, payload: dict) -> dict:
    """One request as OpenRLHF's trainer makes it."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session,
        session.post(url, json=payload) as response,
    ):
        response.raise_for_status()
        return await response.json()


def test_openrlhf(served: RunningServer) -> None:
    payload = {
        "query": ["<|user|>say something<|end|><|assistant|>helpful<|end|>"],
        "prompts": ["<|user|>say something<|end|><|assistant|>"],
        "labels": [None],
    }
    answer = served.run(_as_openrlhf(f"http://{http_address(served)}/get_reward", payload))
    with client(served) as own:
        item = ScoreItem(prompt="say something", completion="helpful")
        expected = own.score(ScoreRequest(items=(item,))).scores[0].reward
    assert answer == {"rewards": [expected], "scores": [expected], "extra_logs": {}}
