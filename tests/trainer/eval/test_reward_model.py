"""A reward model against labelers: figures against counting by hand and scipy, folder and service, real data."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner, Result

from real_data import real
from running import running
from trimtab import Client
from trimtab.errors import ConfigError, DataError
from trimtab_models.loading import load_reward_model, save_model
from trimtab_models.tokenizer import load_tokenizer
from trimtab_trainer.config import RunSpec
from trimtab_trainer.data import Labeling, Ranking, read_rankings
from trimtab_trainer.data.splits import split_by_prompt
from trimtab_trainer.digests import content_digest
from trimtab_trainer.dpo_reference import folder_digest
from trimtab_trainer.eval.commands import eval as evaluations
from trimtab_trainer.eval.reward_model.agreement import ALL, HELD_OUT, LONGER, MODEL, ORACLE, TRAINING, Judged, measure
from trimtab_trainer.eval.reward_model.data import llmbar_ranking
from trimtab_trainer.miniature.labelers import oracle
from trimtab_trainer.run import RunOutcome, read_outcome

ANSWERS = ("a", "bb", "ccc", "dddd")


def evaluated(*arguments: object) -> Result:
    return CliRunner().invoke(evaluations, ["reward-model", *map(str, arguments)], catch_exceptions=False)


def judged(count: int, seed: int = 0) -> list[Judged]:
    """Rankings by two labelers of two groups, ties among them, with scores that know something of them."""
    draw = np.random.default_rng(seed)
    made = []
    for number in range(count):
        worth = draw.normal(size=4)
        labelings = tuple(
            Labeling(
                tuple(int(rank) for rank in scipy.stats.rankdata(-np.round(worth + draw.normal(size=4)), "dense") - 1),
                name,
                group,
            )
            for name, group in (("ann", "old"), ("bob", "new"))
        )
        ranking = Ranking(f"p {number}", ANSWERS, labelings, f"id {number % (count - 3)}", source="own")
        made.append(Judged(ranking, tuple(worth + draw.normal(size=4))))
    return made


def counted(rows: list[Judged], scores: Callable[[Judged], Any], group: str | None) -> tuple[float, int]:
    """Agreement by going over every pair."""
    agree, total = 0.0, 0
    for row in rows:
        found = scores(row)
        for labeling in row.ranking.labelings:
            if group is not None and labeling.group != group:
                continue
            for i, j in combinations(range(4), 2):
                if labeling.ranks[i] != labeling.ranks[j]:
                    total += 1
                    better, worse = (i, j) if labeling.ranks[i] < labeling.ranks[j] else (j, i)
                    agree += float(found[better] > found[worse]) + 0.5 * float(found[better] == found[worse])
    return agree / total, total


def test_accuracies_are_those_of_counting_pairs() -> None:
    rows = judged(60)
    found = measure(rows, held_out_groups=["new"], gold=lambda ranking: [0, 0, 1, 1], samples=200, seed=0)
    scores: dict[str, Callable[[Judged], Any]] = {
        MODEL: lambda row: row.scores,
        LONGER: lambda row: [len(answer) for answer in row.ranking.answers],
        ORACLE: lambda row: [0, 0, 1, 1],
    }
    for name, of_row in scores.items():
        for whose, group in ((ALL, None), (TRAINING, "old"), (HELD_OUT, "new")):
            accuracy = found.by_side[name][whose]
            assert (accuracy.value, accuracy.pairs) == pytest.approx(counted(rows, of_row, group))
        assert found.by_group[name]["own", "new"] == found.by_side[name][HELD_OUT]
        assert found.by_source[name]["own"] == found.by_side[name][ALL]
    difference = found.above_longer[HELD_OUT]
    assert difference is not None
    expected = found.by_side[MODEL][HELD_OUT].value - found.by_side[LONGER][HELD_OUT].value
    assert difference.value == pytest.approx(expected) and difference.low < expected < difference.high


def test_the_interval_of_the_difference_is_that_of_scipys_bootstrap() -> None:
    """Over prompts of equally many pairs, whose mean is what scipy resamples."""
    draw = np.random.default_rng(3)
    rows = []
    for number in range(80):
        worth = draw.normal(size=4)
        ranks = tuple(int(rank) for rank in scipy.stats.rankdata(-worth) - 1)
        ranking = Ranking(f"p {number}", ANSWERS, (Labeling(ranks),), str(number))
        rows.append(Judged(ranking, tuple(worth + draw.normal(size=4))))
    found = measure(rows, samples=4000, seed=1).above_longer[ALL]
    differences = np.array(
        [counted([row], lambda r: r.scores, None)[0] - counted([row], lambda r: [1, 2, 3, 4], None)[0] for row in rows]
    )
    theirs = scipy.stats.bootstrap(
        (differences,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert found is not None and found.value == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_few_prompts_have_no_interval() -> None:
    found = measure(judged(8)[:3], samples=100, seed=0)
    assert found.above_longer[ALL] is None and found.by_side[MODEL][ALL].low is None


def test_llmbar_rows_are_pairs() -> None:
    row = {"input": "q", "output_1": "x", "output_2": "y", "label": 2, "subset": "natural"}
    made = llmbar_ranking(row)
    assert (made.prompt, made.answers, made.labelings[0].ranks) == ("q", ("x", "y"), (1, 0))
    assert made.source == "princeton-nlp/LLMBar/natural"
    for key, value in (("label", 3), ("label", True), ("output_2", " "), ("input", None)):
        with pytest.raises(DataError, match=key):
            llmbar_ranking({**row, key: value})


@pytest.mark.timeout(300)
def test_a_run_is_measured_as_its_stage_did_with_oracle_and_folds(finished_run: RunSpec, tmp_path: Path) -> None:
    """The stage's own held-out accuracy comes out again, and the miniature's own oracle, counted elsewhere."""
    directory = finished_run.directory
    outcome = read_outcome(directory)
    rankings = directory / "data" / "rankings.jsonl"
    done = evaluated(
        rankings, "--model", directory / str(outcome.results["reward_model"].model), "--held-out-groups", "heldout",
        "--held-out-fraction", finished_run.reward_model.held_out_fraction, "--gold", "miniature",
        "--folds", directory, "--bootstrap-samples", 200, "--out", tmp_path,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "reward-model.json").read_text())["figures"]
    stage = outcome.results["reward_model"].metrics
    accuracy = found["accuracy"][MODEL]
    assert accuracy[TRAINING]["value"] == pytest.approx(stage["accuracy"])
    assert accuracy[TRAINING]["pairs"] == stage["accuracy_pairs"]
    _, held_out = split_by_prompt(
        read_rankings(rankings), finished_run.reward_model.held_out_fraction, seed=finished_run.seed
    )
    prompts = {ranking.prompt for ranking in held_out}
    rows = [json.loads(line) for line in rankings.read_text().splitlines()]
    kept = [row for row in rows if row["prompt"] in prompts]
    assert found["accuracy"][ORACLE][TRAINING]["value"] == pytest.approx(oracle(kept, group="training"))
    whole = next(one for one in found["labeler_agreement"] if not one["source"] and not one["group"])
    assert 0.5 < whole["value"] <= 1
    folds = outcome.results["reward_model_folds"].metrics
    assert found["folds"]["held_out"][0] == folds["accuracy_held_out_labelers"]
    assert "72.4 ± 0.4 %" in done.output and "69.6 ± 0.9 %" in done.output


@pytest.mark.timeout(300)
def test_a_service_and_a_folder_give_the_same_figures(finished_run: RunSpec) -> None:
    directory = finished_run.directory
    model = directory / str(read_outcome(directory).results["reward_model"].model)
    common = [directory / "data" / "rankings.jsonl", "--json", "--bootstrap-samples", 100]
    by_folder = evaluated(*common, "--model", model)
    with running("reward", model_folder=model) as service:
        by_service = evaluated(*common, "--target", service.target)
    assert by_folder.exit_code == by_service.exit_code == 0
    ours, theirs = json.loads(by_folder.output), json.loads(by_service.output)
    assert ours["accuracy"] == theirs["accuracy"]
    errors = [found["calibration"][ALL]["error"] for found in (ours, theirs)]
    assert errors[0] == pytest.approx(errors[1], abs=1e-4)


@pytest.mark.timeout(300)
def test_folds_are_trained_once_in_a_folder_of_their_own(finished_run: RunSpec, tmp_path: Path) -> None:
    directory = finished_run.directory
    rankings = tmp_path / "rankings.jsonl"
    lines = (directory / "data" / "rankings.jsonl").read_text().splitlines()
    rankings.write_text("\n".join(lines[:40]) + "\n")
    results = read_outcome(directory).results
    arguments = [
        rankings, "--model", directory / str(results["reward_model"].model), "--held-out-groups", "heldout",
        "--folds", tmp_path / "folds", "--folds-from", directory / str(results["sft"].model), "--fold-count", 2,
        "--set", "reward_model.held_out_fraction=0.4", "--json", "--bootstrap-samples", 100,
    ]  # fmt: skip
    with pytest.raises(DataError, match="20"):  # fewer labelers than that: it fails before it has done anything
        evaluated(*arguments, "--fold-count", 20)
    first = json.loads(evaluated(*arguments, "--out", tmp_path / "out").output.splitlines()[-1])
    assert len(first["folds"]["accuracies"]) == 2
    settings = json.loads((tmp_path / "out" / "reward-model.json").read_text())["settings"]
    assert (settings["folds_from"], settings["fold_count"]) == (str(directory / str(results["sft"].model)), 2)
    assert settings["overrides"] == ["reward_model.held_out_fraction=0.4"]
    labelers = [name for fold in first["folds"]["labelers"] for name in fold]
    assert len(set(labelers)) == len(labelers) > 2 and not any("held-out" in name for name in labelers)
    written = (tmp_path / "folds" / "events.jsonl").read_bytes()
    again = json.loads(evaluated(*arguments).output.splitlines()[-1])
    assert again["folds"] == first["folds"] and (tmp_path / "folds" / "events.jsonl").read_bytes() == written
    for other, words in (
        (("--fold-count", 3), "reward_model.folds: .* was started with another value: 2, and 3 now"),
        (("--folds-from", directory / str(results["reward_model"].model)), "model: .* started with another value"),
        (("--set", "reward_model.epochs=2"), "reward_model.epochs: .* started with another value"),
    ):
        with pytest.raises(ConfigError, match=words):
            evaluated(*arguments, *other)
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_text(rankings.read_text())
    with pytest.raises(ConfigError, match="reward_model.rankings: .* started with another value"):
        evaluated(elsewhere, *arguments[1:])


def test_what_cannot_be_is_refused_with_its_place(reward_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rankings.jsonl"
    row = {"prompt": "p", "chosen": "a dog", "rejected": "a fox", "group": "g"}
    long = {**row, "chosen": "word " * 400}
    file.write_text("".join(json.dumps(one) + "\n" for one in (row, long)))
    for arguments, kind, words in (
        (["--model", reward_folder], DataError, "rankings.jsonl:2: answers: .*longer than the model's context"),
        (["--model", reward_folder, "--held-out-groups", "h"], DataError, "no label is of group 'h'; there are g"),
        (["--model", reward_folder, "--folds-from", tmp_path], ConfigError, "--folds names the folder"),
        (["--model", reward_folder, "--folds", tmp_path], ConfigError, "no run in this folder"),
        (["--model", reward_folder, "--too-long", "leave_out", "--folds", tmp_path], ConfigError, "no run"),
    ):
        with pytest.raises(kind, match=words):
            evaluated(file, *arguments)
    done = evaluated(file, "--model", reward_folder, "--too-long", "leave_out")
    assert "1 of 2 rankings are too long for the model and left out." in done.output


def test_a_dataset_in_a_folder_is_measured_and_named_by_its_digest(reward_folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"p {number}", "chosen": "a dog", "rejected": "a fox"} for number in range(6)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    done = evaluated(tmp_path / "saved", "--model", reward_folder, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    saved = json.loads((tmp_path / "out" / "reward-model.json").read_text())
    assert saved["figures"]["rankings"] == 6
    assert saved["settings"]["files"] == {str(tmp_path / "saved"): content_digest(tmp_path / "saved")}


def test_the_model_is_named_with_its_digest(reward_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rankings.jsonl"
    file.write_text(json.dumps({"prompt": "p", "chosen": "a dog", "rejected": "a fox"}) + "\n")
    by_folder = evaluated(file, "--model", reward_folder).output
    assert str(reward_folder) in by_folder and folder_digest(reward_folder) in by_folder
    with running("reward", model_folder=reward_folder) as service:
        by_service = evaluated(file, "--target", service.target).output
        with Client(service.target, insecure=True) as client:
            (model,) = client.info().models
    assert f"{model.served.name} version 0" in by_service and model.served.weights_digest in by_service


def test_turns_for_a_model_without_a_template_are_refused_with_their_line(reward_folder: Path, tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "a dog", "rejected": "a fox"}
    turns = {**row, "prompt": None, "messages": [{"role": "user", "content": "p"}]}
    (one := tmp_path / "one.jsonl").write_text(json.dumps(row) + "\n")
    (two := tmp_path / "two.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(turns) + "\n")
    tokenizer = load_tokenizer(reward_folder)
    tokenizer.chat_template = None
    save_model(load_reward_model(reward_folder), tokenizer, plain := tmp_path / "plain")
    words = r"two.jsonl:2: messages: .* no chat template .* rows with `prompt`"
    with pytest.raises(DataError, match=words):
        evaluated(one, two, "--model", plain)
    with running("reward", model_folder=plain) as service, pytest.raises(DataError, match=words):
        evaluated(one, two, "--target", service.target)
    (tmp_path / "lengths.py").write_text(
        "def length(prompts, completions):\n    return [len(c) for c in completions]\n"
    )
    function = {"kind": "function", "function": "lengths:length", "directory": str(tmp_path)}
    with running("reward", model_folder=plain, models={"length": function}) as service:
        done = evaluated(two, "--target", service.target, "--served-model", "length", "--json")
    assert json.loads(done.output)["rankings"] == 2  # a function has no tokenizer, and reads turns


def test_a_service_says_what_is_too_long_as_a_folder_does(reward_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rankings.jsonl"
    row = {"prompt": "p", "chosen": "a dog", "rejected": "a fox"}
    file.write_text(json.dumps(row) + "\n" + json.dumps({**row, "chosen": "word " * 400}) + "\n")
    with running("reward", model_folder=reward_folder) as service:
        done = evaluated(file, "--target", service.target, "--too-long", "leave_out")
        assert "1 of 2 rankings are too long for the model and left out." in done.output
        with pytest.raises(DataError, match=r"rankings.jsonl:2: answers"):
            evaluated(file, "--target", service.target)


@pytest.mark.timeout(300)
def test_llmbar_by_subset(reward_folder: Path) -> None:
    done = evaluated(
        real("eval/llmbar.jsonl"), "--format", "llmbar", "--model", reward_folder, "--too-long", "leave_out", "--json"
    )
    found = json.loads(done.output)
    rows = [json.loads(line) for line in real("eval/llmbar.jsonl").read_text().splitlines()]
    subsets = {f"princeton-nlp/LLMBar/{row['subset']}" for row in rows}
    assert found["accuracy_by_source"][MODEL].keys() <= subsets and len(found["accuracy_by_source"][MODEL]) > 2
    assert found["accuracy"][MODEL][ALL]["pairs"] == found["rankings"] > 50
    assert found["labeler_agreement"] == []


@pytest.mark.timeout(300)
def test_a_reward_model_of_real_rankings(llama_folder: Path, go: Callable[..., RunOutcome], tmp_path: Path) -> None:
    """Trained in seconds on people's rankings of short texts; comparisons are read as well."""
    rankings = tmp_path / "rankings.jsonl"
    with gzip.open(real("rankings.jsonl.gz"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    short = [row for row in rows if row["source"] == "google/wmt-mqm-human-evaluation"]
    short = [row for row in short if len(row["prompt"]) + max(map(len, row["answers"])) < 400][:120]
    rankings.write_text("".join(json.dumps(row) + "\n" for row in short))
    spec = RunSpec.model_validate(
        {
            "name": "real",
            "directory": tmp_path / "run",
            "model": str(llama_folder),
            "stages": ["reward_model"],
            "reward_model": {
                "initial_model": "base",
                "rankings": str(rankings),
                "demonstrations": None,
                "held_out_fraction": 0.4,
                "batch_size": 16,
                "too_long": "leave_out",
                "bootstrap_samples": 100,
            },
        }
    )
    stage = go(spec).results["reward_model"]
    model = spec.directory / str(stage.model)
    done = evaluated(rankings, "--model", model, "--held-out-fraction", 0.4, "--too-long", "leave_out", "--json")
    found = json.loads(done.output)
    assert found["accuracy"][MODEL][ALL]["value"] == pytest.approx(stage.metrics["accuracy"])
    assert found["accuracy"][MODEL][ALL]["pairs"] == stage.metrics["accuracy_pairs"] > 50

    pairs = tmp_path / "pairs.jsonl"
    with gzip.open(real("comparisons.jsonl.gz"), "rt", encoding="utf-8") as file:
        some = [line for _, line in zip(range(150), file, strict=False)]
    pairs.write_text("".join(some))
    of_pairs = json.loads(evaluated(pairs, "--model", model, "--too-long", "leave_out", "--json").output)
    assert any(source.startswith("anthropics/hh-rlhf/") for source in of_pairs["accuracy_by_source"][MODEL])
