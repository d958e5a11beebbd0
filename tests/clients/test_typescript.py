"""The TypeScript client: built from a clean copy, and its own tests run with Node against real servers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from certificate_files import Pair, make_pair
from running import FREE_PORTS, RunningServer, client, running, wait_serving
from trimtab.errors import DOMAIN, REASONS, Reason
from trimtab.rpc_errors import to_status
from trimtab.types import (
    GenerateRequest,
    GenerationPrompt,
    LogProbsItem,
    LogProbsOptions,
    LogProbsRequest,
    RankRequest,
    SamplingParams,
    ScoreItem,
    ScoreRequest,
)
from trimtab.v1 import reward_pb2, types_pb2
from trimtab.weights import TensorData, publish_version
from trimtab_services.weights import main as weights_main
from trimtab_services.weights.config import WeightsServiceConfig

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "clients/typescript"

PROMPT = "the quick brown fox"
ANSWERS = ("jumps over the lazy dog.", "sleeps", "what does the dog do?")
TOKEN_IDS = (5, 6, 7, 8, 9)
SEED = 2**62 + 1
TOKENS = {"score": "secret-score", "runs": "secret-runs"}

needs_npm = [pytest.mark.slow, pytest.mark.timeout(600)]  # `npm ci` fetches packages; `make typescript` runs it


class Told:
    """Fails as the request's model says: `REASON`, or `REASON*N` for the first N calls with the same request_id.

    SERVER_ENDS is what gRPC answers the calls in flight of a server that ends.

    A call that does not fail answers, as the served version, how many there were with its request_id.
    """

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._lock = threading.Lock()

    def score(self, request: reward_pb2.ScoreRequest, context: grpc.ServicerContext) -> reward_pb2.ScoreResponse:
        with self._lock:
            self._calls[request.request_id] += 1
            calls = self._calls[request.request_id]
        reason, _, times = request.model.partition("*")
        if not times or calls <= int(times):
            if reason == "SERVER_ENDS":
                context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")  # gRPC's own words, without details
            context.abort_with_status(_status(reason))
        return reward_pb2.ScoreResponse(served=types_pb2.ServedModel(version=calls))


def _status(reason: str) -> grpc.Status:
    if reason not in Reason.__members__:
        return _full_without_retry(reason)
    error = REASONS[Reason(reason)][1](
        "items[3].text: é 1 is above 0\nnext line",
        reason=Reason(reason),
        field="items[3].text",
        value="é 1",
        limit=0,
        metadata={"served_version": "7"},
        retry_after_s=1.25,
    )
    return to_status(error)


def _full_without_retry(reason: str) -> grpc.Status:
    """RESOURCE_EXHAUSTED for a reason that only a newer server knows, without RetryInfo."""
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata={"limit": "3"}))
    status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="too much", details=[packed])
    made: grpc.Status = rpc_status.to_status(status)
    return made


@pytest.fixture(scope="module")
def told() -> Iterator[str]:
    score = grpc.unary_unary_rpc_method_handler(
        Told().score, reward_pb2.ScoreRequest.FromString, reward_pb2.ScoreResponse.SerializeToString
    )
    handler = grpc.method_handlers_generic_handler("trimtab.v1.RewardService", {"Score": score})
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[handler])
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield target
    server.stop(None).wait()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A store with versions 1 to 3."""
    settings: dict[str, Any] = {"store": str(tmp_path_factory.mktemp("weights") / "store"), **FREE_PORTS}
    server = RunningServer(WeightsServiceConfig(**settings), "weights", weights_main.SERVICE, weights_main.build)
    wait_serving(server)
    with client(server) as connection:
        for step in range(3):
            tensor = TensorData.from_array("weight", np.full(2, step, np.float32))
            publish_version(connection, [tensor], {}, channels=["policy/latest"], run="one", stage="ppo", step=step)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A certificate for this machine: the servers' own, and their clients'."""
    return make_pair(tmp_path_factory.mktemp("tls"), "machine")


@pytest.fixture(scope="module")
def other_root(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A client's certificate, and a root that no server's certificate has."""
    return make_pair(tmp_path_factory.mktemp("tls"), "client")


@pytest.fixture(scope="module")
def servers(
    llama_folder: Path, reward_folder: Path, pair: Pair, other_root: Pair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, RunningServer]]:
    """The model services, and two guarded ones."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.json"
    tokens.write_text(json.dumps({token: {"name": scope, "scopes": [scope]} for scope, token in TOKENS.items()}))
    tls = {"certificate_file": pair.certificate, "key_file": pair.key}
    mutual = tls | {"client_ca_file": other_root.certificate}
    with ExitStack() as stack:

        def start(kind: str, **settings: Any) -> RunningServer:
            return stack.enter_context(running(kind, **settings))

        yield {
            "reward": start("reward", model_folder=reward_folder),
            "reference": start("reference", model_folder=llama_folder),
            "generation": start("generation", model_folder=llama_folder, slots=2, max_queue_tokens=600),
            "guarded": start("reward", model_folder=reward_folder, tls=tls, tokens_file=tokens),
            "mutual": start("reward", model_folder=reward_folder, tls=mutual),
        }


def answers_of_python(servers: dict[str, RunningServer]) -> dict[str, Any]:
    """What the Python client is answered to the questions that the TypeScript tests ask."""
    with client(servers["reward"]) as reward:
        items = tuple(ScoreItem(prompt=PROMPT, completion=answer) for answer in ANSWERS)
        scores = reward.score(ScoreRequest(items=items)).scores
        ranked = reward.rank(RankRequest(prompt=PROMPT, answers=ANSWERS))
    with client(servers["reference"]) as reference:
        options = LogProbsOptions(temperature=0.7)
        asked = LogProbsRequest(items=(LogProbsItem(token_ids=TOKEN_IDS, start_index=2),), options=options)
        (logprobs,) = reference.logprobs(asked).results
    with client(servers["generation"]) as generation:
        prompt = GenerationPrompt(prompt_id="p", prompt=PROMPT, seed=SEED, num_samples=2)
        sampling = SamplingParams(max_new_tokens=8, temperature=0.9)
        request = GenerateRequest(prompts=(prompt,), sampling=sampling, return_text=True)
        completions = [result.completion for result in generation.generate(request) if result.completion]
    return {
        "rewards": [score.reward for score in scores],
        "order": list(ranked.order),
        "probabilities": np.asarray(ranked.pairwise_probabilities).ravel().tolist(),
        "logprobs": np.asarray(logprobs.logprobs).tolist(),
        "completions": [
            {"tokenIds": list(one.token_ids), "logprobs": np.asarray(one.logprobs).tolist(), "text": one.text}
            for one in sorted(completions, key=lambda one: one.sample_index)
        ],
        "versions": [3, 2, 1],
        "reasons": {reason.value: [code.name, kind.__name__] for reason, (code, kind) in REASONS.items()},
    }


@pytest.fixture(scope="module")
def environment(
    servers: dict[str, RunningServer], weights: RunningServer, told: str, pair: Pair, other_root: Pair
) -> dict[str, str]:
    """Addresses, questions and expected answers, for the Node tests."""
    targets = {name: server.target for name, server in servers.items()}
    settings = {
        "targets": {**targets, "weights": weights.target, "told": told},
        "files": {
            "ca": str(pair.certificate),
            "certificate": str(other_root.certificate),
            "key": str(other_root.key),
        },
        "tokens": TOKENS,
        "prompt": PROMPT,
        "answers": ANSWERS,
        "tokenIds": TOKEN_IDS,
        "seed": str(SEED),
        "expected": answers_of_python(servers),
    }
    return {**os.environ, "TRIMTAB_TEST": json.dumps(settings)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy as from a fresh clone, installed by its lock file and built."""
    root = tmp_path_factory.mktemp("clone")
    project = root / "clients/typescript"
    shutil.copytree(ROOT / "protos", root / "protos")
    shutil.copytree(SOURCE, project, ignore=shutil.ignore_patterns("node_modules", "dist"))
    for command in (("ci",), ("run", "build")):
        done = npm(project, *command)
        assert done.returncode == 0, done.stdout + done.stderr
    return project


def npm(project: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["npm", *arguments], cwd=project, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("section", ["dependencies", "devDependencies"])
def test_versions_are_exact(section: str) -> None:
    wanted = json.loads((SOURCE / "package.json").read_text())[section]
    assert wanted and all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values()), wanted
    locked = json.loads((SOURCE / "package-lock.json").read_text())["packages"]
    assert {name: locked[f"node_modules/{name}"]["version"] for name in wanted} == wanted


def test_the_lock_file_names_no_registry() -> None:
    packages = json.loads((SOURCE / "package-lock.json").read_text())["packages"]
    assert len(packages) > 10
    assert not [name for name, entry in packages.items() if "resolved" in entry]
    assert not [name for name, entry in packages.items() if name and "integrity" not in entry]


class TestWithNode:
    pytestmark = needs_npm

    def test_its_own_tests_pass(self, built: Path, environment: dict[str, str]) -> None:
        declared = sum(len(re.findall(r"^test\(", path.read_text(), re.M)) for path in built.glob("test/*.test.ts"))
        done = npm(built, "test", env=environment)
        report = done.stdout + done.stderr
        counts = {name: int(count) for name, count in re.findall(r"^ℹ (\w+) (\d+)$", done.stdout, re.M)}
        assert done.returncode == 0, report
        assert declared >= 40 and counts["tests"] == counts["pass"] == declared, report
        assert not counts["skipped"] and not counts["todo"] and not counts["cancelled"], report

    def test_its_own_tests_fail_where_the_answers_differ(self, built: Path, environment: dict[str, str]) -> None:
        settings = json.loads(environment["TRIMTAB_TEST"])
        settings["expected"]["rewards"][1] += 0.01
        command = ["node", "--test", "--test-reporter=spec", "dist/test/scoring.test.js"]
        env = {**environment, "TRIMTAB_TEST": json.dumps(settings)}
        done = subprocess.run(command, cwd=built, env=env, capture_output=True, text=True, timeout=120)
        failed = set(re.findall(r"^✖ (.+?) \(", done.stdout, re.M))
        assert done.returncode != 0 and {"score", "rank"} <= failed, done.stdout

    def test_the_example(self, built: Path, servers: dict[str, RunningServer]) -> None:
        command = ["node", "dist/examples/score.js", servers["reward"].target]
        done = subprocess.run(command, cwd=built, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        rewards = [float(line.split("  ")[0]) for line in done.stdout.splitlines()]
        assert len(rewards) == 2 and rewards == sorted(rewards, reverse=True)
        command = ["node", "dist/examples/score.js", servers["guarded"].target]
        refused = subprocess.run(command, cwd=built, capture_output=True, text=True, timeout=60)
        assert refused.returncode == 1 and refused.stderr.startswith("UNREACHABLE: "), refused.stderr

    def test_what_is_generated_is_fresh(self, built: Path) -> None:
        done = npm(built, "run", "check-generated")
        assert done.returncode == 0, done.stdout + done.stderr
        changed = built.parents[1] / "protos/trimtab/v1/reward.proto"
        text = changed.read_text()
        try:
            changed.write_text(text.replace("float reward = 2;", "double reward = 2;"))
            stale = npm(built, "run", "check-generated")
        finally:
            changed.write_text(text)
        assert stale.returncode != 0 and "src/generated is stale" in stale.stderr

    def test_it_is_formatted_and_free_of_lint(self, built: Path) -> None:
        done = npm(built, "run", "lint")
        assert done.returncode == 0, done.stdout + done.stderr
