"""Bad input through the command line: one clear message, an exit code, within seconds."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml


def trimtab(*arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trimtab", *map(str, arguments)], capture_output=True, text=True, timeout=timeout
    )


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def write_spec(folder: Path, **changes: object) -> Path:
    demonstrations = folder / "demonstrations.jsonl"
    if not demonstrations.exists():
        demonstrations.write_text('{"prompt": "the dog", "completion": "It sleeps."}\n' * 4)
    spec = {
        "name": "bad",
        "directory": str(folder / "run"),
        "model": str(folder / "nowhere"),
        "data_directory": str(folder),
        "stages": ["sft"],
        "sft": {"demonstrations": str(demonstrations), "pretraining": None, "rl_init": None, "epochs": 1},
        **changes,
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ppo.iteration=3", ("unknown key 'ppo.iteration'", "iterations")),
        ("ppo.iterations=many", ("ppo.iterations", "'many'", "integer")),
        ("ppo.clip_range=1.5", ("ppo.clip_range", "1.5", "less than 1")),
        ("ppo.sampling.top_p=0.8", ("top_p is 0.8", "allowed in PPO: 1.0", "ratio")),
        ("stages=[ppo, sft]", ("ppo, sft", "in the order")),
        ("precision=bfloat16", ("precision is bfloat16", "float32")),
        ("stages=[ppo]", ("ppo.policy is 'sft/rl_init'", "stage sft does not run before ppo")),
    ],
)
def test_wrong_run_spec(tmp_path: Path, override: str, words: tuple[str, ...]) -> None:
    refused(trimtab("run", write_spec(tmp_path), "--check", "--set", override), *words)


def test_missing_files(tmp_path: Path) -> None:
    refused(trimtab("run", tmp_path / "none.yaml"), "none.yaml", "No such file")
    refused(trimtab("run", write_spec(tmp_path)), "nowhere", "no such folder")


def test_broken_rows_and_one_answer(tmp_path: Path, llama_folder: Path) -> None:
    rows = tmp_path / "demonstrations.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "", "completion": "c"}\n')
    spec = write_spec(tmp_path, model=str(llama_folder))
    refused(trimtab("run", spec), "demonstrations.jsonl:2", "prompt must not be empty")
    rows.write_text('{"prompt": "a", "completion": "b"}\nnot json\n')
    shutil.rmtree(tmp_path / "run")
    refused(trimtab("run", spec), "demonstrations.jsonl:2", "not a JSON object")
    ranking = tmp_path / "rankings.jsonl"
    ranking.write_text(json.dumps({"prompt": "a", "answers": ["b"], "ranks": [1]}) + "\n")
    refused(trimtab("data", "check", "rankings", ranking), "rankings.jsonl:1", "K is 1", "2..9")


def test_prompt_longer_than_the_context(tmp_path: Path, llama_folder: Path) -> None:
    rows = tmp_path / "demonstrations.jsonl"
    rows.write_text(json.dumps({"prompt": "the dog " * 400, "completion": "b"}) + "\n")
    refused(
        trimtab("run", write_spec(tmp_path, model=str(llama_folder))),
        "1 of 1 rows are longer than 256 tokens, the longest has",
    )


def test_model_folder_without_safetensors(tmp_path: Path, llama_folder: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    config = tmp_path / "reference.yaml"
    ports = {f"{name}_port": 0 for name in ("grpc", "health", "http", "metrics")}
    config.write_text(yaml.safe_dump({"model_folder": str(folder), **ports}))
    refused(trimtab("serve", "reference", "--config", config), "no *.safetensors", "pytorch_model.bin")


def test_port_in_use_wrong_keys_and_plaintext_beyond_loopback(tmp_path: Path) -> None:
    config = tmp_path / "weights.yaml"
    config.write_text(yaml.safe_dump({"store": str(tmp_path / "store"), "health_port": 0, "metrics_port": 0}))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        began = time.monotonic()
        refused(trimtab("serve", "weights", "--config", config, "--grpc-port", port), f"grpc_port {port}", "in use")
        assert time.monotonic() - began < 10
    refused(trimtab("serve", "weights", "--config", config, "--host", "0.0.0.0"), "0.0.0.0", "tls", "insecure")
    config.write_text(yaml.safe_dump({"stor": "x"}))
    refused(trimtab("serve", "weights", "--config", config), "unknown key 'stor'", "store")


def test_service_that_is_not_there(tmp_path: Path) -> None:
    began = time.monotonic()
    result = trimtab("score", "--prompt", "a", "--completion", "b", "--target", "127.0.0.1:9", "--timeout", 2)
    refused(result, "127.0.0.1:9")
    assert time.monotonic() - began < 15
    refused(trimtab("status", "--dir", tmp_path), "endpoints.json", "trimtab up")
    refused(trimtab("scale", "generation=2", "--dir", tmp_path), "endpoints.json")
    refused(trimtab("scale", "weights=2", "--dir", tmp_path), "weights", "generation")


def test_help_answers_at_once_and_without_torch() -> None:
    code = "import sys, trimtab.cli; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    result = trimtab("--help")
    assert result.returncode == 0 and "quickstart" in result.stdout
