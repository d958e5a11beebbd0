"""A generation service whose engine is vLLM: it follows a channel, and a run of PPO-ptx trains through it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from tests.services.weights.conftest import running as running_store

from processes import serving
from tiny_models import make_policy, make_tokenizer
from trimtab.client import Client
from trimtab.types import GenerateRequest, GenerationPrompt, SamplingParams, ServiceState, VersionRequirement
from trimtab_models.loading import save_model
from trimtab_models.versions import publish_model

TOKENIZER = make_tokenizer()
CHANNEL = "policy/latest"


def has_vllm() -> bool:
    return importlib.util.find_spec("vllm") is not None


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not has_vllm(), reason="vllm is not installed; `make vllm` runs this where it is"),
]


def publish(target: str, *, seed: int, layers: int = 2) -> None:
    model = make_policy("llama", len(TOKENIZER), seed=seed, hidden=128, layers=layers)
    with Client(target) as connection:
        publish_model(connection, model, TOKENIZER, channels=[CHANNEL])


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_it_follows_a_channel_and_takes_another_size(tmp_path: Path) -> None:
    def ask(version: int, *, samples: int = 1) -> GenerateRequest:
        return GenerateRequest(
            prompts=(GenerationPrompt(prompt_id="p", prompt=(5, 6), seed=1, num_samples=samples),),
            sampling=SamplingParams(max_new_tokens=8, ignore_eos=True),
            version=VersionRequirement(exactly=version),
            max_wait_ms=60_000,
        )

    with running_store(store=str(tmp_path / "store")) as store:
        publish(store.target, seed=1)
        source = {"address": store.target, "channel": CHANNEL}
        with serving("generation", tmp_path / "replica", engine="vllm", slots=4, weights=source) as replica:
            connection = replica.client(120.0)
            until(lambda: connection.info().state is ServiceState.SERVING)
            tokens = {}
            for version, layers in ((1, 2), (2, 2), (3, 3), (4, 3)):
                if version > 1:
                    publish(store.target, seed=version, layers=layers)
                results = list(connection.generate(ask(version, samples=6)))
                assert len(results) == 6
                for result in results:
                    assert result.completion is not None
                    assert [span.version for span in result.completion.version_spans] == [version]
                tokens[version] = results[0].completion
            info = connection.info()
            assert (info.engine, info.models[0].served.version, info.models[0].last_swap_error) == ("vllm", 4, "")
            assert len({one.token_ids for one in tokens.values() if one is not None}) == 4


def test_a_model_that_vllm_cannot_run_is_told(tmp_path: Path) -> None:
    save_model(make_policy("llama", len(TOKENIZER)), TOKENIZER, tmp_path / "model")
    with serving("generation", tmp_path / "replica", engine="vllm", model_folder=str(tmp_path / "model")) as replica:
        connection = replica.client(60.0)
        until(lambda: connection.info().state is ServiceState.FAILED)
        assert "vLLM cannot run LlamaForCausalLM" in connection.info().state_reason
        assert "head_dim=8" in connection.info().state_reason and not connection.health("readiness")


def test_a_run_of_ppo_ptx_trains_through_it(tmp_path: Path) -> None:
    """All stages of the miniature, with heads of 32 values, which vLLM's kernels for a CPU need."""
    from transformers import LlamaForCausalLM

    from trimtab_trainer.miniature.tokenizer import base_config, build_tokenizer

    torch.manual_seed(0)
    config = base_config()
    config.num_attention_heads = config.num_key_value_heads = 2
    config.head_dim = 32
    save_model(LlamaForCausalLM(config), build_tokenizer(), tmp_path / "base")
    services = {"generation": {"engine": "vllm", "slots": 32}}
    (tmp_path / "up.yaml").write_text(yaml.safe_dump(services))
    trimtab = [sys.executable, "-m", "trimtab"]
    with (tmp_path / "up.log").open("wb") as log:
        up = subprocess.Popen(
            [*trimtab, "up", "--config", str(tmp_path / "up.yaml"), "--dir", str(tmp_path / "up")],
            stdout=log,
            stderr=log,
        )
    try:
        endpoints = tmp_path / "up" / "endpoints.json"
        until(lambda: endpoints.exists() or up.poll() is not None, 120)
        assert up.poll() is None, (tmp_path / "up.log").read_text()
        small = {
            "model": tmp_path / "base",
            "miniature.pretrain": 2000,
            "miniature.demonstrations": 60,
            "miniature.prompts": 400,
            "pretrain.max_steps": 25,
            "sft.epochs": 1,
            "collect_rankings.limit": 120,
            "collect_rankings.prompts_per_request": 60,
            "ppo.iterations": 4,
            "ppo.prompts_per_iteration": 32,
            "ppo.critic_warmup_iterations": 1,
            "ppo.kl_stop": "null",
            "evaluate.prompts": 20,
            "evaluate.samples_per_prompt": 2,
        }
        spec = tmp_path / "spec.yaml"
        spec.write_text("preset: tiny\n")
        settings = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
        run = subprocess.run(
            [*trimtab, "run", str(spec), *settings, "--dir", str(tmp_path / "run"), "--endpoints", str(endpoints)],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
        addresses = json.loads(endpoints.read_text())
        with Client(addresses["generation"][0]["grpc"]) as connection:
            info = connection.info()
        assert info.engine == "vllm" and info.models[0].served.version > 4 and not info.models[0].last_swap_error
        assert (tmp_path / "run" / "models" / "ppo").is_dir()
    finally:
        up.terminate()
        up.wait(60)
