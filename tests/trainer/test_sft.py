"""SFT: it learns completions only, packing and accumulation change nothing, and a stopped stage goes on bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from trimtab.errors import DataError, TrainingDiverged
from trimtab_models.loading import load_policy
from trimtab_models.tokenizer import decode, encode_prompt, load_tokenizer
from trimtab_trainer.config import OptimizerConfig, RunSpec
from trimtab_trainer.language_modeling import Example, mean_loss, passages, train_on
from trimtab_trainer.optimization import Learner, learning_rate_at, prepare_for_training
from trimtab_trainer.reporter import RunState, step_metrics
from trimtab_trainer.run import RunOutcome

Go = Callable[..., RunOutcome]

WORDS = (
    "trim tab small surface steers rudder ship quick brown fox jumps over lazy dog sleeps helpful honest harmless"
).split()


@pytest.fixture
def base(policy_folder: Path) -> Path:
    """Each of the three shapes."""
    return policy_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    demonstrations = [
        {"prompt": " ".join(rng.sample(WORDS, 1 + i % 4)), "completion": " ".join(rng.sample(WORDS, 1 + i % 3))}
        for i in range(24)
    ]
    text = [{"text": " ".join(rng.sample(WORDS, 9))} for _ in range(40)]
    for name, rows in (("demonstrations", demonstrations), ("pretrain", text)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def spec(directory: Path, base: Path, data: Path, **changes: Any) -> RunSpec:
    sft = {
        "demonstrations": "{data}/demonstrations.jsonl",
        "pretraining": "{data}/pretrain.jsonl",
        "pretraining_tokens": 8,
        "epochs": 2,
        "batch_size": 5,
        "held_out_fraction": 0.0,
        "dropout": 0.0,
        "rl_init": None,
        "optimizer": {"learning_rate": 1e-2},
        "checkpoint_every": 3,
        "micro_batch_tokens": 64,
    }
    return RunSpec.model_validate(
        {
            "name": "r",
            "directory": directory,
            "model": str(base),
            "data_directory": data,
            "stages": ["sft"],
            "deterministic": True,
            "threads": 1,
            "sft": {**sft, **changes},
        }
    )


def learner(base: Path) -> Learner:
    model = load_policy(base)
    prepare_for_training(model)
    return Learner(model, OptimizerConfig(learning_rate=1e-3), total_steps=1)


def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(1)
    lengths = [(3, 9), (5, 6), (1, 12), (7, 8), (2, 20), (4, 5)]
    return [Example(tuple(torch.randint(4, 90, (n,), generator=generator).tolist()), first) for first, n in lengths]


def gradients(one: Learner) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in one.model.named_parameters() if p.grad is not None}


def test_the_loss_is_that_of_each_completion_read_alone(base: Path) -> None:
    expected = learner(base)
    count = sum(len(e.token_ids) - e.first for e in examples())
    total = 0.0
    for example in examples():
        ids = torch.tensor([example.token_ids])
        logits = expected.model(input_ids=ids).logits[0]
        loss = F.cross_entropy(logits[example.first - 1 : -1], ids[0, example.first :], reduction="sum") / count
        loss.backward()
        total += float(loss.detach())
    found = learner(base)
    assert train_on(found, examples(), micro_batch_tokens=1000) == pytest.approx(total, rel=1e-5)
    for name, gradient in gradients(expected).items():
        torch.testing.assert_close(gradients(found)[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro_batch_tokens", [1, 21, 40])
def test_micro_batches_change_nothing(base: Path, micro_batch_tokens: int) -> None:
    whole, cut = learner(base), learner(base)
    loss = train_on(whole, examples(), micro_batch_tokens=1000)
    assert train_on(cut, examples(), micro_batch_tokens=micro_batch_tokens) == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(gradients(cut)[name], gradient, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_changes_nothing(base: Path) -> None:
    plain, recomputed = learner(base), learner(base)
    prepare_for_training(recomputed.model, gradient_checkpointing=True)
    assert train_on(plain, examples(), micro_batch_tokens=50) == train_on(recomputed, examples(), micro_batch_tokens=50)
    for name, gradient in gradients(plain).items():
        assert torch.equal(gradients(recomputed)[name], gradient), name


def test_recomputed_dropout_is_the_same_dropout(base: Path) -> None:
    kept, recomputed = learner(base), learner(base)
    prepare_for_training(kept.model, dropout=0.3)
    prepare_for_training(recomputed.model, dropout=0.3, gradient_checkpointing=True)
    for one in (kept, recomputed):
        torch.manual_seed(5)
        train_on(one, examples(), micro_batch_tokens=50)
    for name, gradient in gradients(kept).items():
        assert torch.equal(gradients(recomputed)[name], gradient), name


def test_held_out_loss_has_no_dropout_and_keeps_the_mode(base: Path) -> None:
    one = learner(base)
    plain = mean_loss(one.model, examples(), micro_batch_tokens=50)
    prepare_for_training(one.model, dropout=0.5)
    assert mean_loss(one.model, examples(), micro_batch_tokens=50) == plain
    assert one.model.training
    torch.manual_seed(0)
    assert train_on(one, examples(), micro_batch_tokens=50) != pytest.approx(plain, rel=1e-3)


def test_a_models_own_dropouts_are_off_in_training(base: Path) -> None:
    model = load_policy(base, dropout=0.5)
    ids = torch.tensor([examples()[0].token_ids])
    with torch.no_grad():
        quiet = model(input_ids=ids).logits
        assert not torch.equal(model.train()(input_ids=ids).logits, quiet)
        prepare_for_training(model)
        assert model.training and torch.equal(model(input_ids=ids).logits, quiet)


def test_passages_cut_documents_whole() -> None:
    assert [e.token_ids for e in passages([[1, 2, 3, 4, 5], [6], [7, 8]], 2)] == [(1, 2), (3, 4), (7, 8)]


def test_every_passage_begins_with_the_bos_of_its_document() -> None:
    found = passages([[9, 1, 2, 3, 4, 5], [9, 6]], 3, bos=[9])
    assert [e.token_ids for e in found] == [(9, 1, 2), (9, 3, 4), (9, 5), (9, 6)]
    assert all(example.first == 1 for example in found)


def test_schedule_ends_at_its_fraction() -> None:
    cosine = OptimizerConfig(learning_rate=2.0e-3, warmup_steps=4)
    rates = [learning_rate_at(cosine, step, 20) for step in range(20)]
    assert rates[0] == pytest.approx(2e-4) and rates[4] == pytest.approx(2e-3) and rates[-1] == pytest.approx(2e-4)
    assert all(a >= b for a, b in zip(rates[4:], rates[5:], strict=False))
    constant = OptimizerConfig(learning_rate=1e-3, schedule="constant")
    assert learning_rate_at(constant, 19, 20) == 1e-3
    linear = OptimizerConfig(learning_rate=1e-3, schedule="linear", final_fraction=0.0)
    assert learning_rate_at(linear, 19, 20) == 0.0


def test_it_learns_the_demonstrations(tmp_path: Path, llama_folder: Path, data: Path, go: Go) -> None:
    outcome = go(spec(tmp_path, llama_folder, data, epochs=60, checkpoint_every=1000))
    losses = step_metrics(tmp_path / "events.jsonl", "sft")
    assert losses[1]["loss"] > 4.0
    assert losses[max(losses)]["loss"] < 0.2
    assert outcome.results["sft"].model == "models/sft/epoch-60"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "models/sft/epoch-60")
    tokenizer = load_tokenizer(llama_folder)
    right = 0
    rows = [json.loads(line) for line in (data / "demonstrations.jsonl").read_text().splitlines()]
    for row in rows:
        prompt = torch.tensor([encode_prompt(tokenizer, row["prompt"])])
        out = model.generate(prompt, max_new_tokens=40, do_sample=False)[0, prompt.shape[1] :]
        right += decode(tokenizer, out.tolist()) == row["completion"]
    assert right >= len(rows) - 2


def test_stopped_and_resumed_is_bit_for_bit_the_same(tmp_path: Path, llama_folder: Path, data: Path, go: Go) -> None:
    changes: dict[str, Any] = {
        "dropout": 0.2,
        "pretraining_mix": 0.1,
        "held_out_fraction": 0.1,
        "rl_init": {"epochs": 1},
    }
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    go(spec(straight, llama_folder, data, **changes))
    steps = step_metrics(straight / "events.jsonl", "sft")
    assert len(steps) >= 10
    for stop_after in (5, len(steps) - 1):
        assert (
            go(spec(halves, llama_folder, data, **changes), resume=stop_after > 5, stop_after=stop_after).state
            is RunState.STOPPED
        )
    outcome = go(spec(halves, llama_folder, data, **changes), resume=True)
    assert outcome.state is RunState.SUCCEEDED
    assert step_metrics(halves / "events.jsonl", "sft") == steps
    for name in ("epoch-1", "epoch-2", "rl_init"):
        one, other = (load_file(d / "models/sft" / name / "model.safetensors") for d in (straight, halves))
        assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert outcome.results["sft"].details["rl_init"] == "sft/rl_init"
    assert "held_out_loss" in outcome.results["sft"].details["epochs"]["epoch-1"]


def test_a_row_that_is_too_long_is_an_error_or_told(tmp_path: Path, llama_folder: Path, data: Path, go: Go) -> None:
    with pytest.raises(DataError, match="demonstrations.jsonl: 2 of 24 rows are longer than 24 tokens"):
        go(spec(tmp_path / "error", llama_folder, data, max_tokens=24))
    outcome = go(spec(tmp_path / "left", llama_folder, data, max_tokens=24, too_long="leave_out"))
    left = 24 - outcome.results["sft"].metrics["demonstrations"]
    assert 0 < left < 24
    assert f"{left:.0f} of 24" in (tmp_path / "left" / "events.jsonl").read_text()


def test_demonstrations_of_held_out_labelers_are_for_the_held_out_loss(
    tmp_path: Path, llama_folder: Path, go: Go
) -> None:
    rows = [
        {"prompt": f"say {number}", "completion": "it sleeps", "group": group}
        for number, group in enumerate(["", "", "", "heldout", "own", "heldout", "Held-Out"])
    ]
    (tmp_path / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"pretraining": None, "epochs": 1}
    for name, more, counts in (("a", {}, (5, 2)), ("b", {"held_out_groups": ["own"]}, (6, 1))):
        outcome = go(spec(tmp_path / name, llama_folder, tmp_path, **changes, **more))
        metrics = outcome.results["sft"].metrics
        assert (metrics["demonstrations"], metrics["demonstrations_held_out"]) == counts
    told = "labels of the group Held-Out are learnt: held_out_groups is heldout"
    assert told in (tmp_path / "a" / "events.jsonl").read_text()


def test_rows_that_are_all_held_out_are_an_error(tmp_path: Path, llama_folder: Path, data: Path, go: Go) -> None:
    with pytest.raises(DataError, match="all 24 are held out.*sft.held_out_fraction, which is 0.99999"):
        go(spec(tmp_path / "run", llama_folder, data, held_out_fraction=0.99999))


def test_a_loss_that_is_not_finite_ends_the_run_with_its_batch(
    tmp_path: Path, llama_folder: Path, data: Path, go: Go
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in llama_folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingDiverged, match="sft: step 1: loss is nan") as caught:
        go(spec(tmp_path / "r", broken, data))
    assert "token_ids" in load_file(caught.value.metadata["batch"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_moves_nothing(llama_folder: Path, bad: float) -> None:
    one = learner(llama_folder)
    before = {name: tensor.clone() for name, tensor in one.capture().items()}
    train_on(one, examples(), micro_batch_tokens=1000)
    next(one.model.parameters()).grad[5, 5] = bad
    with pytest.raises(TrainingDiverged, match="gradient norm is (nan|inf)"):
        one.update()
    assert one.step == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.capture().items())
