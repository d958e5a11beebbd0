"""The stages that measure, against real services: which epoch of SFT is the baseline, and what a judge says."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.client import Client
from trimtab.local import CHANNELS, LocalServices, read_endpoints
from trimtab.types import ChatMessage
from trimtab.v1 import weights_pb2
from trimtab_models.tokenizer import encode_completion, encode_prompt, load_tokenizer
from trimtab_trainer.config import PPOConfig, RunSpec
from trimtab_trainer.data import Demonstration
from trimtab_trainer.eval.compute.run import run_ledger
from trimtab_trainer.examples import few_shot_prompt
from trimtab_trainer.ppo_controls import without_kl, without_ptx
from trimtab_trainer.report import write_report
from trimtab_trainer.report_comparison import pooled_claims, write_comparison
from trimtab_trainer.reporter import RunState, step_metrics
from trimtab_trainer.run import RunOutcome

Go = Callable[..., RunOutcome]

WORDS = "trim tab small surface steers rudder ship quick brown fox jumps over lazy dog sleeps".split()


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    with LocalServices(tmp_path_factory.mktemp("services"), settings={"generation": {"slots": 16}}) as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(0)

    def text(count: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(count))

    rows = {
        "demonstrations": [{"prompt": f"{text(2)} {n}", "completion": text(3)} for n in range(32)],
        "rankings": [
            {"prompt": f"{text(2)} {n}", "answers": [f"{text(3)} {k}" for k in range(4)], "ranks": [1, 2, 3, 4]}
            for n in range(24)
        ],
        "prompts": [{"prompt": f"the {text(2)} {n}"} for n in range(80)],
        "pretrain": [{"text": text(40)} for _ in range(20)],
    }
    for name, of_file in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_file))
    return folder


def spec(directory: Path, services: LocalServices, model: Path, data: Path) -> RunSpec:
    steady = {"learning_rate": 2e-3, "schedule": "constant", "final_fraction": 1.0}
    return RunSpec.model_validate(
        {
            "name": directory.name,
            "directory": directory,
            "model": str(model),
            "data_directory": data,
            "stages": ["sft", "reward_model", "sft_baseline", "ppo", "ppo_without_ptx", "ppo_without_kl", "evaluate"],
            "services": {"endpoints_file": services.endpoints_file},
            "sft": {
                "demonstrations": "{data}/demonstrations.jsonl",
                "pretraining": None,
                "rl_init": None,
                "epochs": 3,
                "batch_size": 8,
                "dropout": 0.0,
                "optimizer": steady,
            },
            "reward_model": {
                "rankings": "{data}/rankings.jsonl",
                "demonstrations": "{data}/demonstrations.jsonl",
                "members": 2,
                "disjoint_members": True,
                "held_out_fraction": 0.25,
                "batch_size": 4,
                "optimizer": steady,
            },
            "sft_baseline": {"prompts": 10},
            "ppo": {
                "policy": "sft",
                "prompts": "{data}/prompts.jsonl",
                "pretraining": "{data}/pretrain.jsonl",
                "held_out_fraction": 0.4,
                "ptx_passage_tokens": 16,
                "ptx_ratio": 1,
                "iterations": 2,
                "prompts_per_iteration": 16,
                "minibatches": 2,
                "sampling": {"max_new_tokens": 8},
                "optimizer": steady,
                "value_optimizer": steady,
            },
            "evaluate": {
                "models": {
                    "base": {"model": "base"},
                    "few_shot": {"model": "base", "demonstrations": 2},
                    "sft": {"model": "sft_baseline"},
                    "ppo_ptx": {"model": "ppo"},
                },
                "judge": "reward_model/member-2",
                "prompts": 8,
                "samples_per_prompt": 2,
                "bootstrap_samples": 200,
            },
        }
    )


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, services: LocalServices, llama_folder: Path, data: Path, go: Go
) -> tuple[RunSpec, RunOutcome]:
    run = spec(tmp_path_factory.mktemp("runs") / "measured", services, llama_folder, data)
    return run, go(run)


def rows_of(run: RunSpec, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.directory / "samples" / f"{name}.jsonl").read_text().splitlines()]


def test_the_baseline_is_the_epoch_with_the_highest_reward(finished: tuple[RunSpec, RunOutcome]) -> None:
    run, outcome = finished
    result = outcome.results["sft_baseline"]
    rewards = {name: figure["value"] for name, figure in result.details["rewards"].items()}
    assert list(rewards) == ["epoch-1", "epoch-2", "epoch-3"] and len(set(rewards.values())) == 3
    best = max(rewards, key=rewards.__getitem__)
    assert result.details["chosen"] == f"sft/{best}" and result.model == f"models/sft/{best}"
    assert result.metrics["reward"] == rewards[best]


def test_the_judge_is_another_model_than_the_one_optimised(finished: tuple[RunSpec, RunOutcome]) -> None:
    run, outcome = finished
    for name in ("base", "sft", "ppo_ptx"):
        rows = rows_of(run, name)
        assert len(rows) == 16 and all(np.isfinite([row["judge"], row["reward"]]).all() for row in rows)
        assert np.std([row["judge"] - row["reward"] for row in rows]) > 1e-3
        figures = json.loads((run.directory / "samples" / f"{name}.json").read_text())
        assert figures["judge"]["value"] == pytest.approx(np.mean([row["judge"] for row in rows]))
    preferred = next(
        c for c in outcome.results["evaluate"].details["claims"] if c["claim"].endswith("preferred to SFT")
    )
    assert "by a reward model that no policy was optimised against" in preferred["note"]


def test_the_ledger_counts_what_every_model_and_the_judge_read(finished: tuple[RunSpec, RunOutcome]) -> None:
    run, _ = finished
    by_stage = {
        cost.stage: {term.work.what: term.work for term in cost.terms} for cost in run_ledger(run.directory).stages
    }
    baseline = by_stage["sft_baseline"]
    assert baseline["policy: sampling"].sequences == 3 * 10 * run.sft_baseline.samples_per_prompt
    assert baseline["reward model: scores"].tokens == baseline["policy: sampling"].tokens > 0

    evaluated = by_stage["evaluate"]
    tokenizer = load_tokenizer(run.directory / "models/sft/epoch-1")
    read = {
        name: sum(len(encode_prompt(tokenizer, row["prompt"])) + len(row["token_ids"]) for row in rows_of(run, name))
        for name in run.evaluate.models
    }
    for name in ("base", "sft", "ppo_ptx"):
        assert evaluated[f"{name}: sampling"].tokens == read[name]
    assert (
        evaluated["few_shot: sampling"].tokens > read["few_shot"]
    )  # the sampler reads the demonstrations, no one else
    judge = evaluated["judge: scores"]
    assert judge.model == "reward_model/member-2" and judge.sequences == 4 * 16
    for what in ("judge: scores", "reward model: scores", "reference: log-probs"):
        assert evaluated[what].tokens == sum(read.values())


def test_controls_are_ppo_without_one_of_its_restraints(finished: tuple[RunSpec, RunOutcome]) -> None:
    run, _ = finished
    ppo, no_ptx, no_kl = (
        list(step_metrics(run.directory / "events.jsonl", stage).values())
        for stage in ("ppo", "ppo_without_ptx", "ppo_without_kl")
    )
    assert [len(steps) for steps in (ppo, no_ptx, no_kl)] == [2, 2, 6]
    assert all("ptx_loss" in step for step in ppo) and not any("ptx_loss" in step for step in (*no_ptx, *no_kl))
    assert {step["kl_coef"] for step in no_ptx} == {run.ppo.kl_coef} and {step["kl_coef"] for step in no_kl} == {0.0}


def test_demonstrations_before_a_prompt_are_turns_of_one_conversation(llama_folder: Path) -> None:
    tokenizer = load_tokenizer(llama_folder)
    shown = [Demonstration("the dog", "It sleeps."), Demonstration((ChatMessage(role="user", content="fox"),), "jumps")]
    turns = [
        ("user", "the dog"),
        ("assistant", "It sleeps."),
        ("user", "fox"),
        ("assistant", "jumps"),
        ("user", "ship"),
    ]
    conversation = tuple(ChatMessage(role=role, content=content) for role, content in turns)
    assert few_shot_prompt(tokenizer, shown, "ship") == tuple(encode_prompt(tokenizer, conversation))
    assert few_shot_prompt(tokenizer, [], "ship") == tuple(encode_prompt(tokenizer, "ship"))
    tokenizer.chat_template = None
    parts = [
        encode_prompt(tokenizer, "the dog"),
        encode_completion(tokenizer, "It sleeps."),
        encode_prompt(tokenizer, "a"),
    ]
    assert few_shot_prompt(tokenizer, shown[:1], "a") == tuple(token for part in parts for token in part)


def test_nothing_holds_the_control_without_kl_back() -> None:
    held = PPOConfig(kl_stop=1.0, kl_limit=2.0, update_kl_stop=0.1, kl_controller="adaptive", iterations=10)
    free = without_kl(held, 4)
    assert (free.iterations, free.ptx_coef, free.kl_coef, free.kl_controller) == (12, 0.0, 0.0, "fixed")
    assert free.kl_stop is free.kl_limit is free.update_kl_stop is None
    assert without_kl(held, None).iterations == 30
    assert (without_ptx(held, 4).iterations, without_ptx(held, 4).kl_stop) == (4, None)
    assert (without_ptx(held, None).iterations, without_ptx(held, None).kl_stop) == (10, 1.0)


def test_what_was_measured_is_not_what_is_served_afterwards(
    finished: tuple[RunSpec, RunOutcome], services: LocalServices
) -> None:
    _, outcome = finished
    with Client(read_endpoints(services.directory)["weights"][0]["grpc"]) as weights:
        request = weights_pb2.ListChannelsRequest(prefix=CHANNELS["generation"])
        channel = weights.list_channels(request).channels[0]
    assert channel.version == outcome.results["ppo"].version


def test_prompts_of_the_two_stages_are_different_ones(finished: tuple[RunSpec, RunOutcome]) -> None:
    """10 of about 32 held-out prompts choose the baseline, 8 others measure."""
    run, _ = finished
    assert len({row["prompt"] for row in rows_of(run, "sft")}) == 8


def test_an_evaluation_goes_on_where_it_was_stopped(
    tmp_path: Path,
    services: LocalServices,
    llama_folder: Path,
    data: Path,
    go: Go,
    finished: tuple[RunSpec, RunOutcome],
) -> None:
    done, _ = finished
    sections = {"policy": str(done.directory / "models/sft/epoch-3")}
    again = spec(tmp_path / "again", services, llama_folder, data)
    member = done.directory / "models" / "reward_model"
    again = again.model_copy(
        update={
            "stages": ("ppo", "evaluate"),
            "ppo": again.ppo.model_copy(update={**sections, "reward_model": str(member / "member-1")}),
            "evaluate": again.evaluate.model_copy(
                update={
                    "judge": str(member / "member-2"),
                    "models": {k: v for k, v in again.evaluate.models.items() if k != "sft"},
                }
            ),
        }
    )
    assert go(again, stop_after=1).state is RunState.STOPPED  # in PPO
    assert go(again, resume=True, stop_after=1).state is RunState.STOPPED  # after the first model
    outcome = go(again, resume=True)
    assert outcome.state is RunState.SUCCEEDED
    assert all("judge" in row for name in ("base", "ppo_ptx") for row in rows_of(again, name))


def test_runs_are_set_side_by_side(tmp_path: Path, finished: tuple[RunSpec, RunOutcome]) -> None:
    run, _ = finished
    written = write_report(run.directory)
    other = tmp_path / "other"
    other.mkdir()
    changed = {**written, "name": "<other>", "config": {**written["config"], "seed": 7}}
    (other / "report.json").write_text(json.dumps(changed))
    write_comparison([run.directory, other], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "&lt;other&gt;" in page and "<other>" not in page and "<td>seed</td><td>0</td><td>7</td>" in page
    assert "PPO-ptx is preferred to SFT" in page and "<svg" in page


def test_claims_are_pooled_over_runs() -> None:
    def claim(measured: float, holds: bool) -> dict[str, Any]:
        ends = {"low": measured - 0.1, "high": None}
        return {"claim": "it works", "paper": "0.7", "measured": measured, "holds": holds, **ends}

    (found,) = pooled_claims([[claim(0.5, True)], [claim(0.6, False)], [claim(0.7, True)], []])
    assert (found.measured, found.holding, found.runs) == (pytest.approx(0.6), 2, 3)
    assert (found.low, found.high) == pytest.approx((0.6 - 4.303 * 0.1 / 3**0.5, 0.6 + 4.303 * 0.1 / 3**0.5), abs=1e-4)
    (single,) = pooled_claims([[claim(0.5, True)]])
    assert (single.low, single.high) == (0.4, 0.5)
