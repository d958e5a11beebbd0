"""DPO without services: losses against NumPy, gradients, packed answers against separate forwards, wrong sections."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from trimtab.errors import ConfigError
from trimtab_models.loading import load_policy
from trimtab_models.logprobs import completion_logprobs
from trimtab_trainer.config import DPOConfig, OptimizerConfig, load_run_spec
from trimtab_trainer.dpo_pairs import ReferencedExample, answer_logprobs, logprobs_of, pair_figures, train_on_pairs
from trimtab_trainer.examples import RankingExample, said_by
from trimtab_trainer.losses import dpo_loss
from trimtab_trainer.optimization import Learner, prepare_for_training

BETTER, WORSE = torch.tensor([0, 0, 2]), torch.tensor([1, 3, 1])


def log_ratios(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("beta", "smoothing"), [(0.1, 0.0), (0.5, 0.1), (2.0, 0.3)])
def test_the_loss_is_rafailovs(beta: float, smoothing: float) -> None:
    policy, reference = np.random.default_rng(0).normal(-20, 3, (2, 4))
    found = dpo_loss(log_ratios(*(policy - reference)), BETTER, WORSE, beta=beta, label_smoothing=smoothing)
    expected = 0.0
    for winner, loser in ((0, 1), (0, 3), (2, 1)):
        margin = beta * ((policy[winner] - reference[winner]) - (policy[loser] - reference[loser]))
        probability = 1 / (1 + np.exp(-margin))
        expected -= ((1 - smoothing) * np.log(probability) + smoothing * np.log(1 - probability)) / 3
    assert float(found.detach()) == pytest.approx(expected, rel=1e-9)


def test_the_gradient_is_the_probability_of_the_wrong_order() -> None:
    """Rafailov section 4: beta * sigmoid(-beta h) up for the better answer, down for the worse."""
    ratios, beta = log_ratios(0.7, -0.2), 0.3
    dpo_loss(ratios, torch.tensor([0]), torch.tensor([1]), beta=beta).backward()
    wrong = 1 / (1 + np.exp(beta * 0.9))
    assert ratios.grad is not None and ratios.grad.tolist() == pytest.approx([-beta * wrong, beta * wrong])


def test_a_smoothed_loss_is_least_at_the_margin_that_it_believes_in() -> None:
    smoothing, beta = 0.2, 0.5
    margin = np.log((1 - smoothing) / smoothing) / beta
    for offset, sign in ((-1e-3, -1), (0.0, 0), (1e-3, 1)):
        ratios = log_ratios(margin + offset, 0.0)
        pair = torch.tensor([0]), torch.tensor([1])
        dpo_loss(ratios, *pair, beta=beta, label_smoothing=smoothing).backward()
        assert ratios.grad is not None
        assert np.sign(round(float(ratios.grad[0]), 9)) == sign


def test_ipo_is_the_squared_distance_to_half_of_one_over_beta() -> None:
    beta = 0.25
    found = dpo_loss(log_ratios(3.0, 1.0, 0.5, -1.0), BETTER, WORSE, beta=beta, kind="ipo")
    assert float(found.detach()) == pytest.approx(((2.0 - 2) ** 2 + (4.0 - 2) ** 2 + (-0.5 - 2) ** 2) / 3)
    at_start = dpo_loss(log_ratios(0.0, 0.0, 0.0, 0.0), BETTER, WORSE, beta=beta, kind="ipo")
    assert float(at_start.detach()) == pytest.approx(1 / (2 * beta) ** 2)
    beyond = log_ratios(5.0, 0.0)  # a margin beyond 1 / (2 beta) is pulled back, which log sigmoid never does
    dpo_loss(beyond, torch.tensor([0]), torch.tensor([1]), beta=beta, kind="ipo").backward()
    assert beyond.grad is not None and float(beyond.grad[0]) > 0 > float(beyond.grad[1])


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_without_a_decided_pair_there_is_no_loss_and_no_gradient(kind: Any) -> None:
    none = torch.zeros(0, dtype=torch.long)
    ratios = log_ratios(1.0, -1.0)
    loss = dpo_loss(ratios, none, none, beta=0.1, kind=kind)
    loss.backward()
    assert float(loss.detach()) == 0 and ratios.grad is not None and not ratios.grad.any()


def examples() -> list[RankingExample]:
    """Prompts with 2 to 9 answers, some tied, some ranked by a second labeler."""
    draw = random.Random(3)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randint(4, 90) for _ in range(count))

    made = []
    for number, count in enumerate((2, 9, 4, 5)):
        answers = tuple(ids(draw.randint(1, 6)) for _ in range(count))
        ranks = tuple(draw.randint(0, 3) for _ in range(count - 1)) + (4,)
        more = (("b", tuple(draw.sample(range(count), count))),) if number % 2 else ()
        made.append(RankingExample(str(number), "", ids(draw.randint(1, 9)), answers, (("a", ranks), *more)))
    return made


def referenced(shift: float = 0.0) -> list[ReferencedExample]:
    draw = np.random.default_rng(1)
    return [ReferencedExample(one, draw.normal(-30 + shift, 5, len(one.answers))) for one in examples()]


def learner(folder: Path, **optimizer: Any) -> Learner:
    model = load_policy(folder)
    prepare_for_training(model)
    settings = {"learning_rate": 1e-3, "schedule": "constant", "final_fraction": 1.0, **optimizer}
    return Learner(model, OptimizerConfig(**settings), total_steps=1)


def alone(model: Any, example: RankingExample) -> torch.Tensor:
    """Log-probs of an example's answers, each in a forward of its own."""
    sums = []
    for answer in example.answers:
        ids = torch.tensor([example.prompt + answer])
        lengths = torch.tensor([len(example.prompt)]), torch.tensor([len(answer)])
        sums.append(completion_logprobs(model, ids, *lengths)[0].sum())
    return torch.stack(sums)


def test_answers_behind_one_prompt_have_the_logprobs_that_they_have_alone(policy_folder: Path) -> None:
    model = load_policy(policy_folder)
    with torch.no_grad():
        for found, example in zip(answer_logprobs(model, examples()), examples(), strict=True):
            torch.testing.assert_close(found, alone(model, example), rtol=1e-5, atol=1e-4)


def test_a_batch_is_the_mean_over_prompts_of_the_mean_over_all_pairs_of_all_labelers(llama_folder: Path) -> None:
    config = DPOConfig(beta=0.2, label_smoothing=0.1)
    together, apart = learner(llama_folder), learner(llama_folder)
    figures = train_on_pairs(together, referenced(), config)

    total, agreeing, pairs = torch.zeros(()), 0.0, 0
    for example in referenced():
        ratios = alone(apart.model, example.ranking) - torch.tensor(example.ref_logprobs, dtype=torch.float32)
        terms = []
        for _, ranks in example.ranking.rankings:
            for one, other in combinations(range(len(ranks)), 2):
                if ranks[one] == ranks[other]:
                    continue  # a tie gives no pair
                winner, loser = (one, other) if ranks[one] < ranks[other] else (other, one)
                margin = 0.2 * (ratios[winner] - ratios[loser])
                terms.append(-0.9 * torch.sigmoid(margin).log() - 0.1 * torch.sigmoid(-margin).log())
                agreeing += float(margin > 0)
        total = total + torch.stack(terms).mean() / 4
        pairs += len(terms)
    total.backward()
    assert figures["loss"] == pytest.approx(float(total.detach()), rel=1e-4)
    assert (figures["accuracy"], figures["pairs"]) == (pytest.approx(agreeing / pairs), pairs)
    for (name, one), (_, other) in zip(together.model.named_parameters(), apart.model.named_parameters(), strict=True):
        if one.grad is not None or other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_micro_batches_change_nothing(llama_folder: Path) -> None:
    whole, cut = learner(llama_folder), learner(llama_folder)
    expected = train_on_pairs(whole, referenced(), DPOConfig(micro_batch_tokens=10_000))
    found = train_on_pairs(cut, referenced(), DPOConfig(micro_batch_tokens=1))
    assert found == pytest.approx(expected, rel=1e-5)
    for one, other in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_a_step_from_the_reference_moves_the_better_answers_up(llama_folder: Path, loss: Any) -> None:
    config = DPOConfig(loss=loss, beta=0.1)
    trained = learner(llama_folder)
    before = logprobs_of(trained.model, examples(), micro_batch_tokens=1000)
    batch = [ReferencedExample(one, ref.double().numpy()) for one, ref in zip(examples(), before, strict=True)]
    at_start = train_on_pairs(trained, batch, config)
    trained.update()
    after = pair_figures(batch, logprobs_of(trained.model, examples(), micro_batch_tokens=1000), config)
    assert at_start["loss"] == pytest.approx(np.log(2) if loss == "sigmoid" else 1 / (2 * 0.1) ** 2, rel=1e-4)
    assert at_start["reward_margin"] == pytest.approx(0, abs=1e-5)
    assert after["loss"] < at_start["loss"] and after["reward_margin"] > 0.01
    assert after["better_reward"] - after["worse_reward"] == pytest.approx(after["reward_margin"], abs=1e-6)


def test_labelers_of_other_groups_say_nothing() -> None:
    both = examples()[1]
    assert [group for group, _ in said_by(both, ("b",)).rankings] == ["b"]
    assert said_by(both, None) == both and said_by(both, ("nobody",)).decided is False


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dpo.beta=0", "'dpo.beta' has value 0; allowed: input should be greater than 0"),
        ("dpo.beta=-0.1", "'dpo.beta' has value -0.1; allowed: input should be greater than 0"),
        ("dpo.label_smoothing=0.5", "'dpo.label_smoothing' has value 0.5; allowed: input should be less than 0.5"),
        ("dpo.label_smoothing=-0.1", "'dpo.label_smoothing' has value -0.1"),
        ("dpo.loss=hinge", "'dpo.loss' has value 'hinge'; allowed: input should be 'sigmoid' or 'ipo'"),
        ("dpo={loss: ipo, label_smoothing: 0.1}", "label_smoothing is 0.1; allowed with loss ipo: 0"),
    ],
)
def test_a_wrong_section_names_key_value_and_what_is_allowed(tmp_path: Path, override: str, said: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({"preset": "tiny_dpo"}))
    with pytest.raises(ConfigError) as caught:
        load_run_spec(path, [override])
    assert said in caught.value.message


def test_it_reads_the_rankings_of_the_reward_model_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "r",
                "directory": str(tmp_path),
                "model": "base",
                "stages": ["dpo"],
                "data_directory": "data",
                "dpo": {"policy": "somewhere/sft"},
                "reward_model": {"rankings": "{data}/rankings.jsonl", "rankings_held_out": "{data}/held_out.jsonl"},
            }
        )
    )
    spec = load_run_spec(path)
    read = [
        ("reward_model.rankings", "{data}/rankings.jsonl"),
        ("reward_model.rankings_held_out", "{data}/held_out.jsonl"),
    ]
    assert spec.data_paths() == read
    both = load_run_spec(
        path, ["stages=[reward_model, dpo]", "reward_model.demonstrations=null", "reward_model.initial_model=base"]
    )
    assert sorted(both.data_paths()) == sorted(read)  # each once, though both stages read them
    assert list(spec.model_references()) == [("dpo", "dpo.policy", "somewhere/sft")]
