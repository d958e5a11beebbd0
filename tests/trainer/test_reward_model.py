"""The reward model: shared prompts change nothing, it learns rankings, its zero is the demonstrations' mean."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from tiny_models import make_policy, make_tokenizer
from trimtab.errors import DataError, Mismatch, TrainingDiverged
from trimtab_models.heads import read_rewards
from trimtab_models.loading import load_policy, load_reward_model, reward_model_from_policy, save_model
from trimtab_models.tokenizer import encode_completion, encode_prompt, load_tokenizer, tokenizer_digest
from trimtab_trainer.config import OptimizerConfig, RunSpec
from trimtab_trainer.evaluation import (
    RankedAnswers,
    calibration,
    labeler_agreement,
    pair_agreement,
    ranking_accuracy,
)
from trimtab_trainer.examples import RankingExample
from trimtab_trainer.optimization import Learner, prepare_for_training
from trimtab_trainer.report import write_report
from trimtab_trainer.reporter import RunState, step_metrics
from trimtab_trainer.reward_model import train_on_rankings
from trimtab_trainer.reward_model_accuracy import score_answers
from trimtab_trainer.run import RunOutcome
from trimtab_trainer.tables import percent

Go = Callable[..., RunOutcome]

WORDS = (
    "trim tab small surface steers rudder ship quick brown fox jumps over lazy dog sleeps helpful honest harmless"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rankings of 2 to 9 answers by how often a word is in them; the group `random` ranks by chance."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    good = WORDS[0]
    rankings = []
    for index in range(80):
        count = rng.randint(2, 9)
        goods = [rng.randint(0, 2) for _ in range(count)]
        answers = []
        for number, times in enumerate(goods):
            answer = [rng.choice(WORDS[1:]) for _ in range(3)] + [good] * times
            rng.shuffle(answer)
            answers.append(" ".join([*answer, WORDS[number + 1]]))
        groups = [[i for i in range(count) if goods[i] == times] for times in (2, 1, 0)]
        labels = [{"labeler": "a", "group": "expert", "ranking": [g for g in groups if g]}]
        if index % 2:
            order = rng.sample(range(count), count)
            labels.append({"labeler": "b", "group": "random", "ranking": [[i] for i in order]})
        prompt = " ".join(rng.sample(WORDS, 2)) + f" {index}"
        rankings.append({"prompt": prompt, "answers": answers, "labels": labels, "source": "own"})
    rankings.append(
        {"prompt": "tied", "answers": ["a", "b"], "source": "own",
         "labels": [{"labeler": "a", "group": "expert", "ranking": [[0, 1]]}]}
    )  # fmt: skip
    demonstrations = [{"prompt": r["prompt"], "completion": r["answers"][0]} for r in rankings[:20]]
    for name, rows in (("rankings", rankings), ("demonstrations", demonstrations)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def spec(directory: Path, base: Path, data: Path, **changes: Any) -> RunSpec:
    config = {
        "initial_model": "base",
        "rankings": "{data}/rankings.jsonl",
        "demonstrations": "{data}/demonstrations.jsonl",
        "held_out_fraction": 0.2,
        "groups": ["expert"],
        "batch_size": 8,
        "optimizer": {"learning_rate": 5e-3},
        "checkpoint_every": 3,
        "micro_batch_tokens": 256,
        "bootstrap_samples": 200,
    }
    return RunSpec.model_validate(
        {
            "name": "r",
            "directory": directory,
            "model": str(base),
            "data_directory": data,
            "stages": ["reward_model"],
            "deterministic": True,
            "threads": 1,
            "reward_model": {**config, **changes},
        }
    )


def examples() -> list[RankingExample]:
    rng = random.Random(3)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randint(4, 90) for _ in range(count))

    made = []
    for number, count in enumerate((2, 9, 4, 5)):
        answers = tuple(ids(rng.randint(1, 6)) for _ in range(count))
        ranks = tuple(rng.randint(0, 3) for _ in range(count - 1)) + (4,)
        more = (("b", tuple(rng.sample(range(count), count))),) if number % 2 else ()
        made.append(RankingExample(str(number), "", ids(rng.randint(3, 9)), answers, (("a", ranks), *more)))
    return made


def learner(folder: Path) -> Learner:
    model = reward_model_from_policy(folder, tokenizer=load_tokenizer(folder), seed=1)
    prepare_for_training(model)
    return Learner(model, OptimizerConfig(learning_rate=1e-3), total_steps=1)


def alone(model: torch.nn.Module, example: RankingExample) -> torch.Tensor:
    """Rewards of an example's answers, each in a forward of its own."""
    rewards = []
    for answer in example.answers:
        ids = torch.tensor([example.prompt + answer])
        rewards.append(read_rewards(model, ids, torch.tensor([ids.shape[1]])))
    return torch.cat(rewards)


def test_shared_prompts_give_the_rewards_and_gradients_of_separate_forwards(policy_folder: Path) -> None:
    together, apart = learner(policy_folder), learner(policy_folder)
    scores = score_answers(together.model, examples())
    for score, example in zip(scores, examples(), strict=True):
        torch.testing.assert_close(score, alone(apart.model, example), rtol=1e-5, atol=1e-5)
    figures = train_on_rankings(together, examples(), micro_batch_tokens=10_000)

    total = torch.zeros(())
    for example in examples():
        rewards = alone(apart.model, example)
        terms = [
            -torch.nn.functional.logsigmoid(rewards[better] - rewards[worse])
            for _, ranks in example.rankings
            for better in range(len(ranks))
            for worse in range(len(ranks))
            if ranks[better] < ranks[worse]
        ]
        total = total + torch.stack(terms).mean() / len(examples())
    total.backward()
    assert figures["loss"] == pytest.approx(float(total.detach()), rel=1e-5)
    for (name, one), (_, other) in zip(together.model.named_parameters(), apart.model.named_parameters(), strict=True):
        if one.grad is not None or other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_micro_batches_change_nothing(llama_folder: Path) -> None:
    whole, cut = learner(llama_folder), learner(llama_folder)
    expected = train_on_rankings(whole, examples(), micro_batch_tokens=10_000)
    found = train_on_rankings(cut, examples(), micro_batch_tokens=1)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert (found["accuracy"], found["pairs"]) == (expected["accuracy"], expected["pairs"])
    for one, other in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_it_learns_and_demonstrations_have_mean_zero(tmp_path: Path, llama_folder: Path, data: Path, go: Go) -> None:
    outcome = go(spec(tmp_path, llama_folder, data, epochs=12))
    figures = outcome.results["reward_model"].metrics
    steps = step_metrics(tmp_path / "events.jsonl", "reward_model")
    assert steps[1]["loss"] > 0.5 and steps[max(steps)]["loss"] < 0.15
    assert figures["accuracy"] > 0.9
    assert figures["accuracy_low"] <= figures["accuracy"] <= figures["accuracy_high"]
    assert 0.7 < figures["longer_wins"] < 1  # more good words make a longer answer here
    surest = outcome.results["reward_model"].details["calibration"][-1]
    assert surest["low"] <= surest["observed"] <= surest["high"]
    tied = sum(len(row["labels"][0]["ranking"]) == 1 for row in map(json.loads, (data / "rankings.jsonl").open()))
    told = re.search(r"(\d+) of \d+ rankings are wholly tied", (tmp_path / "events.jsonl").read_text())
    assert told is not None and 0 < int(told[1]) <= tied
    assert figures["rankings"] + figures["rankings_held_out"] + int(told[1]) == 81

    folder = tmp_path / "models/reward_model/member-1"
    tokenizer = load_tokenizer(folder)
    model = load_reward_model(folder)
    stock = AutoModelForSequenceClassification.from_pretrained(folder)
    rewards, logits = [], []
    for row in map(json.loads, (data / "demonstrations.jsonl").read_text().splitlines()):
        prompt = encode_prompt(tokenizer, row["prompt"])
        ids = torch.tensor([prompt + encode_completion(tokenizer, row["completion"])])
        with torch.no_grad():
            rewards.append(float(read_rewards(model, ids, torch.tensor([ids.shape[1]]))))
            logits.append(float(stock(input_ids=ids).logits))
    assert np.mean(rewards) == pytest.approx(0.0, abs=1e-4)
    assert np.std(rewards) > 0.1
    np.testing.assert_allclose(np.array(logits) - np.array(rewards), figures["reward_bias"], atol=1e-4)


def test_disjoint_members_share_no_prompt_and_judge_each_other(
    tmp_path: Path, llama_folder: Path, data: Path, go: Go
) -> None:
    changes = {"members": 2, "disjoint_members": True, "epochs": 8}
    assert go(spec(tmp_path, llama_folder, data, **changes), stop_after=9).state is RunState.STOPPED
    outcome = go(spec(tmp_path, llama_folder, data, **changes), resume=True)
    result = outcome.results["reward_model"]
    steps = step_metrics(tmp_path / "events.jsonl", "reward_model")
    per_member = [-(-count // 8) * 8 for count in _halves(int(result.metrics["rankings"]))]
    assert list(steps) == list(range(1, sum(per_member) + 1))
    assert steps[per_member[0] + 1]["loss"] > 0.4 > steps[per_member[0]]["loss"]  # the second starts from nothing
    assert steps[per_member[0] + 1]["learning_rate"] > steps[per_member[0]]["learning_rate"]
    for key in ("accuracy_member_1", "accuracy_member_2", "accuracy_ensemble"):
        assert result.metrics[key] > 0.75
    assert result.metrics["accuracy"] == result.metrics["accuracy_member_1"]
    assert 0.01 < result.metrics["member_spread"] < 5
    assert result.model == "models/reward_model/member-1"
    one, other = (load_reward_model(tmp_path / f"models/reward_model/member-{n}") for n in (1, 2))
    assert not torch.equal(one.score.weight, other.score.weight)


def _halves(rankings: int) -> tuple[int, int]:
    return (rankings + 1) // 2, rankings // 2


def test_members_of_an_ensemble_differ_by_head_and_order_only(
    tmp_path: Path, llama_folder: Path, data: Path, go: Go
) -> None:
    result = go(spec(tmp_path, llama_folder, data, members=2, epochs=1)).results["reward_model"]
    steps = step_metrics(tmp_path / "events.jsonl", "reward_model")
    assert len(steps) == 2 * -(-int(result.metrics["rankings"]) // 8)
    one, other = (load_reward_model(tmp_path / f"models/reward_model/member-{n}") for n in (1, 2))
    assert not torch.equal(one.score.weight, other.score.weight)
    assert {"accuracy_member_1", "accuracy_member_2", "accuracy_ensemble", "member_spread"} <= result.metrics.keys()


def test_folds_hold_out_labelers(tmp_path: Path, llama_folder: Path, data: Path, go: Go) -> None:
    """Labeler `a` can be predicted, `b` ranks by chance: a model that saw only the other shows it."""
    folds = spec(tmp_path, llama_folder, data, groups=None, folds=2, epochs=12, held_out_fraction=0.3)
    folds = folds.model_copy(update={"stages": ("reward_model_folds",)})
    result = go(folds).results["reward_model_folds"]
    labelers = [one["labelers"] for one in result.details["folds"]]
    assert sorted(labelers) == [["a"], ["b"]]
    seen, unseen = np.array(result.details["accuracies"]).T
    of_a = labelers.index(["b"])  # the fold that holds out b learns from a
    assert seen[of_a] > 0.85 and unseen[of_a] < 0.75
    assert result.metrics["accuracy_training_labelers"] == pytest.approx(seen.mean())
    assert result.metrics["accuracy_held_out_labelers_error"] == pytest.approx(unseen.std(ddof=1) / np.sqrt(2))


def test_a_fold_without_a_decided_pair_is_told(tmp_path: Path, llama_folder: Path, data: Path, go: Go) -> None:
    rows = [json.loads(line) for line in (data / "rankings.jsonl").read_text().splitlines()]
    for row in rows:
        for label in row["labels"]:
            if label["labeler"] == "b":
                label["ranking"] = [list(range(len(row["answers"])))]
    (tmp_path / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folds = spec(tmp_path / "run", llama_folder, tmp_path, groups=None, folds=2, demonstrations=None)
    with pytest.raises(DataError, match="rankings of one side of a fold have no decided pair"):
        go(folds.model_copy(update={"stages": ("reward_model_folds",)}))


def test_groups_are_told_apart(tmp_path: Path, llama_folder: Path, data: Path, go: Go) -> None:
    outcome = go(spec(tmp_path, llama_folder, data, groups=["expert"], epochs=8))
    by_group = outcome.results["reward_model"].details["accuracy_by_group"]
    assert set(by_group) == {"own expert", "own random"}  # those not trained on are measured too
    assert by_group["own expert"]["value"] > 0.85 > by_group["own random"]["value"]
    assert outcome.results["reward_model"].metrics["accuracy"] == by_group["own expert"]["value"]
    by_source = outcome.results["reward_model"].details["accuracy_by_source"]
    assert by_source == {"own": by_group["own expert"]}  # what was not trained on does not count for the source


def test_a_held_out_group_that_is_spelt_otherwise_is_told(
    tmp_path: Path, llama_folder: Path, data: Path, go: Go
) -> None:
    for file in data.iterdir():
        (tmp_path / file.name).write_text(file.read_text().replace('"random"', '"held_out"'))
    go(spec(tmp_path / "run", llama_folder, tmp_path, groups=None, limit=8))
    told = "rankings.jsonl: labels of the group held_out are learnt: held_out_groups is heldout"
    assert told in (tmp_path / "run" / "events.jsonl").read_text()


def test_demonstrations_of_held_out_labelers_do_not_set_the_offset(
    tmp_path: Path, llama_folder: Path, data: Path, go: Go
) -> None:
    for file in data.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rows = [
        json.loads(line) | {"group": "heldout"} for line in (data / "demonstrations.jsonl").read_text().splitlines()
    ]
    (tmp_path / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="no demonstration is left to set the offset by; .* is heldout"):
        go(spec(tmp_path / "run", llama_folder, tmp_path, limit=8))


def test_stopped_and_resumed_is_bit_for_bit_the_same(tmp_path: Path, llama_folder: Path, data: Path, go: Go) -> None:
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    go(spec(straight, llama_folder, data, epochs=2))
    steps = step_metrics(straight / "events.jsonl", "reward_model")
    assert len(steps) >= 10
    assert go(spec(halves, llama_folder, data, epochs=2), stop_after=5).state is RunState.STOPPED
    outcome = go(spec(halves, llama_folder, data, epochs=2), resume=True)
    assert outcome.state is RunState.SUCCEEDED
    assert step_metrics(halves / "events.jsonl", "reward_model") == steps
    one, other = (load_file(d / "models/reward_model/member-1/model.safetensors") for d in (straight, halves))
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def test_a_loss_that_is_not_finite_ends_the_run_with_its_batch(
    tmp_path: Path, llama_folder: Path, data: Path, go: Go
) -> None:
    model = load_policy(llama_folder)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    save_model(model, load_tokenizer(llama_folder), tmp_path / "broken")
    with pytest.raises(TrainingDiverged, match="reward_model: step 1: loss is nan") as caught:
        go(spec(tmp_path / "r", tmp_path / "broken", data))
    saved = load_file(caught.value.metadata["batch"])
    assert len(saved["token_ids"]) == int(saved["lengths"].sum()) > 0


def test_another_tokenizer_is_refused_with_both_digests(tmp_path: Path, llama_folder: Path, data: Path, go: Go) -> None:
    other = tmp_path / "other"
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["zzz"])
    save_model(make_policy("llama", len(tokenizer)), tokenizer, other)
    with pytest.raises(Mismatch) as caught:
        go(spec(tmp_path / "r", llama_folder, data, initial_model=str(other)))
    for folder in (llama_folder, other):
        assert tokenizer_digest(load_tokenizer(folder)) in caught.value.message


def test_a_reward_model_can_go_on(tmp_path: Path, llama_folder: Path, data: Path, go: Go) -> None:
    go(spec(tmp_path / "first", llama_folder, data))
    first = tmp_path / "first/models/reward_model/member-1"
    outcome = go(spec(tmp_path / "second", llama_folder, data, initial_model=str(first)))
    assert outcome.state is RunState.SUCCEEDED


def test_no_rankings_left_names_the_filters(tmp_path: Path, llama_folder: Path, data: Path, go: Go) -> None:
    with pytest.raises(DataError, match="groups: no row has 'nobody'; they have expert, random"):
        go(spec(tmp_path, llama_folder, data, groups=["nobody"]))


def test_the_report_opens_with_how_well_it_orders_pairs(tmp_path: Path, llama_folder: Path, data: Path, go: Go) -> None:
    run = spec(tmp_path, llama_folder, data, groups=["expert"])
    result = go(run).results["reward_model"]
    write_report(run.directory)
    page = (run.directory / "report.html").read_text()
    shown = page[page.index("<h2>Reward model</h2>") : page.index("<h2>Compute</h2>")]
    assert page.index("<h2>") == page.index("<h2>Reward model</h2>")
    accuracy, longer = (result.details[name] for name in ("accuracy", "longer_wins"))
    for label, found in {"labelers learnt from": accuracy, **result.details["accuracy_by_group"]}.items():
        interval = f"{percent(found['value'])} ({percent(found['low'])} to {percent(found['high'])})"
        cells = shown[shown.index(f">{label}</td>") :].partition("</tr>")[0]
        assert f">{interval}</td>" in cells and f">{found['pairs']}</td>" in cells
    assert percent(longer["value"]) in shown and "how often they agree is not known" in shown
    nothing = spec(tmp_path / "nothing", llama_folder, data, held_out_fraction=0.0)
    go(nothing)
    write_report(nothing.directory)
    assert "No pair was held out" in (nothing.directory / "report.html").read_text()


def test_turns_without_a_template_are_refused_with_key_file_and_line(
    tmp_path: Path, llama_folder: Path, data: Path, go: Go
) -> None:
    for file in data.iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    tokenizer = load_tokenizer(llama_folder)
    tokenizer.chat_template = None
    save_model(load_policy(llama_folder), tokenizer, plain := tmp_path / "plain")
    for name in ("rankings.jsonl", "demonstrations.jsonl"):
        file = tmp_path / name
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines[2]["messages"] = [{"role": "user", "content": lines[2].pop("prompt")}]
        before = file.read_text()
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        words = f"reward_model.{file.stem}: .*{name}:3: messages: .* no chat template .* rows with `prompt`"
        with pytest.raises(DataError, match=words):
            go(spec(tmp_path / f"run-{file.stem}", plain, tmp_path))
        file.write_text(before)


def test_pairs_and_ties() -> None:
    assert pair_agreement([0, 1, 2], [3.0, 2.0, 1.0]) == (3.0, 3)
    assert pair_agreement([0, 0, 1], [1.0, 5.0, 2.0]) == (1.0, 2)
    assert pair_agreement([0, 1], [1.0, 1.0]) == (0.5, 1)
    assert pair_agreement([0, 0], [1.0, 2.0]) == (0.0, 0)


def test_labelers_agree_over_the_pairs_that_both_decide() -> None:
    assert labeler_agreement([[[0, 1, 2], [0, 2, 1]]]) == (2 / 3, 3)
    assert labeler_agreement([[[0, 0, 1], [1, 0, 2]], [[0, 1]]]) == (1.0, 2)  # one ties a pair; one is alone
    assert labeler_agreement([[[0, 1], [0, 1], [1, 0]]]) == (1 / 3, 3)  # three labelers: each two of them
    share, decisions = labeler_agreement([[[0, 0], [0, 1]]])
    assert math.isnan(share) and decisions == 0


def test_accuracy_by_group_and_its_clusters() -> None:
    rankings = [RankedAnswers(str(i), "g" if i < 5 else "h", (0, 1), (1.0, 0.0 if i < 5 else 2.0)) for i in range(10)]
    rankings.append(RankedAnswers("tied", "g", (0, 0), (1.0, 2.0)))
    found = ranking_accuracy(rankings, samples=500, seed=0)
    assert {group: (a.value, a.pairs, a.prompts) for group, a in found.items()} == {
        "": (0.5, 10, 10),
        "g": (1.0, 5, 5),
        "h": (0.0, 5, 5),
    }
    assert ranking_accuracy([], samples=100, seed=0) == {}


def test_calibration_of_a_perfect_and_of_an_overconfident_model() -> None:
    generator = np.random.default_rng(0)
    rankings = []
    for number in range(20_000):
        difference = generator.normal() * 2
        first_wins = generator.random() < 1 / (1 + np.exp(-difference))
        rankings.append(RankedAnswers(str(number), "", (0, 1) if first_wins else (1, 0), (difference, 0.0)))
    found = calibration(rankings)
    assert found is not None and found.error < 0.02
    assert sum(one.pairs for one in found.bins) == 20_000
    assert all(0.5 <= one.predicted <= 1 for one in found.bins)
    assert [one.predicted for one in found.bins] == sorted(one.predicted for one in found.bins)
    loud = calibration([RankedAnswers(r.prompt, "", r.ranks, (5 * r.scores[0], 0.0)) for r in rankings])
    assert loud is not None and loud.error > 0.1
    assert calibration([RankedAnswers("tied", "", (0, 0), (1.0, 2.0))]) is None
    even = calibration([RankedAnswers("x", "", (0, 1), (1.0, 1.0))])
    assert even is not None and even.error == 0.0


def test_bins_of_a_calibration_have_intervals_over_prompts_where_they_are_asked_for() -> None:
    generator = np.random.default_rng(0)
    rankings = []
    for number in range(400):
        difference = generator.normal() * 2
        first_wins = generator.random() < 1 / (1 + np.exp(-difference))
        rankings.append(RankedAnswers(str(number), "", (0, 1) if first_wins else (1, 0), (difference, 0.0)))
    plain, found = calibration(rankings), calibration(rankings, samples=500, seed=0)
    again = calibration(rankings * 4, samples=500, seed=0)  # the same prompts again are nothing new
    assert plain is not None and found is not None and again is not None
    assert all(one.low is None and one.high is None for one in plain.bins)
    for one, repeated in zip(found.bins, again.bins, strict=True):
        assert one.low is not None and one.high is not None and one.low <= one.observed <= one.high
        spread = 1.96 * (one.observed * (1 - one.observed) / one.pairs) ** 0.5
        assert one.high - one.low == pytest.approx(2 * spread, rel=0.35)
        assert (repeated.low, repeated.high) == (one.low, one.high)
    few = calibration(rankings[:4], samples=500, seed=0)
    assert few is not None and all(one.low is None for one in few.bins)
