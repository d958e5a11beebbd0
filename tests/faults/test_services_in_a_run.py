"""What a run does when the services are not what it needs, or stop being it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from processes import run_process
from tiny_models import make_policy, make_tokenizer
from trimtab.client import Client
from trimtab.local import CHANNELS, LocalServices, read_endpoints, request_scale
from trimtab.types import ServiceState
from trimtab.v1 import weights_pb2
from trimtab_models.loading import reward_model_from_policy, save_model
from trimtab_models.tokenizer import load_tokenizer, tokenizer_digest
from trimtab_models.versions import publish_folder
from trimtab_trainer.checkpoint import CheckpointStore

STEP_DONE = '"event": "step_done"'


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Iterator[LocalServices]:
    """All services; generation serves the llama policy, as after an earlier run."""
    with LocalServices(tmp_path_factory.mktemp("services"), settings={"generation": {"slots": 8}}) as running:
        endpoints = read_endpoints(running.directory)
        with Client(endpoints["weights"][0]["grpc"]) as weights:
            publish_folder(weights, llama_folder, channels=[CHANNELS["generation"]])
        with Client(endpoints["generation"][0]["grpc"]) as generation:
            deadline = time.monotonic() + 60
            while generation.info().state is not ServiceState.SERVING:
                assert time.monotonic() < deadline, generation.info()
                time.sleep(0.1)
        yield running


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy whose tokenizer has one token more."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["zzz"])
    folder = tmp_path_factory.mktemp("models") / "other"
    save_model(make_policy("llama", len(tokenizer)), tokenizer, folder)
    return folder


def write_ppo(
    folder: Path,
    policy: Path,
    reward: Path,
    services: LocalServices,
    *,
    waits: dict[str, float] | None = None,
    **ppo: object,
) -> Path:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"the dog {number}"}) + "\n" for number in range(32)))
    spec = {
        "name": folder.name.replace("_", "-").lower(),
        "directory": str(folder / "run"),
        "model": str(policy),
        "data_directory": str(folder),
        "stages": ["ppo"],
        "services": {
            **{
                name: {"endpoints_file": str(services.endpoints_file)}
                for name in ("generation", "reward", "reference", "weights")
            },
            "patience_s": 3,
            **(waits or {}),
        },
        "ppo": {
            "policy": str(policy),
            "reward_model": str(reward),
            "prompts": str(prompts),
            "prompts_held_out": None,
            "held_out_fraction": 0.0,
            "ptx_coef": 0.0,
            "pretraining": None,
            "pretraining_held_out": None,
            "iterations": 10_000,
            "prompts_per_iteration": 8,
            "minibatches": 1,
            "sampling": {"max_new_tokens": 8},
            **ppo,
        },
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def wait_for_step(events: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not (events.exists() and f'"step": {step}, {STEP_DONE}' in events.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def refused(process: subprocess.Popen[str], *words: str) -> None:
    try:
        _, errors = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode not in (0, None) and "Traceback" not in errors, errors
    flat = " ".join(errors.split())
    assert [word for word in words if word not in flat] == [], errors


def test_a_reward_model_with_another_tokenizer(
    tmp_path: Path, services: LocalServices, other_folder: Path, reward_folder: Path
) -> None:
    digests = [tokenizer_digest(load_tokenizer(folder)) for folder in (other_folder, reward_folder)]
    refused(run_process(write_ppo(tmp_path, other_folder, reward_folder, services)), "ppo.reward_model", *digests)


def test_a_service_with_another_tokenizer(
    tmp_path: Path, services: LocalServices, llama_folder: Path, other_folder: Path
) -> None:
    tokenizer = load_tokenizer(other_folder)
    reward = tmp_path / "reward"
    save_model(reward_model_from_policy(other_folder, tokenizer=tokenizer, seed=1), tokenizer, reward)
    served = tokenizer_digest(load_tokenizer(llama_folder))
    address = read_endpoints(services.directory)["generation"][0]["grpc"]
    refused(run_process(write_ppo(tmp_path, other_folder, reward, services)), f"generation at {address}", served)


def test_a_policy_that_runs_away_is_rolled_back(
    tmp_path: Path, services: LocalServices, llama_folder: Path, reward_folder: Path
) -> None:
    optimizer = {"learning_rate": 0.05, "schedule": "constant", "final_fraction": 1.0}
    spec = write_ppo(
        tmp_path, llama_folder, reward_folder, services, kl_limit=0.5, optimizer=optimizer, checkpoint_every=1
    )
    refused(run_process(spec), "mean KL of the batch is", "ppo.kl_limit: 0.5")
    iterations = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    metrics = [row["metrics"] for row in iterations if row["event"] == "step_done"]
    assert any("generation is back on version" in row.get("text", "") for row in iterations)
    assert metrics and all(row["mean_kl"] <= 0.5 for row in metrics)
    assert list((tmp_path / "run" / "diverged").glob("ppo-step-*.safetensors"))
    checkpoints = CheckpointStore(tmp_path / "run" / "checkpoints" / "ppo").steps()
    assert checkpoints[-1:] == ([len(metrics) - 1] if len(metrics) > 1 else [])
    with Client(read_endpoints(services.directory)["weights"][0]["grpc"]) as weights:
        channels = weights.list_channels(weights_pb2.ListChannelsRequest()).channels
    latest = next(channel.version for channel in channels if channel.name == CHANNELS["generation"])
    assert latest == metrics[-1]["version"]  # the last step published the version that ran away


def test_a_service_that_dies_for_good_ends_the_run_and_loses_nothing(
    tmp_path: Path, services: LocalServices, llama_folder: Path, reward_folder: Path
) -> None:
    spec = write_ppo(tmp_path, llama_folder, reward_folder, services, checkpoint_every=1)
    events = tmp_path / "run" / "events.jsonl"
    process = run_process(spec)
    wait_for_step(events, 2, process)
    wanted = services.directory / "replicas.json"
    before = wanted.read_text()
    wanted.write_text(json.dumps(json.loads(before) | {"reward": 0}))
    began = time.monotonic()
    refused(process, "no reward replica has served for 3 s")
    assert time.monotonic() - began < 60

    wanted.write_text(before)
    done = events.read_text().count(STEP_DONE)
    process = run_process(spec, "--resume")
    wait_for_step(events, done + 2, process)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)
    assert process.returncode == 130, output
    steps = [json.loads(line)["step"] for line in events.read_text().splitlines() if STEP_DONE in line]
    assert steps == list(range(1, len(steps) + 1))


def test_a_weights_service_that_comes_back_ends_nothing(
    tmp_path: Path, services: LocalServices, llama_folder: Path, reward_folder: Path
) -> None:
    spec = write_ppo(tmp_path, llama_folder, reward_folder, services, waits={"patience_s": 30.0})
    events = tmp_path / "run" / "events.jsonl"
    process = run_process(spec)
    try:
        wait_for_step(events, 2, process)
        killed = read_endpoints(services.directory)["weights"][0]["pid"]
        os.kill(killed, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while (
            killed in [one["pid"] for one in read_endpoints(services.directory)["weights"]]
            or not read_endpoints(services.directory)["weights"]
        ):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        done = events.read_text().count(STEP_DONE)  # a short outage may pass within the client's own retries, untold
        wait_for_step(events, done + 3, process)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)
        assert process.returncode == 130, output
    finally:
        process.kill()


@pytest.mark.slow
def test_a_run_goes_on_while_generation_scales_and_a_replica_falls_silent(
    tmp_path: Path, services: LocalServices, llama_folder: Path, reward_folder: Path
) -> None:
    spec = write_ppo(tmp_path, llama_folder, reward_folder, services)
    events = tmp_path / "run" / "events.jsonl"
    process, silent = run_process(spec), 0
    try:
        wait_for_step(events, 2, process)
        request_scale(services.directory, "generation", 2)
        deadline = time.monotonic() + 60
        while '"replicas": 2' not in events.read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        silent = read_endpoints(services.directory)["generation"][1]["pid"]
        os.kill(silent, signal.SIGSTOP)
        done = events.read_text().count(STEP_DONE)
        wait_for_step(events, done + 5, process)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)
        assert process.returncode == 130, output
    finally:
        process.kill()
        if silent:
            os.kill(silent, signal.SIGCONT)
        request_scale(services.directory, "generation", 1)


def test_ctrl_c_ends_a_wait_for_a_service(
    tmp_path: Path, services: LocalServices, llama_folder: Path, reward_folder: Path
) -> None:
    spec = write_ppo(tmp_path, llama_folder, reward_folder, services, waits={"start_timeout_s": 120.0})
    content = yaml.safe_load(spec.read_text())
    content["services"]["reward"] = {"addresses": ["127.0.0.1:9"]}
    spec.write_text(yaml.safe_dump(content))
    process = run_process(spec)
    try:
        events = tmp_path / "run" / "events.jsonl"
        deadline = time.monotonic() + 60
        while not (events.exists() and "waits for reward: 127.0.0.1:9" in events.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=30)
        assert process.returncode == 130 and time.monotonic() - began < 10, output
    finally:
        process.kill()
    assert json.loads((tmp_path / "run" / "state.json").read_text())["state"] == "STOPPED"
