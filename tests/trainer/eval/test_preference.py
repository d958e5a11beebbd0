"""Win rates, strengths and their intervals against independent implementations; what they say where little is known."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from real_data import real
from trimtab.errors import ConfigError, DataError
from trimtab_trainer.eval.preference.answers import flag_rates, mean_ratings
from trimtab_trainer.eval.preference.bootstrap import interval_of
from trimtab_trainer.eval.preference.labels import Label, contestants_of, read_labels
from trimtab_trainer.eval.preference.win_rates import Comparisons, first_shown, strengths

from .labels import crowd, label


def compared(labels: list[Label], samples: int = 2000, seed: int = 1) -> Comparisons:
    return Comparisons(labels, samples=samples, seed=seed)


def test_ties_are_half_a_win_and_rankings_are_all_their_pairs() -> None:
    labels = [label(0, "ann", "abc", (0, 1, 1)), label(0, "bob", "abc", (1, 0, 2)), label(1, "ann", "aba", (0, 0, 1))]
    found = compared(labels)
    assert found.pairs == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found.same == 1  # the two answers of a
    ab = found.between("a", "b")
    assert (ab.win_rate.value, ab.win_rate.count) == (pytest.approx((1 + 0 + 0.5 + 0) / 4), 4)
    assert (ab.ties.value, ab.win_rate.prompts, ab.win_rate.labelers) == (0.25, 2, 2)
    assert found.between("b", "a").win_rate.value == pytest.approx(1 - ab.win_rate.value)
    assert found.between("b", "c").win_rate.value == pytest.approx(0.75)
    assert found.wins() == pytest.approx(np.array([[0, 1.5, 2], [2.5, 0, 1.5], [0, 0.5, 0]]))


def test_the_interval_over_prompts_is_that_of_scipy() -> None:
    generator = np.random.default_rng(5)
    labels = crowd(generator, prompts=60, labelers=3, prompt_spread=2)
    by_prompt = defaultdict(list)
    for one in labels:
        by_prompt[one.prompt].append(one.ranks[0] == 0)
    means = np.array([np.mean(values) for values in by_prompt.values()])
    expected = scipy_bootstrap((means,), np.mean, n_resamples=20000, method="percentile", rng=generator)
    found = compared(labels, samples=20000).between("a", "b").win_rate
    assert found.value == pytest.approx(means.mean())
    assert found.over_prompts == pytest.approx(tuple(expected.confidence_interval), abs=0.008)
    assert found.over_both is None  # three labelers


def test_the_interval_over_both_is_that_of_drawn_rows() -> None:
    """Prompts and labelers are drawn by name, and the labels of each drawn pair are looked up."""
    labels = crowd(np.random.default_rng(6), prompts=25, labelers=7, prompt_spread=1, labeler_spread=1)
    labels = [one for number, one in enumerate(labels) if number % 3]  # not everybody labels everything
    wins = {(one.prompt, one.labeler): one.ranks[0] == 0 for one in labels}
    prompts, labelers = sorted({p for p, _ in wins}), sorted({who for _, who in wins})
    drawing = random.Random(7)
    means = []
    for _ in range(4000):
        drawn = drawing.choices(labelers, k=len(labelers))
        some = [wins[p, who] for p in drawing.choices(prompts, k=len(prompts)) for who in drawn if (p, who) in wins]
        means.append(np.mean(some))
    found = compared(labels, samples=4000).between("a", "b").win_rate
    assert found.over_both == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.015)


def test_only_the_interval_over_both_covers_what_other_labelers_say() -> None:
    """Labelers who lean strongly: the truth is one half, and 95 % intervals should hold it about as often."""
    generator = np.random.default_rng(8)
    holds = np.zeros(2)
    repeats = 150
    for repeat in range(repeats):
        labels = crowd(generator, prompts=40, labelers=12, prompt_spread=0.7, labeler_spread=1.5)
        found = compared(labels, samples=300, seed=repeat).between("a", "b").win_rate
        assert found.over_prompts and found.over_both
        holds += [low <= 0.5 <= high for low, high in (found.over_prompts, found.over_both)]
    over_prompts, over_both = holds / repeats
    assert over_prompts < 0.7 and 0.88 <= over_both, (over_prompts, over_both)


def test_below_five_prompts_there_is_no_interval() -> None:
    labels = [label(n, f"labeler-{who}", "ab", (n % 2, who % 2)) for n in range(4) for who in range(6)]
    found = compared(labels).between("a", "b").win_rate
    assert (found.over_prompts, found.over_both, found.prompts, found.labelers) == (None, None, 4, 6)


def test_an_interval_needs_nearly_all_resamples() -> None:
    known = np.linspace(0, 1, 1000)
    few, many = known.copy(), known.copy()
    few[:20], many[:40] = np.nan, np.nan
    assert interval_of(few) == pytest.approx((0.0448, 0.9757), abs=1e-3)
    assert interval_of(many) is None


def test_strengths_of_people_who_are_bradley_terry_are_found() -> None:
    generator = np.random.default_rng(9)
    truth = {"a": 0.0, "b": 0.8, "c": -0.7, "d": 1.5}
    labels = []
    for prompt in range(300):
        for who in range(6):
            scores = {name: value + generator.gumbel() for name, value in truth.items()}  # Luce's choice
            places = sorted(truth, key=lambda name: -scores[name])
            labels.append(label(prompt, f"labeler-{who}", "abcd", [places.index(name) for name in "abcd"]))
    found = strengths(compared(labels, samples=200), "a")
    assert list(found) == ["d", "b", "a", "c"]
    assert (found["a"].value, found["a"].over_prompts) == (0.0, (0.0, 0.0))
    for name, value in truth.items():
        assert found[name].value == pytest.approx(value, abs=0.12)
        low, high = found[name].over_prompts or (math.nan, math.nan)
        assert low - 0.05 <= value <= high + 0.05
    centred = strengths(compared(labels, samples=100), None)
    assert sum(one.value for one in centred.values()) == pytest.approx(0, abs=1e-9)
    assert centred["d"].value - centred["c"].value == pytest.approx(found["d"].value - found["c"].value)
    assert found["b"].count == 300 * 6 * 3


def test_strengths_without_a_finite_estimate_are_refused() -> None:
    always = [label(n, "ann", "abc", (0, 1, 2)) for n in range(9)]
    with pytest.raises(DataError, match="c never won or tied against a, b"):
        strengths(compared(always, samples=100), None)
    once = [*always, label(9, "ann", "abc", (2, 1, 0))]  # c wins once: a third of the resamples lack it
    found = strengths(compared(once, samples=400), None)
    assert all(one.over_prompts is None for one in found.values())


def test_the_answer_shown_first_wins_more_often_where_people_are_lazy() -> None:
    generator = np.random.default_rng(10)
    labels = []
    for prompt in range(200):
        order = tuple(generator.permutation(2).tolist())
        winner = order[0] if generator.random() < 0.7 else order[1]
        labels.append(label(prompt, "ann", "ab", (0, 1) if winner == 0 else (1, 0), order=order))
    found = first_shown(labels, samples=500, seed=0)
    assert found is not None and found.over_prompts is not None
    assert found.value == pytest.approx(0.7, abs=0.08) and found.over_prompts[0] > 0.5
    of_three = first_shown([label(0, "ann", "abc", (2, 0, 0), order=(1, 2, 0))], samples=100, seed=0)
    assert of_three is not None and (of_three.value, of_three.count) == (pytest.approx(2.5 / 3), 3)
    assert first_shown([label(0, "ann", "ab", (0, 1))], samples=100, seed=0) is None


def test_ratings_and_flags_are_means_over_what_was_answered() -> None:
    yes, no = {"hallucination": True}, {"hallucination": False}
    labels = [
        label(0, "ann", "ab", (0, 1), ratings=(7, 2), flags=(no, yes)),
        label(0, "bob", "ab", (0, 1), ratings=(6, 2), flags=(no, {})),
        label(1, "ann", "aa", (0, 1), ratings=(5, 1)),
    ]
    ratings = mean_ratings(labels, samples=100, seed=0)
    assert ratings is not None
    assert {name: (ratings.mean(name).value, ratings.mean(name).count) for name in ratings.names} == {
        "a": (pytest.approx(19 / 4), 4),
        "b": (2.0, 2),
    }
    rates = flag_rates(labels, "hallucination", samples=100, seed=0)
    assert rates is not None
    assert [(rates.mean(name).value, rates.mean(name).count) for name in "ab"] == [(0.0, 2), (1.0, 1)]
    assert rates.difference("a", "b").value == -1.0
    assert flag_rates(labels, "violent_content", samples=100, seed=0) is None
    assert mean_ratings([label(0, "ann", "ab", (0, 1))], samples=100, seed=0) is None


def test_a_difference_is_taken_draw_by_draw() -> None:
    """Two models that share the prompts' difficulty: the difference is far surer than either rate."""
    generator = np.random.default_rng(11)
    labels = []
    for prompt in range(100):
        hard = generator.random() < 0.5
        flags = tuple({"hallucination": bool(hard)} for _ in range(2))
        labels.append(label(prompt, "ann", "ab", (0, 1), flags=flags))
    rates = flag_rates(labels, "hallucination", samples=500, seed=0)
    assert rates is not None
    low, high = rates.mean("a").over_prompts or (0.0, 0.0)
    assert high - low > 0.1
    assert rates.difference("a", "b").over_prompts == (0.0, 0.0)


def test_one_contestant_alone_is_refused_and_a_baseline_must_be_there() -> None:
    with pytest.raises(DataError, match="all answers are of a;"):
        compared([label(0, "ann", "aa", (0, 1))])
    with pytest.raises(ConfigError, match="baseline: c; the contestants are a, b"):
        contestants_of([label(0, "ann", "ab", (0, 1))], "c")


def test_real_rankings_are_counted_as_by_hand(tmp_path: Path) -> None:
    """Experts on summaries of 12 systems, counted from the raw rows."""
    with gzip.open(real("rankings.jsonl.gz"), "rt") as opened:
        rows = [row for line in opened if (row := json.loads(line))["source"] == "Yale-LILY/SummEval"]
    file = tmp_path / "rankings.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        for said in row["labels"]:
            if said["group"] != "expert":
                continue
            place = {index: rank for rank, tied in enumerate(said["ranking"]) for index in tied}
            for one, other in combinations(range(len(row["answers"])), 2):
                difference = place[other] - place[one]
                won = 0.5 if difference == 0 else float(difference > 0)
                counts[row["systems"][one], row["systems"][other]].append(won)
                counts[row["systems"][other], row["systems"][one]].append(1 - won)
    labels = read_labels([file], ["system"], groups=["expert"], skip_bad_rows=0, warn=pytest.fail)
    found = compared(labels, samples=100)
    assert len(found.names) >= 12 and len(found.pairs) * 2 == len(counts)
    for (model, other), values in counts.items():
        rate = found.between(model, other).win_rate
        assert (rate.value, rate.count) == (pytest.approx(np.mean(values)), len(values))
    ranked = strengths(found, None)
    mean_rates = {name: np.mean([np.mean(v) for (one, _), v in counts.items() if one == name]) for name in ranked}
    assert np.corrcoef([one.value for one in ranked.values()], list(mean_rates.values()))[0, 1] > 0.97
