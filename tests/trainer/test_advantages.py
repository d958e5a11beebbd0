"""From scores to advantages, against slow independent forms; what lies on padding never matters."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab_trainer.advantages import (
    explained_variance,
    generalized_advantages,
    kl_k3,
    kl_penalties,
    replace_missing_eos,
    shaped_rewards,
    whiten,
)

few = settings(max_examples=40, deadline=None)
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 8), st.integers(0, 2**31))
POISON = [math.nan, math.inf, -math.inf, 1e30]


def batch(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two float64 tensors and a right-padded mask, at least one real token a row."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(rows, columns, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = torch.randint(1, columns + 1, (rows,), generator=generator)
    return a, b, torch.arange(columns) < lengths[:, None]


def cells(mask: Tensor):
    return [(i, t, bool(mask[i, t])) for i in range(mask.shape[0]) for t in range(mask.shape[1])]


@few
@given(SHAPES)
def test_kl_estimates(shape) -> None:
    logprobs, ref, mask = batch(*shape)
    k1, k3 = kl_penalties(logprobs, ref, mask), kl_k3(logprobs, ref, mask)
    for i, t, real in cells(mask):
        d = float(logprobs[i, t] - ref[i, t])
        assert float(k1[i, t]) == (d if real else 0.0)
        assert float(k3[i, t]) == pytest.approx(math.exp(-d) - 1 + d if real else 0.0, abs=1e-12)
    assert (k3 >= 0).all()


def test_both_estimates_are_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.3, 0.3, 0.4])
    kl = float((p * (p / q).log()).sum())
    draws = torch.multinomial(p, 200_000, replacement=True, generator=generator)[None]
    mask = torch.ones_like(draws, dtype=torch.bool)
    for estimate in (kl_penalties, kl_k3):
        found = estimate(p.log()[draws], q.log()[draws], mask)
        assert float(found.mean()) == pytest.approx(kl, abs=4 * float(found.std()) / 200_000**0.5)


def test_k3_of_a_tiny_difference_is_not_lost_in_rounding() -> None:
    d = torch.tensor([[1e-3]], dtype=torch.float32)
    found = kl_k3(d, torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert float(found) == pytest.approx(5e-7, rel=0.2)


def test_missing_eos_replaces_the_score() -> None:
    scores, ended = torch.tensor([2.0, -3.0, 0.5]), torch.tensor([True, False, False])
    assert replace_missing_eos(scores, ended, -1.0).tolist() == [2.0, -1.0, -1.0]
    assert replace_missing_eos(scores, ended, None).tolist() == scores.tolist()
    assert replace_missing_eos(torch.tensor([math.nan]), torch.tensor([False]), -1.0).tolist() == [-1.0]


@few
@given(SHAPES, st.floats(0, 2))
def test_shaped_rewards(shape, coef: float) -> None:
    penalties, other, mask = batch(*shape)
    scores = other[:, 0]
    found = shaped_rewards(scores, penalties, mask, kl_coef=coef)
    for i, t, real in cells(mask):
        last = int(mask[i].sum()) - 1
        expected = (-coef * float(penalties[i, t]) if real else 0.0) + (float(scores[i]) if t == last else 0.0)
        assert float(found[i, t]) == pytest.approx(expected)


def slow_advantages(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The sum of the definition, not the recursion."""
    n = len(rewards)
    ahead = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * ahead[t] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]


@few
@given(SHAPES, st.floats(0, 1), st.floats(0, 1))
def test_generalized_advantages(shape, gamma: float, lam: float) -> None:
    rewards, values, mask = batch(*shape)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=gamma, lam=lam)
    for i in range(shape[0]):
        n = int(mask[i].sum())
        slow = slow_advantages(rewards[i, :n].tolist(), values[i, :n].tolist(), gamma, lam)
        assert advantages[i, :n].tolist() == pytest.approx(slow)
        assert returns[i, :n].tolist() == pytest.approx([a + v for a, v in zip(slow, values[i].tolist(), strict=False)])
    assert not advantages[~mask].any() and not returns[~mask].any()


@few
@given(SHAPES)
def test_lambda_one_is_reward_to_go(shape) -> None:
    rewards, values, mask = batch(*shape)
    _, returns = generalized_advantages(rewards, values, mask, gamma=1.0, lam=1.0)
    masked = torch.where(mask, rewards, 0.0)
    to_go = masked.flip(-1).cumsum(-1).flip(-1)
    assert torch.allclose(returns, torch.where(mask, to_go, 0.0))


def test_a_completion_of_one_token() -> None:
    advantages, returns = generalized_advantages(
        torch.tensor([[3.0]]), torch.tensor([[1.0]]), torch.ones(1, 1, dtype=torch.bool), gamma=1.0, lam=0.95
    )
    assert advantages.tolist() == [[2.0]] and returns.tolist() == [[3.0]]


@few
@given(SHAPES, st.booleans())
def test_whiten(shape, shift: bool) -> None:
    values, _, mask = batch(*shape)
    found = whiten(values, mask, shift_mean=shift)
    chosen = values[mask].numpy()
    expected = (chosen - chosen.mean()) / np.sqrt(chosen.var() + 1e-8) + (0.0 if shift else chosen.mean())
    np.testing.assert_allclose(found[mask].numpy(), expected)
    assert not found[~mask].any()


def test_whitening_equal_or_single_entries_stays_finite() -> None:
    one = torch.tensor([[4.0]]), torch.ones(1, 1, dtype=torch.bool)
    assert whiten(*one).tolist() == [[0.0]]
    assert whiten(torch.full((2, 3), 5.0), torch.ones(2, 3, dtype=torch.bool)).abs().max() == 0


@few
@given(SHAPES)
def test_explained_variance(shape) -> None:
    values, returns, mask = batch(*shape)
    found = explained_variance(values, returns, mask)
    v, r = values[mask].numpy(), returns[mask].numpy()
    assert found == pytest.approx(1 - np.var(r - v) / np.var(r) if np.var(r) > 0 else 0.0)
    assert explained_variance(returns, returns, mask) == (1.0 if len(r) > 1 else 0.0)


def test_explained_variance_anchors() -> None:
    returns, mask = torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3, dtype=torch.bool)
    assert explained_variance(torch.zeros(1, 3), returns, mask) == pytest.approx(0.0)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)
    assert explained_variance(returns, torch.full((1, 3), 0.1), mask) == 0.0  # returns that do not vary


@pytest.mark.parametrize("poison", POISON)
def test_padding_never_matters(poison: float) -> None:
    a, b, mask = batch(4, 6, 3)
    mask[:, -1] = False
    scores = a[:, 0]

    def everything(fill: float) -> list[Tensor]:
        x, y = torch.where(mask, a, fill), torch.where(mask, b, fill)
        k1 = kl_penalties(x, y, mask)
        return [
            k1,
            kl_k3(x, y, mask),
            shaped_rewards(scores, x, mask, kl_coef=0.1),
            *generalized_advantages(x, y, mask, gamma=0.9, lam=0.95),
            whiten(x, mask),
            whiten(x, mask, shift_mean=False),
            torch.tensor(explained_variance(x, y, mask)),
        ]

    for clean, poisoned in zip(everything(0.0), everything(poison), strict=True):
        assert torch.equal(clean, poisoned)
