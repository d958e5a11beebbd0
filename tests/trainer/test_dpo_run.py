"""DPO against real services: what it learns beside SFT, what it asks of the reference and when, what it refuses."""

from __future__ import annotations

import io
import json
import random
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file
from safetensors.torch import load_file

from running import running
from tiny_models import make_policy, make_tokenizer
from trimtab.client import Client
from trimtab.errors import ConfigError, DeadlineExceeded, Mismatch
from trimtab.local import CHANNELS, LocalServices, read_endpoints
from trimtab.v1 import weights_pb2
from trimtab_models.loading import load_policy, save_model
from trimtab_models.tokenizer import load_tokenizer
from trimtab_trainer.config import RunSpec
from trimtab_trainer.context import Orders
from trimtab_trainer.dpo_reference import folder_digest
from trimtab_trainer.report import write_report
from trimtab_trainer.reporter import Reporter, RunState, step_metrics
from trimtab_trainer.run import RunOutcome, run

Go = Callable[..., RunOutcome]

SETTINGS = {"deterministic": True, "threads": 1}
STEADY = {"learning_rate": 2e-3, "schedule": "constant", "final_fraction": 1.0}
GOOD, WORDS = "trim", "tab small surface steers rudder ship quick brown fox jumps over lazy dog sleeps".split()
RANKINGS = 160


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    settings = {"generation": {**SETTINGS, "slots": 16}, "reward": SETTINGS, "reference": SETTINGS}
    with LocalServices(tmp_path_factory.mktemp("services"), settings=settings) as running_services:
        yield running_services


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations that know no preference, and rankings by how often one word is in an answer, ties kept."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(0)

    def words(count: int) -> list[str]:
        return [draw.choice(WORDS) for _ in range(count)]

    def answer(good: int) -> str:
        mixed = [GOOD] * good + words(3 - good)
        draw.shuffle(mixed)
        return " ".join(mixed)

    rankings = []
    for number in range(RANKINGS):
        goods = [0, 1, draw.choice((1, 2)), draw.choice((0, 3))]
        groups = [[i for i in range(4) if goods[i] == times] for times in (3, 2, 1, 0)]
        ranking = [group for group in groups if group]
        labels = [{"labeler": name, "group": "training", "ranking": ranking} for name in ("a", "b")]
        rankings.append(
            {"prompt": f"{' '.join(words(2))} {number}", "answers": [answer(good) for good in goods], "labels": labels}
        )
    rows = {
        "demonstrations": [
            {"prompt": f"{' '.join(words(2))} {n}", "completion": answer(draw.choice((0, 0, 1)))} for n in range(64)
        ],
        "rankings": rankings,
        "tied": [
            {"prompt": f"p {n}", "answers": ["a", "b"], "labels": [{"labeler": "a", "ranking": [[0, 1]]}]}
            for n in range(8)
        ],
        "prompts": [{"prompt": f"the {' '.join(words(2))} {n}"} for n in range(80)],
        "pretrain": [{"text": " ".join(words(40))} for _ in range(20)],
    }
    for name, of_file in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_file))
    return folder


def spec(
    directory: Path, services: LocalServices, policy: Path, data: Path, *, rankings: str = "rankings", **dpo: Any
) -> RunSpec:
    """DPO alone, in a folder of its own."""
    section = {
        "policy": str(policy),
        "beta": 0.5,
        "batch_size": 16,
        "optimizer": STEADY,
        "checkpoint_every": 3,
        "micro_batch_tokens": 1024,
    }
    return RunSpec.model_validate(
        {
            "name": directory.name,
            "directory": directory,
            "model": str(policy),
            "data_directory": data,
            "stages": ["dpo"],
            "deterministic": True,
            "threads": 1,
            "services": {"endpoints_file": services.endpoints_file, "patience_s": 20},
            "reward_model": {
                "rankings": f"{{data}}/{rankings}.jsonl",
                "held_out_fraction": 0.25,
                "bootstrap_samples": 200,
            },
            "dpo": {**section, **dpo},
        }
    )


def logprobs_calls(services: LocalServices) -> float:
    """LogProbs calls that the reference service has finished, by its own counter."""
    address = read_endpoints(services.directory)["reference"][0]["metrics"]
    page = urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "trimtab_request_total" and sample.labels["method"] == "LogProbs"
    )


def trained(directory: Path, epoch: int = 1) -> dict[str, torch.Tensor]:
    return load_file(directory / "models" / "dpo" / f"epoch-{epoch}" / "model.safetensors")


@pytest.fixture(scope="module")
def beside_sft(
    tmp_path_factory: pytest.TempPathFactory, services: LocalServices, llama_folder: Path, data: Path, go: Go
) -> tuple[RunSpec, RunOutcome]:
    """A run of sft, reward_model, dpo and evaluate from one base."""
    directory = tmp_path_factory.mktemp("runs") / "beside"
    alone = spec(directory, services, llama_folder, data, epochs=2).model_dump(mode="json")
    faster = {**STEADY, "learning_rate": 4e-3}
    together = RunSpec.model_validate(
        {
            **alone,
            "stages": ["sft", "reward_model", "dpo", "evaluate"],
            "dpo": {**alone["dpo"], "policy": "sft"},
            "sft": {
                "demonstrations": "{data}/demonstrations.jsonl",
                "pretraining": None,
                "rl_init": None,
                "epochs": 4,
                "batch_size": 8,
                "dropout": 0.0,
                "optimizer": faster,
            },
            "reward_model": {
                **alone["reward_model"],
                "initial_model": "sft",
                "demonstrations": None,
                "batch_size": 8,
                "epochs": 2,
                "optimizer": faster,
            },
            "ppo": {
                "policy": "sft",
                "prompts": "{data}/prompts.jsonl",
                "pretraining": "{data}/pretrain.jsonl",
                "held_out_fraction": 0.5,
                "ptx_passage_tokens": 16,
                "prompts_per_iteration": 16,
                "minibatches": 2,
                "sampling": {"max_new_tokens": 12},
            },
            "evaluate": {
                "models": {"sft": {"model": "sft"}, "dpo": {"model": "dpo"}, "half": {"model": "dpo/epoch-1"}},
                "prompts": 24,
                "samples_per_prompt": 2,
                "bootstrap_samples": 200,
            },
        }
    )
    return together, go(together)


def answers(spec: RunSpec, name: str) -> list[str]:
    lines = (spec.directory / "samples" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line)["completion"] for line in lines]


def test_it_prefers_what_labelers_prefer_and_sft_does_not(beside_sft: tuple[RunSpec, RunOutcome]) -> None:
    done, outcome = beside_sft
    figures = outcome.results["dpo"].metrics
    assert figures["accuracy"] > 0.9 and figures["accuracy_low"] > 0.8
    assert figures["likelier_wins"] > figures["likelier_wins_before"] + 0.1  # of SFT by itself
    assert figures["held_out_loss"] < 0.5 < np.log(2) and figures["held_out_reward_margin"] > 0.5
    steps = step_metrics(done.directory / "events.jsonl", "dpo")
    assert steps[1]["loss"] == pytest.approx(np.log(2), abs=1e-4) and steps[1]["accuracy"] < 1
    assert steps[max(steps)]["accuracy"] > 0.9
    reward_model = outcome.results["reward_model"].metrics
    for name in ("rankings", "rankings_held_out", "accuracy_pairs"):  # equal data, and measured on equal pairs
        assert figures[name] == reward_model[name]


def test_its_answers_are_preferred_to_sfts_and_the_report_says_at_what_kl(
    beside_sft: tuple[RunSpec, RunOutcome],
) -> None:
    done, outcome = beside_sft
    good = {name: np.mean([text.split().count(GOOD) for text in answers(done, name)]) for name in ("sft", "dpo")}
    assert good["dpo"] > good["sft"] + 0.5
    report = write_report(done.directory)
    sft, half, dpo = (report["models"][name] for name in ("sft", "half", "dpo"))
    assert list(report["models"]) == ["sft", "dpo", "half"]
    assert "preferred_to_sft" not in sft and dpo["preferred_to_sft"]["low"] > 0.5
    assert abs(sft["kl"]["value"]) < 1e-3 < half["kl"]["value"] < dpo["kl"]["value"]
    (claim,) = [claim for claim in report["claims"] if claim["claim"] == "DPO is preferred to SFT"]
    assert claim["holds"] and claim["measured"] == dpo["preferred_to_sft"]["value"]
    assert f"KL to PPO's start {dpo['kl']['value']:.2f} and" in claim["note"]
    page = (done.directory / "report.html").read_text()
    assert "DPO: loss" in page and "preferred to sft" in page and "direct preference optimisation" in page


def test_what_it_trained_is_published(beside_sft: tuple[RunSpec, RunOutcome], services: LocalServices) -> None:
    """An evaluation of a run without PPO ends on the version before it: DPO's."""
    done, outcome = beside_sft
    version = outcome.results["dpo"].version
    with Client(read_endpoints(services.directory)["weights"][0]["grpc"]) as weights:
        channel = weights.list_channels(weights_pb2.ListChannelsRequest(prefix=CHANNELS["generation"])).channels[0]
        manifest = weights.get_manifest(weights_pb2.GetManifestRequest(version=version)).manifest
    assert channel.version == version > 0
    assert outcome.results["dpo"].model == "models/dpo/epoch-2"
    assert manifest.weights_digest == folder_digest(done.directory / "models" / "dpo" / "epoch-2")


def test_a_second_run_with_the_same_cache_asks_nothing(
    tmp_path: Path, services: LocalServices, llama_folder: Path, data: Path, go: Go
) -> None:
    cache = {"cache": str(tmp_path / "cache")}
    before = logprobs_calls(services)
    go(spec(tmp_path / "first", services, llama_folder, data, epochs=2, **cache))
    asked = logprobs_calls(services) - before
    assert asked == sum(-(-4 * prompts // 64) for prompts in (128, 32))  # blocks of prompts, 64 answers a call
    go(spec(tmp_path / "second", services, llama_folder, data, beta=0.1, **cache))
    assert logprobs_calls(services) == before + asked

    other = tmp_path / "other"
    tokenizer = load_tokenizer(llama_folder)
    save_model(make_policy("llama", len(tokenizer), seed=5), tokenizer, other)
    go(spec(tmp_path / "third", services, other, data, **cache))
    assert logprobs_calls(services) == before + 2 * asked


def test_a_cache_file_of_another_reference_is_told_and_not_used(
    tmp_path: Path, services: LocalServices, llama_folder: Path, data: Path, go: Go
) -> None:
    cache = tmp_path / "cache"
    one = spec(tmp_path / "one", services, llama_folder, data, cache=str(cache))
    go(one)
    first, second = sorted(cache.iterdir())
    expected = load_numpy(first)["logprobs"]
    save_file({"logprobs": expected + 1.0}, first, metadata={"weights": "0" * 64, "tokenizer": "", "data": ""})
    second.write_bytes(second.read_bytes()[:40])
    before = logprobs_calls(services)
    go(spec(tmp_path / "two", services, llama_folder, data, cache=str(cache)))
    assert logprobs_calls(services) > before
    np.testing.assert_array_equal(load_numpy(first)["logprobs"], expected)
    told = (tmp_path / "two" / "events.jsonl").read_text()
    assert "holds log-probs of another reference or of other answers" in told and "cannot be read" in told
    assert all(
        torch.equal(tensor, trained(tmp_path / "two")[name]) for name, tensor in trained(tmp_path / "one").items()
    )


def test_stopped_and_resumed_is_bit_for_bit_the_same(
    tmp_path: Path, services: LocalServices, llama_folder: Path, data: Path, go: Go
) -> None:
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    whole = go(spec(straight, services, llama_folder, data, epochs=2))
    steps = step_metrics(straight / "events.jsonl", "dpo")
    assert len(steps) >= 10
    assert go(spec(halves, services, llama_folder, data, epochs=2), stop_after=len(steps) // 2 + 1).state is (
        RunState.STOPPED
    )
    before = logprobs_calls(services)
    outcome = go(spec(halves, services, llama_folder, data, epochs=2), resume=True)
    assert logprobs_calls(services) == before
    assert step_metrics(halves / "events.jsonl", "dpo") == steps
    assert outcome.results["dpo"].metrics == whole.results["dpo"].metrics
    for epoch in (1, 2):
        one, other = trained(straight, epoch), trained(halves, epoch)
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_resume_with_another_reference_is_refused_with_both_digests(
    tmp_path: Path, services: LocalServices, llama_folder: Path, data: Path, go: Go
) -> None:
    policy = tmp_path / "policy"
    shutil.copytree(llama_folder, policy)
    wanted = spec(tmp_path / "run", services, policy, data)
    assert go(wanted, stop_after=3).state is RunState.STOPPED
    before = folder_digest(policy)
    model = load_policy(policy)
    with torch.no_grad():
        model.lm_head.weight[5] += 1.0
    save_model(model, load_tokenizer(policy), policy)
    with pytest.raises(Mismatch) as caught:
        go(wanted, resume=True)
    assert caught.value.field == "dpo.policy" and "at step 3 was trained against" in caught.value.message
    assert before in caught.value.message and folder_digest(policy) in caught.value.message


def test_a_reference_service_with_a_model_of_its_own_is_refused_at_once(
    tmp_path: Path, services: LocalServices, llama_folder: Path, data: Path, go: Go
) -> None:
    other = tmp_path / "other"
    tokenizer = make_tokenizer()
    save_model(make_policy("llama", len(tokenizer), seed=9), tokenizer, other)
    with running("reference", model_folder=other, **SETTINGS) as fixed:
        wanted = spec(tmp_path / "run", services, llama_folder, data)
        own = wanted.services.model_dump(mode="json") if wanted.services else {}
        elsewhere = {**wanted.model_dump(mode="json"), "services": {**own, "reference": {"addresses": [fixed.target]}}}
        with pytest.raises(Mismatch) as caught:
            go(RunSpec.model_validate(elsewhere))
    assert fixed.target in caught.value.message and folder_digest(llama_folder) in caught.value.message
    assert "dpo.policy" in caught.value.message and caught.value.field == "services.reference"


def test_a_trainer_that_disagrees_with_the_reference_takes_no_step(
    tmp_path: Path, services: LocalServices, llama_folder: Path, data: Path, go: Go
) -> None:
    with pytest.raises(Mismatch, match="log-probs of reference and trainer differ .*allowed by dpo.gate_tolerance"):
        go(spec(tmp_path / "run", services, llama_folder, data, gate_tolerance=1e-9))
    assert not (tmp_path / "run" / "models").exists()


def test_a_stop_order_ends_the_asking_and_a_resume_goes_on(
    tmp_path: Path, services: LocalServices, llama_folder: Path, data: Path, go: Go
) -> None:
    wanted = spec(tmp_path / "run", services, llama_folder, data)
    orders, before = Orders(), logprobs_calls(services)
    orders.stop()
    with Reporter(wanted.directory, console=Console(file=io.StringIO())) as reporter:
        assert run(wanted, reporter=reporter, orders=orders).state is RunState.STOPPED
    assert logprobs_calls(services) == before
    assert go(wanted, resume=True).state is RunState.SUCCEEDED
    assert logprobs_calls(services) > before


def test_a_reference_that_does_not_answer_in_time_is_an_error(
    tmp_path: Path, services: LocalServices, llama_folder: Path, data: Path, go: Go
) -> None:
    with pytest.raises(DeadlineExceeded, match="log-probs of 512 answers were not there after 0.001 s") as caught:
        go(spec(tmp_path / "run", services, llama_folder, data, reference_timeout_s=1e-3))
    assert caught.value.field == "dpo.reference_timeout_s"


def test_rankings_that_are_all_ties_are_refused(
    tmp_path: Path, services: LocalServices, llama_folder: Path, data: Path, go: Go
) -> None:
    before = logprobs_calls(services)
    with pytest.raises(ConfigError, match="tied.jsonl: no decided ranking is left to train on"):
        go(spec(tmp_path / "run", services, llama_folder, data, rankings="tied"))
    assert logprobs_calls(services) == before


def test_of_disjoint_members_it_learns_what_the_first_learnt(
    tmp_path: Path, services: LocalServices, llama_folder: Path, data: Path, go: Go
) -> None:
    """So that the second still judges a policy that it was not optimised against."""
    wanted = spec(tmp_path / "run", services, llama_folder, data).model_dump(mode="json")
    wanted["reward_model"] |= {"members": 2, "disjoint_members": True}
    whole = spec(tmp_path / "whole", services, llama_folder, data)
    half = go(RunSpec.model_validate(wanted)).results["dpo"].metrics
    assert half["rankings"] == -(-go(whole).results["dpo"].metrics["rankings"] // 2)
