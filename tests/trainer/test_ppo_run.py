"""PPO against real services: what it learns, what a resume repeats, what a lag allows, what is refused at the start.

The reward model is made by hand: attention that looks everywhere alike over embeddings that mark even token ids, so its
score rises with the share of even tokens. Nothing of the proof that PPO learns hangs on a reward model's luck.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForSequenceClassification

from tiny_models import make_policy, make_tokenizer
from trimtab.client import Client
from trimtab.errors import DataError, LeaseHeld, Mismatch, Unavailable
from trimtab.local import LocalServices, read_endpoints
from trimtab.v1 import weights_pb2
from trimtab_models.heads import read_rewards
from trimtab_models.loading import load_policy, load_reward_model, save_model
from trimtab_models.tokenizer import encode_prompt, load_tokenizer
from trimtab_trainer.checkpoint import CheckpointStore
from trimtab_trainer.config import RunSpec
from trimtab_trainer.context import Orders, StageContext
from trimtab_trainer.ppo_data import PPOData
from trimtab_trainer.ppo_metrics import WORK
from trimtab_trainer.prompts import prompt_examples
from trimtab_trainer.reporter import Reporter, RunState, read_events, step_metrics
from trimtab_trainer.rollout_pipeline import RolloutPipeline
from trimtab_trainer.run import RunOutcome
from trimtab_trainer.services import connect

Go = Callable[..., RunOutcome]

SETTINGS = {"deterministic": True, "threads": 1}
STEADY = {"schedule": "constant", "final_fraction": 1.0}
EOS, LIKELY = 1, 6


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    settings = {"generation": {**SETTINGS, "slots": 8}, "reward": SETTINGS, "reference": SETTINGS}
    with LocalServices(tmp_path_factory.mktemp("services"), settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def even_reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reward model whose score is a rising function of the share of even token ids, and of nothing else."""
    tokenizer = make_tokenizer()
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_labels=1,
            pad_token_id=0,
            eos_token_id=1,
            max_position_embeddings=256,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        embeddings = model.model.embed_tokens.weight
        embeddings[:, 0] = 4.0  # the same for every token, so that norms hardly differ
        embeddings[:, 1] = torch.where(torch.arange(len(tokenizer)) % 2 == 0, 1.0, -1.0)
        attention = model.model.layers[0].self_attn
        attention.v_proj.weight[0, 1] = 1.0  # queries and keys are 0: every position weighs the same
        attention.o_proj.weight[2, 0] = 4.0
        model.score.weight[0, 2] = 1.0
    folder = tmp_path_factory.mktemp("models") / "even"
    save_model(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def odd_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Policy of one distribution whatever came before: EOS 0.3, `LIKELY` 0.5, all other ids share the rest."""
    tokenizer = make_tokenizer()
    model = make_policy("llama", len(tokenizer))
    logits = torch.full((len(tokenizer),), math.log(0.2 / (len(tokenizer) - 2)))
    logits[EOS], logits[LIKELY] = math.log(0.3), math.log(0.5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name or "embed" in name else 0.0)
        model.lm_head.weight[:] = logits[:, None] / model.config.hidden_size
    folder = tmp_path_factory.mktemp("models") / "odd"
    save_model(model, tokenizer, folder)
    return folder


def spec(directory: Path, services: LocalServices, policy: Path, reward: Path, **ppo: Any) -> RunSpec:
    data = directory.parent
    (data / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"the dog {n}"}) + "\n" for n in range(96)))
    text = "The quick brown fox jumps over the lazy dog. It sleeps. "
    (data / "text.jsonl").write_text("".join(json.dumps({"text": text * (1 + n % 5)}) + "\n" for n in range(20)))
    section = {
        "policy": str(policy),
        "reward_model": str(reward),
        "prompts": str(data / "prompts.jsonl"),
        "pretraining": str(data / "text.jsonl"),
        "held_out_fraction": 0.1,
        "ptx_passage_tokens": 16,
        "ptx_ratio": 1,
        "iterations": 6,
        "prompts_per_iteration": 16,
        "minibatches": 2,
        "sampling": {"max_new_tokens": 8},
        "optimizer": {"learning_rate": 1e-3, **STEADY},
        "value_optimizer": {"learning_rate": 1e-3, **STEADY},
        "checkpoint_every": 100,
    }
    return RunSpec.model_validate(
        {
            "name": directory.name,
            "directory": directory,
            "model": str(policy),
            "data_directory": data,
            "stages": ["ppo"],
            "deterministic": True,
            "threads": 1,
            "services": {"endpoints_file": services.endpoints_file, "patience_s": 5, "start_timeout_s": 3},
            "ppo": {**section, **ppo},
        }
    )


def figures(directory: Path) -> dict[int, dict[str, float]]:
    """The metrics of every step but for what its work took."""
    return {
        step: {name: value for name, value in metrics.items() if not name.startswith(WORK)}
        for step, metrics in step_metrics(directory / "events.jsonl", "ppo").items()
    }


def weights(directory: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(directory / "models" / "ppo" / name / "model.safetensors")


def test_a_planted_reward_is_learnt(
    tmp_path: Path, services: LocalServices, llama_folder: Path, even_reward: Path, go: Go
) -> None:
    """Half of the tokens are even at the start; 40 iterations make nearly all of them so."""
    learning = {"learning_rate": 1e-2, **STEADY}
    run = spec(
        tmp_path / "planted",
        services,
        llama_folder,
        even_reward,
        iterations=40,
        prompts_per_iteration=64,
        minibatches=4,
        ptx_coef=0.0,
        kl_coef=0.0,
        missing_eos_score="none",
        optimizer=learning,
        value_optimizer=learning,
    )
    go(run)
    rewards = [metrics["reward"] for metrics in figures(tmp_path / "planted").values()]
    best = best_reward(even_reward)
    assert rewards[0] < 0.4 * best
    assert sum(rewards[-5:]) / 5 > 0.9 * best


def best_reward(reward: Path) -> float:
    """Mean reward where each prompt is followed by as many even tokens as an answer may have."""
    tokenizer, model = make_tokenizer(), LlamaForSequenceClassification.from_pretrained(reward)
    rewards = []
    for number in range(96):
        ids = encode_prompt(tokenizer, f"the dog {number}") + [6] * 8
        rewards.append(float(model(torch.tensor([ids])).logits.detach()))
    return sum(rewards) / len(rewards)


@pytest.mark.parametrize("max_lag", [0, 1, 3])
def test_a_stopped_and_resumed_run_is_the_same_run(
    tmp_path: Path, services: LocalServices, llama_folder: Path, reward_folder: Path, go: Go, max_lag: int
) -> None:
    """Weights, averages, metrics and version numbers, with everything on that has a state."""
    options = {
        "max_lag": max_lag,
        "kl_controller": "adaptive",
        "kl_target": 0.1,
        "kl_horizon": 100,
        "normalize_rewards": True,
        "ema_decay": 0.9,
        "critic_warmup_iterations": 1,
        "epochs": 2,
    }
    straight = spec(tmp_path / f"straight-{max_lag}", services, llama_folder, reward_folder, **options)
    halves = spec(tmp_path / f"halves-{max_lag}", services, llama_folder, reward_folder, **options)
    go(straight)
    assert go(halves, stop_after=3).state is RunState.STOPPED
    go(halves, resume=True)
    one, other = figures(straight.directory), figures(halves.directory)
    assert list(one) == list(other) == [1, 2, 3, 4, 5, 6]
    first = one[1]["version"] - other[1]["version"]
    for metrics in other.values():
        metrics["version"] += first  # the runs share a store: the numbers of one go on where the other's end
    assert one == other
    assert [metrics["lag"] for metrics in one.values()] == [min(max_lag, n) for n in range(6)]
    for name in ("last", "average"):
        ours, theirs = weights(straight.directory, name), weights(halves.directory, name)
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize("most", [16, 3, 0])
def test_rollouts_are_told_as_text(
    tmp_path: Path, services: LocalServices, llama_folder: Path, reward_folder: Path, go: Go, most: int
) -> None:
    run = spec(tmp_path / f"told-{most}", services, llama_folder, reward_folder, iterations=1, reported_samples=most)
    go(run)
    (event,) = [one for one in read_events(run.directory / "events.jsonl") if one.event == "step_done"]
    samples, metrics = event.fields.get("samples", []), event.fields["metrics"]
    assert len(samples) == most and len({one["prompt"] for one in samples}) == most
    assert all(one["prompt"].startswith("the dog") for one in samples)
    if most == 16:  # all of the iteration
        assert np.mean([one["reward"] for one in samples]) == pytest.approx(metrics["reward"])
        assert np.mean([one["ended"] for one in samples]) == pytest.approx(metrics["ended_fraction"])


def test_a_learning_rate_of_nearly_nothing_changes_nothing(
    tmp_path: Path, services: LocalServices, llama_folder: Path, reward_folder: Path, go: Go
) -> None:
    """Steps too small for float32 leave weights and log-probs bit-equal through a whole iteration."""
    still = {"learning_rate": 1e-30, **STEADY}
    run = spec(
        tmp_path / "still", services, llama_folder, reward_folder, iterations=2, optimizer=still, value_optimizer=still
    )
    go(run)
    before = load_file(llama_folder / "model.safetensors")
    assert [key for key, tensor in weights(run.directory, "last").items() if not torch.equal(tensor, before[key])] == []
    one, two = figures(run.directory).values()
    for metrics in (one, two):
        assert metrics["update_kl"] == 0.0 and metrics["clip_fraction"] == 0.0 and metrics["clamped_fraction"] == 0.0
        assert abs(metrics["mean_kl"]) < 1e-4


def test_a_lag_with_many_more_prompts_than_slots(
    tmp_path: Path, services: LocalServices, llama_folder: Path, reward_folder: Path, go: Go
) -> None:
    """Sampling takes longer than the update, and still no sample is of another version than it was asked for."""
    run = spec(
        tmp_path / "lagging",
        services,
        llama_folder,
        reward_folder,
        max_lag=1,
        iterations=3,
        prompts_per_iteration=48,
        minibatches=1,
        sampling={"max_new_tokens": 24},
    )
    assert go(run).state is RunState.SUCCEEDED
    assert [metrics["lag"] for metrics in figures(run.directory).values()] == [0, 1, 1]


def test_old_logprobs_of_the_sampler_are_held_to_the_trainers(
    tmp_path: Path, services: LocalServices, llama_folder: Path, reward_folder: Path, go: Go
) -> None:
    run = spec(
        tmp_path / "sampler", services, llama_folder, reward_folder, old_logprobs="generation", gate_tolerance=1e-12
    )
    with pytest.raises(Mismatch, match=r"generation and trainer differ by up to .* ppo.gate_tolerance: 1e-12"):
        go(run)


def test_every_logprob_is_at_the_temperature_of_the_rollouts(
    tmp_path: Path, services: LocalServices, llama_folder: Path, reward_folder: Path, go: Go
) -> None:
    """Generation, trainer and reference pass the gate; before the update old and new are the same to the last bit."""
    cooler = {"max_new_tokens": 8, "temperature": 0.5}
    run = spec(tmp_path / "cooler", services, llama_folder, reward_folder, iterations=1, minibatches=1, sampling=cooler)
    go(run)
    (metrics,) = figures(run.directory).values()
    assert metrics["update_kl"] == 0.0 and abs(metrics["mean_kl"]) < 1e-4
    assert 0 < metrics["mismatch_mean"] <= metrics["mismatch_max"] < 1e-4


def test_later_batches_are_held_to_the_sampler_too(
    tmp_path: Path, services: LocalServices, llama_folder: Path, reward_folder: Path, go: Go
) -> None:
    run = spec(tmp_path / "later", services, llama_folder, reward_folder, mismatch_tolerance=1e-12)
    with pytest.raises(Mismatch, match=r"generation and trainer differ on average by .* ppo.mismatch_tolerance: 1e-12"):
        go(run)
    assert list(figures(run.directory)) == [1]


def test_rollouts_are_draws_of_the_whole_distribution_and_judged_whole(
    tmp_path: Path, services: LocalServices, odd_policy: Path, even_reward: Path
) -> None:
    """First tokens against the policy's own probabilities: no top-p, no top-k, no least length, EOS ends."""
    prompts = {"prompts_per_iteration": 80, "samples_per_prompt": 5, "sampling": {"max_new_tokens": 4}}
    run = spec(tmp_path / "draws", services, odd_policy, even_reward, **prompts)
    with Reporter(run.directory, console=Console(file=io.StringIO())) as reporter:
        context = StageContext(run, "ppo", reporter, CheckpointStore(tmp_path / "checkpoints"), {}, Orders())
        tokenizer, policy = load_tokenizer(odd_policy), load_policy(odd_policy)
        data = PPOData.read(context, run.ppo, tokenizer)
        with connect(context, rollout_timeout_s=60) as connected:
            for name, folder in (("reference", odd_policy), ("reward", even_reward)):
                connected.serve(name, folder)
            version = connected.publish(policy, tokenizer, step=0)
            connected.check_policy(tokenizer, version, longest=data.longest_prompt + 4)
            rollouts = RolloutPipeline(context, run.ppo, connected, data.prompts).submit(0, version).result()

    first = np.array([rollout.token_ids[0] for rollout in rollouts])
    observed = [(first == EOS).sum(), (first == LIKELY).sum()]
    assert scipy.stats.chisquare([*observed, 400 - sum(observed)], np.array([0.3, 0.5, 0.2]) * 400).pvalue > 1e-4
    model = load_reward_model(even_reward)
    for rollout in rollouts:
        assert EOS not in rollout.token_ids[:-1] and rollout.ended is (rollout.token_ids[-1] == EOS)
        assert rollout.ended or len(rollout.token_ids) == 4
        ids = torch.tensor([rollout.prompt_token_ids + rollout.token_ids])
        with torch.no_grad():
            reward = float(read_rewards(model, ids, torch.tensor([ids.shape[1]])))
        assert rollout.reward == pytest.approx(reward, abs=1e-5)


def test_what_a_service_cannot_take_is_refused_before_anything_is_sampled(
    tmp_path: Path, services: LocalServices, llama_folder: Path, reward_folder: Path, go: Go
) -> None:
    run = spec(tmp_path / "long", services, llama_folder, reward_folder, sampling={"max_new_tokens": 250})
    with pytest.raises(Mismatch, match="takes sequences of at most 256 tokens; prompts and completions"):
        go(run)
    assert figures(run.directory) == {}


def test_a_prompt_that_does_not_fit_is_an_error_at_load_or_left_out_and_told(
    tmp_path: Path, services: LocalServices, llama_folder: Path, reward_folder: Path
) -> None:
    tokenizer = load_tokenizer(llama_folder)
    run = spec(tmp_path / "r", services, llama_folder, reward_folder, max_prompt_tokens=12, held_out_fraction=0.0)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "the dog " * 20}))
    with Reporter(run.directory, console=Console(file=io.StringIO())) as reporter:
        context = StageContext(run, "ppo", reporter, CheckpointStore(tmp_path / "checkpoints"), {}, Orders())
        with pytest.raises(DataError, match="1 prompts are longer than ppo.max_prompt_tokens 12") as caught:
            prompt_examples(context, run.ppo, tokenizer)
        assert (caught.value.field, caught.value.limit) == ("ppo.max_prompt_tokens", "12")
        left_out = run.ppo.model_copy(update={"too_long": "leave_out"})
        train, _ = prompt_examples(context, left_out, tokenizer)
        assert len(train) == 96 and max(len(prompt.token_ids) for prompt in train) <= 12
        assert "1 of 97 prompts are longer than 12 tokens" in (run.directory / "events.jsonl").read_text()
        with (tmp_path / "prompts.jsonl").open("a") as file:
            file.write("\n" + json.dumps({"messages": [{"role": "user", "content": "the dog"}]}))
        tokenizer.chat_template = None
        with pytest.raises(DataError, match="ppo.prompts: .*prompts.jsonl:98: messages: .* no chat template"):
            prompt_examples(context, run.ppo, tokenizer)


def test_services_that_are_not_deterministic_are_refused(
    tmp_path: Path, llama_folder: Path, reward_folder: Path, go: Go
) -> None:
    with LocalServices(tmp_path / "services") as plain:
        run = spec(tmp_path / "r", plain, llama_folder, reward_folder)
        with pytest.raises(Mismatch, match="deterministic: the run is, but generation at"):
            go(run)


def test_a_service_that_is_down_at_the_start(
    tmp_path: Path, services: LocalServices, llama_folder: Path, reward_folder: Path, go: Go
) -> None:
    endpoints = read_endpoints(services.directory)
    for name in ("generation", "reward", "reference"):
        absent = tmp_path / f"without-{name}.json"
        absent.write_text(json.dumps({**endpoints, name: [{"grpc": "127.0.0.1:9"}]}))
        run = spec(tmp_path / f"without-{name}", services, llama_folder, reward_folder)
        found = run.services.model_copy(update={"endpoints_file": absent})
        began = time.monotonic()
        with pytest.raises(Unavailable, match=f"services.{name}: no replica answers after 3 s: 127.0.0.1:9"):
            go(run.model_copy(update={"services": found}))
        assert time.monotonic() - began < 15


def test_another_runs_lease_is_told_at_once(
    tmp_path: Path, services: LocalServices, llama_folder: Path, reward_folder: Path, go: Go
) -> None:
    with Client(read_endpoints(services.directory)["weights"][0]["grpc"]) as weights_client:
        request = weights_pb2.AcquireLeaseRequest(channel_prefix="reward/", holder="somebody else", ttl_ms=60_000)
        lease = weights_client.acquire_lease(request).lease
        began = time.monotonic()
        with pytest.raises(LeaseHeld, match="'somebody else' holds the lease on channels 'reward/'"):
            go(spec(tmp_path / "second", services, llama_folder, reward_folder))
        assert time.monotonic() - began < 10
        weights_client.release_lease(weights_pb2.ReleaseLeaseRequest(lease_id=lease.lease_id))
