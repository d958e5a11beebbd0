"""The compute ledger: sizes and counts against other ways to reckon them, and a real run's every token."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig

from trimtab.errors import CorruptData
from trimtab_models.loading import load_policy, load_reward_model
from trimtab_models.tokenizer import encode_completion, encode_prompt, load_tokenizer
from trimtab_trainer.config import RunSpec, spec_to_yaml
from trimtab_trainer.data import read_rankings
from trimtab_trainer.eval.commands import eval as evaluations
from trimtab_trainer.eval.compute.ledger import (
    INSTRUCTGPT,
    PETAFLOP_S_DAY,
    ModelSize,
    Pretraining,
    Work,
    ledger_record,
    make_ledger,
)
from trimtab_trainer.eval.compute.model_flops import count_flops, model_size
from trimtab_trainer.eval.compute.run import run_ledger
from trimtab_trainer.report import write_report
from trimtab_trainer.reporter import Reporter, RunState, read_events, step_metrics
from trimtab_trainer.run import RunOutcome, read_outcome

WORDS_OF_EMBEDDINGS = ("embed_tokens", "wte", "wpe", "lm_head")


def stored(folder: Path) -> dict[str, int]:
    """Elements of each tensor in a folder."""
    sizes = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                sizes[name] = file.get_tensor(name).numel()
    return sizes


def test_parameters_are_those_of_the_saved_tensors(policy_folder: Path, reward_folder: Path) -> None:
    for folder in (policy_folder, reward_folder):
        sizes = stored(folder)
        found = model_size(folder)
        assert found.total == sum(sizes.values())
        within = [size for name, size in sizes.items() if not any(word in name for word in WORDS_OF_EMBEDDINGS)]
        assert found.formula == sum(within)


def test_counted_flops_are_those_of_the_models_own_forward_and_backward(
    llama_folder: Path, gpt2_folder: Path, reward_folder: Path
) -> None:
    length = 24
    ids = torch.randint(5, 200, (1, length))
    for folder in (llama_folder, gpt2_folder):
        model = load_policy(folder)
        model.set_attn_implementation("eager")
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids).logits.sum().backward()
        work = Work("w", "m", "training", tokens=10 * length, sequences=10, predicted=10 * length)
        assert count_flops(folder, work) == 10 * counter.get_total_flops()
    rewards = load_reward_model(reward_folder)
    rewards.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        rewards.base_model(input_ids=ids)
    assert count_flops(reward_folder, Work("w", "m", "forward", length, 1)) == counter.get_total_flops()


def test_the_formula_is_what_counting_finds_of_a_short_sequence(llama_folder: Path) -> None:
    """Without output projection and next to no attention the two differ by attention and norms alone."""
    size = model_size(llama_folder)
    work = Work("w", "m", "forward", tokens=2, sequences=1)
    assert count_flops(llama_folder, work) == pytest.approx(2 * size.formula * 2, rel=0.05)


def test_gpt3s_pretraining_comes_out_as_the_paper_has_it() -> None:
    """174.6e9 parameters without embeddings over 300e9 tokens: 3,640 petaflop/s-days (Brown et al. 2020, table D.1)."""
    work = {"pretrain": [Work("model: training", "gpt3", "training", 300e9, 300e9 / 2048, 300e9)]}
    size = ModelSize(formula=174_600_000_000, total=175_000_000_000)
    ledger = make_ledger(work, {}, {}, sizes={"gpt3": size}, count=lambda one: None, pretraining=None)
    assert ledger.stages[0].flops / PETAFLOP_S_DAY == pytest.approx(INSTRUCTGPT["pretrain"], rel=2e-3)
    assert ledger.stages[0].counted is None and ledger.pretraining is not None
    assert ledger.pretraining.flops == ledger.stages[0].flops and ledger.after_pretraining == 0


def test_shares_are_of_the_stated_budget() -> None:
    work = {"ppo": [Work("a", "m", "training", 10, 1), Work("b", "m", "forward", 10, 1)], "evaluate": []}
    ledger = make_ledger(
        work, {"evaluate": ["x"]}, {"ppo": 2.0}, sizes={"m": ModelSize(5, 9)},
        count=lambda one: 7.0, pretraining=Pretraining(4000.0, "stated"),
    )  # fmt: skip
    record = ledger_record(ledger)
    assert ledger.after_pretraining == 6 * 5 * 10 + 2 * 5 * 10 == 400
    assert record["share_of_pretraining"] == pytest.approx(0.1)
    assert ledger.stages[0].counted == 14.0 and ledger.stages[1].counted is None
    assert record["stages"]["evaluate"]["missing"] == ["x"]  # type: ignore[index]


@pytest.mark.timeout(300)
def test_a_runs_ledger_has_every_token_of_its_events(finished_run: RunSpec) -> None:
    directory = finished_run.directory
    ledger = run_ledger(directory)
    by_stage = {cost.stage: cost for cost in ledger.stages}
    assert list(by_stage) == list(finished_run.stages)

    base = sum(size for name, size in stored(directory / "models" / "pretrain" / "model").items()
               if not any(word in name for word in WORDS_OF_EMBEDDINGS))  # fmt: skip
    steps = step_metrics(directory / "events.jsonl", "pretrain").values()
    training = by_stage["pretrain"].terms[0]
    assert training.flops == 6 * base * sum(step["tokens_trained"] for step in steps) > 0
    assert ledger.pretraining is not None and ledger.pretraining.flops == by_stage["pretrain"].flops

    batches = list(step_metrics(directory / "events.jsonl", "ppo").values())
    tokens = {term.work.what: term.work.tokens for term in by_stage["ppo"].terms}
    sampled = sum(step["tokens_sampled"] for step in batches)
    assert tokens["policy: sampling"] == tokens["reward model: scores"] == tokens["reference: log-probs"] == sampled
    assert tokens["value model: update"] == sampled * finished_run.ppo.epochs
    warm = sum(step["tokens_sampled"] for step in batches[finished_run.ppo.critic_warmup_iterations :])
    assert tokens["policy: PPO update"] == warm * finished_run.ppo.epochs
    completions = sum(step["completion_tokens"] * step["sequences_sampled"] for step in batches)
    assert 0 < completions < sampled and tokens["policy: pretraining gradients"] > 0

    tokenizer = load_tokenizer(directory / "models" / "untrained")
    read = predicted = sequences = (
        0  # by the reference, asked about each answer of each ranking once, behind its prompt
    )
    for ranking in read_rankings(directory / "data" / "rankings.jsonl"):
        prompt = len(encode_prompt(tokenizer, ranking.prompt))
        answers = [len(encode_completion(tokenizer, answer)) for answer in ranking.answers]
        read += sum(prompt + answer for answer in answers)
        predicted, sequences = predicted + sum(answers), sequences + len(answers)
    (referenced,) = (term for term in by_stage["dpo"].terms if term.work.what.startswith("reference"))
    assert referenced.work.tokens == read and referenced.flops == 2 * base * read
    assert (referenced.work.sequences, referenced.work.predicted) == (sequences, predicted)
    trained = by_stage["dpo"].terms[0].work
    assert 0 < trained.predicted < trained.tokens < read
    for cost in ledger.stages:
        for term in cost.terms:  # attention and output projection come on top, and are no multiple
            assert term.counted is not None and 1 < term.counted / term.flops < 4


@pytest.mark.timeout(300)
def test_answers_that_are_sampled_to_be_ranked_or_measured_are_in_the_ledger(finished_run: RunSpec) -> None:
    directory = finished_run.directory
    by_stage = {cost.stage: cost for cost in run_ledger(directory).stages}
    (ranked,) = by_stage["collect_rankings"].terms
    collect = finished_run.collect_rankings
    prompts = len((directory / "data" / "rankings.jsonl").read_text().splitlines())
    assert ranked.work.sequences == prompts * sum(at.count for at in collect.answers) > 0
    assert 0 < ranked.work.predicted <= ranked.work.sequences * collect.max_new_tokens
    assert ranked.flops == 2 * ranked.parameters * ranked.work.tokens

    tokenizer = load_tokenizer(directory / "models" / "untrained")
    terms = {term.work.what: term for term in by_stage["evaluate"].terms}
    read = 0
    for name in ("sft", "ppo_ptx"):
        rows = [json.loads(line) for line in (directory / "samples" / f"{name}.jsonl").read_text().splitlines()]
        answers = sum(len(row["token_ids"]) for row in rows)
        tokens = answers + sum(len(encode_prompt(tokenizer, row["prompt"])) for row in rows)
        sampling = terms[f"{name}: sampling"]
        assert (sampling.work.tokens, sampling.work.predicted, sampling.work.sequences) == (tokens, answers, len(rows))
        assert sampling.flops == 2 * sampling.parameters * tokens
        with np.load(directory / "samples" / f"{name}.npz") as saved:
            assert terms[f"{name}: held-out passages"].work.predicted == saved["tokens"].sum() > 0
        read += tokens
    assert terms["reward model: scores"].work.tokens == terms["reference: log-probs"].work.tokens == read
    assert set(by_stage["evaluate"].missing) == {"the cloze test of the miniature"}


def test_the_command_and_the_report_show_the_ledger(finished_run: RunSpec, tmp_path: Path) -> None:
    directory = str(finished_run.directory)
    out = finished_run.directory / "eval"
    done = CliRunner().invoke(
        evaluations, ["compute", directory, "--pretraining-tokens", "1e6", "--out", str(out)], catch_exceptions=False
    )
    assert done.exit_code == 0 and "all after pretraining" in done.output and "1,000,000 stated tokens" in done.output
    saved = json.loads((out / "compute.json").read_text())
    found = saved["figures"][directory]
    assert found["share_of_pretraining"] == pytest.approx(found["after_pretraining_flops"] / found["pretraining_flops"])
    assert saved["settings"]["events_sha256"][directory]

    report = write_report(finished_run.directory)
    assert report["compute"]["after_pretraining_flops"] == found["after_pretraining_flops"]
    assert report["evaluations"]["compute"]["page"] == "eval/compute.html"
    page = (finished_run.directory / "report.html").read_text()
    assert 'href="eval/compute.html"' in page and "policy: pretraining gradients" in page


def test_a_file_beside_the_findings_that_holds_none_is_named(finished_run: RunSpec) -> None:
    stray = finished_run.directory / "eval" / "stray.json"
    stray.parent.mkdir(exist_ok=True)
    stray.write_text('{"kind": "x"}')
    try:
        with pytest.raises(CorruptData, match=r"stray.json: no findings of `trimtab eval`: 'title'"):
            write_report(finished_run.directory)
        told: list[str] = []
        assert "stray" not in write_report(finished_run.directory, warn=told.append)["evaluations"]
        assert (
            len(told) == 1 and "stray.json: no findings of `trimtab eval`: 'title'; the report leaves it out" in told[0]
        )
    finally:
        stray.unlink()


@pytest.mark.timeout(300)
def test_a_file_beside_the_findings_does_not_fail_a_finished_run(tmp_path: Path) -> None:
    given = {"preset": "tiny", "name": "small", "directory": str(tmp_path / "run"), "stages": ["pretrain"]}
    given |= {"miniature": {"pretrain": 60, "pretrain_held_out": 8}, "pretrain": {"max_steps": 2}}
    (tmp_path / "spec.yaml").write_text(json.dumps(given))
    (tmp_path / "run" / "eval").mkdir(parents=True)
    (tmp_path / "run" / "eval" / "stray.json").write_text("[]")
    command = [sys.executable, "-m", "trimtab", "run", str(tmp_path / "spec.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert read_outcome(tmp_path / "run").state is RunState.SUCCEEDED
    assert json.loads((tmp_path / "run" / "report.json").read_text())["evaluations"] == {}
    warnings = [e.fields["text"] for e in read_events(tmp_path / "run" / "events.jsonl") if e.event == "message"]
    assert any("stray.json: no findings of `trimtab eval`" in text for text in warnings)


def test_a_graph_that_the_meta_device_cannot_run_has_no_count(tmp_path: Path) -> None:
    """Experts are grouped by a kernel that it lacks; the formula still stands, and what nothing counts yet is told."""
    config = MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, architectures=["MixtralForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(tmp_path / "model")
    with pytest.raises(RuntimeError):
        count_flops(tmp_path / "model", Work("w", "m", "forward", tokens=8, sequences=1))
    spec = RunSpec.model_validate(
        {"name": "x", "directory": tmp_path / "run", "model": str(tmp_path / "model"), "stages": ["dpo"],
         "dpo": {"policy": "base"}, "data_directory": str(tmp_path)}
    )  # fmt: skip
    with Reporter(spec.directory) as reporter:
        reporter.step_done("dpo", 1, 2, {"tokens": 4.0, "tokens_trained": 8.0, "sequences_trained": 1.0})
    (spec.directory / "spec.yaml").write_text(spec_to_yaml(spec))
    outcome = {**asdict(RunOutcome(stage="dpo")), "format": 1}
    (spec.directory / "state.json").write_text(json.dumps(outcome))
    (cost,) = run_ledger(spec.directory).stages
    assert cost.counted is None and cost.flops == 6 * model_size(tmp_path / "model").formula * 8
    assert cost.missing == [
        "the reference's log-probs of the answers, which no event counts before the end of the stage"
    ]


def test_both_budgets_and_no_run_are_refused(finished_run: RunSpec, tmp_path: Path) -> None:
    directory = str(finished_run.directory)
    both = CliRunner().invoke(
        evaluations, ["compute", directory, "--pretraining-tokens", "1", "--pretraining-flops", "1"]
    )
    assert "not both" in str(both.exception)
    assert "no run in this folder" in str(CliRunner().invoke(evaluations, ["compute", str(tmp_path)]).exception)
    assert read_outcome(finished_run.directory).results
