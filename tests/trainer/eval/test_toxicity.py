"""Toxicity: rankings for a classifier, what it is worth, and completions that are kept nowhere unasked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from scipy.stats import mannwhitneyu

from real_data import real
from running import running
from trimtab.errors import ConfigError, DataError, Unavailable
from trimtab.types import SamplingParams, ScoreItem, ScoreRequest
from trimtab_models.loading import reward_model_from_policy, save_model
from trimtab_models.tokenizer import load_tokenizer
from trimtab_trainer.claims import win_rate
from trimtab_trainer.config import RunSpec
from trimtab_trainer.data.records import Ranking
from trimtab_trainer.eval.contestants import Connection, Contestant, served
from trimtab_trainer.eval.safety.toxicity import (
    SCORED_PROMPT,
    TOXIC,
    ToxicityPrompt,
    known_toxicity,
    read_toxicity_prompts,
    scorer_accuracy,
    scorer_auc,
    toxicity_figures,
    toxicity_rankings,
)
from trimtab_trainer.eval.safety.toxicity_classifier_command import command as classifier_command
from trimtab_trainer.eval.safety.toxicity_command import command
from trimtab_trainer.eval.safety.toxicity_services import complete, parse_scorer, scores_of

from .contestant_models import found_by, model_folder, unloadable_folder, write_rows


def prompts(count: int) -> list[ToxicityPrompt]:
    rng = np.random.default_rng(0)
    return [ToxicityPrompt(f"p{n}", f"h{n}", float(rng.random()), "ab"[n % 2], n + 1) for n in range(count)]


def area(toxic: np.ndarray, scores: np.ndarray) -> float:
    """Under the ROC curve, by the rank test."""
    return float(mannwhitneyu(scores[toxic], scores[~toxic]).statistic / (toxic.sum() * (~toxic).sum()))


class TestRankings:
    def test_every_text_once_a_round_the_most_toxic_first(self) -> None:
        rows = prompts(40)
        toxicity = {row.human: row.toxicity or 0.0 for row in rows}
        made = toxicity_rankings(rows, rounds=3, seed=0)
        answers = [answer for ranking in made for answer in ranking["answers"]]
        assert sorted(answers) == sorted([row.human for row in rows] * 3)
        for ranking in map(Ranking.from_row, made):  # the trainer reads it
            assert len(ranking.answers) == 8 and ranking.prompt == SCORED_PROMPT
            for one, other in combinations(range(8), 2):
                ranks = [ranking.labelings[0].ranks[place] for place in (one, other)]
                tenths = [round(10 * toxicity[ranking.answers[place]]) for place in (one, other)]
                assert np.sign(ranks[0] - ranks[1]) == np.sign(tenths[1] - tenths[0])
        assert made[:5] != made[5:10] and made == toxicity_rankings(rows, rounds=3, seed=0)

    def test_a_perfect_scorer_and_a_wrong_one(self) -> None:
        rows = prompts(90)
        known = [row.toxicity or 0.0 for row in rows]
        perfect = scorer_accuracy(rows, known, samples=100, seed=0)
        wrong = scorer_accuracy(rows, [-score for score in known], samples=100, seed=0)
        blind = scorer_accuracy(rows, [1.0] * 90, samples=100, seed=0)
        assert perfect and wrong and blind and perfect.prompts == 10
        assert (perfect.value, wrong.value, blind.value) == (1.0, 0.0, 0.5)

    def test_the_area_under_the_curve_and_its_interval_are_that_of_the_rank_test(self) -> None:
        rows = prompts(90)
        known = np.array([row.toxicity for row in rows], np.float64)
        for noise in (0.0, 0.5, 100.0):
            scores = np.round(known + np.random.default_rng(1).normal(size=90) * noise, 1)  # with equal scores
            found = scorer_auc(rows, scores.tolist(), samples=200, seed=0)
            assert found and found.value == pytest.approx(area(known >= TOXIC, scores))
            assert found.low is not None and found.high is not None and found.low <= found.value <= found.high
            drawn = np.random.default_rng(2).integers(0, 90, (500, 90))
            naive = [area(known[one] >= TOXIC, scores[one]) for one in drawn]
            assert (found.low, found.high) == pytest.approx(tuple(np.quantile(naive, [0.025, 0.975])), abs=0.03)
        assert scorer_auc([row for row in rows if (row.toxicity or 0) < TOXIC], [0.0] * 90, samples=100, seed=0) is None
        few = scorer_auc(
            [row for row, at in zip(rows, known, strict=True) if at > 0.9 or at < 0.1][:3], [1, 2, 3], samples=9, seed=0
        )
        assert few is not None and few.low is None


class TestFigures:
    def test_means_and_shares(self) -> None:
        rows = prompts(4)
        scores = [[1.0, 3.0], [0.0], [], [5.0]]
        human = [2.0, 0.0, 9.0, 1.0]
        found = toxicity_figures(rows, scores, human, [[1.0], [1.0], [1.0], []], None, samples=100, seed=0)
        assert found["score"]["value"] == pytest.approx((2 + 0 + 5) / 3)
        assert found["above_human"]["value"] == pytest.approx((0.5 + 0.5 + 1) / 3)
        assert (found["prompts"], found["scored_prompts"], found["completions"]) == (4, 3, 4)
        assert found["score_delta"]["value"] == pytest.approx(((2 - 1) + (0 - 1)) / 2) and found["delta_prompts"] == 2
        assert found["by_subset"]["a"]["score"]["value"] == 2.0 and found["by_subset"]["b"]["prompts"] == 2
        for key in ("score", "above_human", "score_delta"):  # below 5 prompts there is no interval
            assert (found[key]["low"], found[key]["high"]) == (None, None)

    def test_what_an_instruction_adds_is_paired_by_prompt(self) -> None:
        """It adds about the same to every prompt: the difference is far surer than the two scores."""
        draw = np.random.default_rng(2)
        without = draw.normal(0, 5, size=40)
        added = draw.normal(1.0, 0.1, size=40)
        scores, other = ([[one] for one in values.tolist()] for values in (without + added, without))
        scores[0], other[1] = [], []
        found = toxicity_figures(prompts(40), scores, [0.0] * 40, None, other, samples=300, seed=0)
        delta = found["instruction_delta"]
        assert found["instruction_delta_prompts"] == 38 and "score_delta" not in found
        assert delta["value"] == pytest.approx(added[2:].mean()) and delta["high"] - delta["low"] < 0.1
        assert found["score"]["high"] - found["score"]["low"] > 1

    def test_above_human_is_the_win_rate_over_people(self) -> None:
        draw = np.random.default_rng(1)
        scores = [np.round(draw.normal(size=3)).tolist() for _ in range(30)]
        human = np.round(draw.normal(size=30)).tolist()
        found = toxicity_figures(prompts(30), scores, human, None, None, samples=500, seed=4)["above_human"]
        expected = win_rate(scores, [[one] for one in human], samples=500, seed=4)
        assert found == pytest.approx({"value": expected.value, "low": expected.low, "high": expected.high})

    def test_a_model_that_says_nothing(self) -> None:
        found = toxicity_figures(prompts(2), [[], []], [0.0, 0.0], [[1.0], [1.0]], None, samples=100, seed=0)
        assert "score" not in found and "score_delta" not in found and found["scored_prompts"] == 0


class TestReading:
    def test_the_real_file(self) -> None:
        rows = read_toxicity_prompts(real("eval/realtoxicityprompts.jsonl"))
        assert len(rows) == 1000 and len(known_toxicity(rows)) == 993
        assert {row.subset for row in rows} == {"toxic", "nontoxic"}

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"prompt": {"text": "a"}}, "continuation.text must be a text"),
            ({"prompt": "a", "continuation": {"text": "b"}}, "prompt.text must be a text"),
            ({"prompt": {"text": "a"}, "continuation": {"text": "b", "toxicity": 2}}, "a number of 0..1, or null"),
        ],
    )
    def test_bad_rows(self, tmp_path: Path, row: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=f"rows:1: .*{message}"):
            read_toxicity_prompts(write_rows(tmp_path / "rows", [row]))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "base", seed=0)


@pytest.fixture(scope="module")
def classifier(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("models") / "classifier", load_tokenizer(base)
    save_model(reward_model_from_policy(base, tokenizer=tokenizer, seed=3), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def services(base: Path, classifier: Path) -> Iterator[dict[str, str]]:
    with running("generation", model_folder=base) as policy, running("reward", model_folder=classifier) as reward:
        yield {"generation": policy.target, "reward": reward.target}


class TestCommand:
    def test_figures_from_real_services(self, services: dict[str, str], tmp_path: Path) -> None:
        file, texts = real("eval/realtoxicityprompts.jsonl"), tmp_path / "texts.jsonl"
        found = found_by(
            command,
            *("--model", f"base={services['generation']}", "--model", f"again={services['generation']}"),
            *("--scorer", f"grpc:{services['reward']}", "--prompts", file, "--limit", 12),
            *("--max-new-tokens", 8, "--completions", texts, "--out", tmp_path / "out"),
        )
        rows = [json.loads(line) for line in texts.read_text().splitlines()]
        for instruction in ("none", "respectful", "toxic"):
            one = found["models"]["base"][instruction]
            of_it = [row for row in rows if (row["model"], row["instruction"]) == ("base", instruction)]
            assert one["score"]["value"] == pytest.approx(np.mean([row["score"] for row in of_it]))
            assert one["prompts"] == 12 and one["scored_prompts"] == len(of_it) > 6
            again = found["models"]["again"][instruction]["score_delta"]
            assert (again["value"], again["low"], again["high"]) == (0, 0, 0)  # one model is not more toxic than itself
        assert found["scorer_accuracy"]["pairs"] > 0
        by_instruction = found["models"]["base"]
        score = {(row["instruction"], row["prompt"]): row["score"] for row in rows if row["model"] == "base"}
        toxic = [
            one - score["none", prompt]
            for (name, prompt), one in score.items()
            if name == "toxic" and ("none", prompt) in score
        ]
        assert by_instruction["toxic"]["instruction_delta"]["value"] == pytest.approx(np.mean(toxic))
        assert by_instruction["respectful"]["instruction_delta"]["low"] is not None
        assert "instruction_delta" not in by_instruction["none"]
        from trimtab import Client

        with Client(services["reward"]) as client:  # the scores are the service's own
            items = tuple(ScoreItem(prompt=SCORED_PROMPT, completion=row["completion"]) for row in rows[:3])
            told = [score.reward for score in client.score(ScoreRequest(items=items)).scores]
        assert told == pytest.approx([row["score"] for row in rows[:3]], abs=1e-5)
        written = "".join((tmp_path / "out" / f"toxicity.{kind}").read_text() for kind in ("json", "html"))
        assert not any(row["prompt"] in written for row in rows)
        assert not any(row["completion"] in written for row in rows if len(row["completion"]) > 8)
        assert {path.name for path in tmp_path.rglob("*.*")} == {"texts.jsonl", "toxicity.html", "toxicity.json"}

    def test_no_call_asks_a_service_for_more_than_it_takes(
        self, services: dict[str, str], base: Path, classifier: Path
    ) -> None:
        """A service of small limits gives what one of large limits gives, a prompt's samples over several calls."""
        texts = [f"The rudder {number}" for number in range(4)]
        sampling = SamplingParams(temperature=1.0, max_new_tokens=6)
        connection = Connection(60.0)
        with (
            running("generation", model_folder=base, max_items_per_request=3) as policy,
            running("reward", model_folder=classifier, max_items_per_request=3) as reward,
            served("generation", Contestant("small", policy.target), connection) as small,
            served("generation", Contestant("large", services["generation"]), connection) as large,
            served("reward", parse_scorer(f"grpc:{reward.target}"), connection) as small_scorer,
            served("reward", parse_scorer(f"grpc:{services['reward']}"), connection) as large_scorer,
        ):
            for samples in (1, 2, 5):
                found = [complete(one, texts, sampling=sampling, samples=samples, seed=7) for one in (small, large)]
                assert found[0] == found[1] and all(len(set(of_prompt)) > samples // 2 for of_prompt in found[0])
            assert scores_of(small_scorer, texts) == pytest.approx(scores_of(large_scorer, texts), abs=1e-5)

    def test_what_is_refused(self, services: dict[str, str], tmp_path: Path, base: Path) -> None:
        file = write_rows(tmp_path / "rows", [{"prompt": {"text": "a"}, "continuation": {"text": "b"}}] * 2)
        common = ["--model", f"base={services['generation']}", "--prompts", str(file)]
        (tmp_path / "there").touch()
        for arguments, message in (
            (["--scorer", str(base)], "allowed: folder:PATH of a model folder, or grpc:HOST:PORT"),
            (["--scorer", "folder:/no/such"], "allowed: folder:PATH"),
            (["--scorer", "grpc:x:1", "--samples", "2"], "2 at temperature 0 are all equal"),
            (["--scorer", "grpc:x:1", "--completions", str(tmp_path / "there")], "is there already"),
        ):
            with pytest.raises(ConfigError, match=message):
                CliRunner().invoke(command, [*common, *arguments], catch_exceptions=False)

    def test_what_is_wrong_is_told_before_any_model_is_loaded(
        self, services: dict[str, str], tmp_path: Path, base: Path, classifier: Path
    ) -> None:
        rows = [{"prompt": {"text": text}, "continuation": {"text": "b"}} for text in ("a", "xq " * 3000)]
        file, long = write_rows(tmp_path / "rows", rows[:1] * 2), write_rows(tmp_path / "long", rows)
        (tmp_path / "file").touch()
        first = ("--model", f"x={unloadable_folder(tmp_path / 'unloadable')}")
        scored = ("--scorer", f"folder:{classifier}")
        completions = ("--completions", tmp_path / "file" / "texts")
        for arguments, error, message in (
            ((*first, "--prompts", file, "--scorer", f"folder:{base}"), ConfigError, "which is no sequence classifier"),
            ((*first, "--prompts", file, "--scorer", f"folder:{tmp_path}"), ConfigError, "scorer: .*no config.json"),
            ((*first, "--prompts", file, "--scorer", "grpc:127.0.0.1:1"), Unavailable, "127.0.0.1:1"),
            (
                (*first, "--prompts", file, "--scorer", f"grpc:{services['generation']}"),
                ConfigError,
                "scorer: .* is trimtab.v1.GenerationService; allowed here: trimtab.v1.RewardService",
            ),
            ((*first, "--prompts", file, *scored, "--model", "y=127.0.0.1:1"), Unavailable, "127.0.0.1:1"),
            (
                (*first, "--prompts", long, *scored),
                DataError,
                r"long:2: prompt.text: \d+ tokens under instruction none and 64 new ones .*; x takes 4096",
            ),
            ((*first, "--prompts", file, *scored, *completions), ConfigError, "completions: .*file is no folder"),
        ):
            with pytest.raises(error, match=message):
                CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)


def test_a_classifier_of_our_own(base: Path, tmp_path: Path, go: Callable[..., Any]) -> None:
    """Prepared, trained by a run, started as a scorer; its accuracy is what the run told of the same held-out rows,
    however few of them are completed."""
    rows = [json.loads(line) for line in real("eval/realtoxicityprompts.jsonl").read_text().splitlines()[:300]]
    without = sum(row["continuation"]["toxicity"] is None for row in rows)
    file = write_rows(tmp_path / "rows", rows)
    done = CliRunner().invoke(
        classifier_command,
        [str(file), "--model", str(base), "--dir", str(tmp_path / "it"), "--rounds", "1"],
        catch_exceptions=False,
    )
    assert done.exit_code == 0 and f"{without} without a toxicity" in done.output
    spec = yaml.safe_load((tmp_path / "it" / "spec.yaml").read_text())
    spec["reward_model"] |= {"optimizer": {"learning_rate": 3e-3}}  # a tiny model learns fast
    told = go(RunSpec(**spec)).results["reward_model"].metrics
    held_out = {row.prompt for row in read_toxicity_prompts(tmp_path / "it" / "held_out.jsonl")}
    trained = {row.prompt for row in read_toxicity_prompts(file)} - held_out
    assert 30 < len(held_out) < 90 and len(trained) > 200
    found = found_by(
        command,
        *("--model", f"base={base}", "--scorer", f"folder:{tmp_path / 'it' / 'run' / 'models/reward_model/member-1'}"),
        *("--prompts", tmp_path / "it" / "held_out.jsonl", "--limit", 5),
        *("--instruction", "none", "--max-new-tokens", 2),
    )
    assert found["scorer_accuracy"]["value"] == pytest.approx(told["accuracy"], abs=5e-3)
    assert found["scorer_accuracy"]["pairs"] == told["accuracy_pairs"]
    with pytest.raises(ConfigError, match="is there already"):
        CliRunner().invoke(
            classifier_command, [str(file), "--model", str(base), "--dir", str(tmp_path / "it")], catch_exceptions=False
        )
    shutil.rmtree(tmp_path / "it")
