"""Bradley-Terry against logistic regression by scipy, closed forms, and comparisons without a finite estimate."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from trimtab.errors import DataError
from trimtab_trainer.eval.preference.bradley_terry import check_estimable, fit, is_estimable


def by_logistic_regression(wins: np.ndarray) -> np.ndarray:
    """A row for each pair, +1 for one model and -1 for the other, weighted; the last model is the reference."""
    models = len(wins)
    pairs = list(combinations(range(models), 2))
    design = np.zeros((len(pairs), models))
    for row, (one, other) in enumerate(pairs):
        design[row, one], design[row, other] = 1, -1
    won = np.array([wins[pair] for pair in pairs])
    lost = np.array([wins[pair[::-1]] for pair in pairs])

    def loss(free: np.ndarray) -> float:
        odds = design[:, :-1] @ free
        return -float(won @ log_expit(odds) + lost @ log_expit(-odds))

    found = minimize(loss, np.zeros(models - 1), method="BFGS", options={"gtol": 1e-9})
    strengths = np.append(found.x, 0)
    return strengths - strengths.mean()


@given(models=st.integers(2, 7), seed=st.integers(0, 2**32 - 1), few=st.booleans())
@settings(max_examples=60, deadline=None)
def test_fit_is_the_maximum_that_logistic_regression_finds(models: int, seed: int, few: bool) -> None:
    generator = np.random.default_rng(seed)
    wins = generator.integers(0, 3 if few else 60, (models, models)) + generator.choice([0.0, 0.5], (models, models))
    np.fill_diagonal(wins, 0)
    if not is_estimable(wins):
        return
    found = fit(wins)
    assert found.mean() == pytest.approx(0, abs=1e-12)
    assert found == pytest.approx(by_logistic_regression(wins), abs=2e-3)
    expected = (wins + wins.T) * expit(np.subtract.outer(found, found))  # the score equations
    assert expected.sum(axis=1) == pytest.approx(wins.sum(axis=1), abs=1e-5)


def test_two_models_have_the_odds_of_their_wins() -> None:
    found = fit(np.array([[0, 30.5], [9.5, 0]]))
    assert found[0] - found[1] == pytest.approx(np.log(30.5 / 9.5))


def test_one_sided_comparisons_are_fitted_too() -> None:
    wins = np.array([[0, 1e6, 0], [1, 0, 1e6], [0, 1, 0]])
    assert fit(wins) == pytest.approx(np.log(1e6) * np.array([1, 0, -1]), abs=1e-4)


def test_models_that_no_comparison_links_are_named() -> None:
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[1, 0] = wins[2, 3] = wins[3, 2] = 1
    assert not is_estimable(wins)
    with pytest.raises(DataError, match="no comparison links a, b with c, d") as caught:
        check_estimable(wins, "abcd")
    assert caught.value.field == "sources"


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        (["ab", "ba", "ac", "bc"], "c never won or tied against a, b"),
        (["ab", "ac", "bc", "cb"], "b, c never won or tied against a"),
        (["ab"], "b never won or tied against a"),
    ],
)
def test_models_that_never_win_are_named(edges: list[str], words: str) -> None:
    names = sorted(set("".join(edges)))
    wins = np.zeros((len(names), len(names)))
    for winner, loser in edges:
        wins[names.index(winner), names.index(loser)] = 5
    assert not is_estimable(wins)
    with pytest.raises(DataError, match=words):
        check_estimable(wins, names)


def test_a_cycle_and_a_tie_are_enough() -> None:
    cycle = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0.0]])
    check_estimable(cycle, "abc")
    assert fit(cycle) == pytest.approx(np.zeros(3))
    check_estimable(np.array([[0, 5.5], [0.5, 0]]), "ab")
