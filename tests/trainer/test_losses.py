"""Losses against slow independent forms, their gradients, and that micro-batches add up."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab_trainer.losses import importance_weights, policy_loss, ranking_loss, token_mean, value_loss

few = settings(max_examples=30, deadline=None)
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**31))


def batch(rows: int, columns: int, seed: int, count: int = 4) -> tuple[list[Tensor], Tensor]:
    """Float64 tensors of one shape, and a right-padded mask with at least one real token a row."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(rows, columns, generator=generator, dtype=torch.float64) for _ in range(count)]
    lengths = torch.randint(1, columns + 1, (rows,), generator=generator)
    return tensors, torch.arange(columns) < lengths[:, None]


def slow_policy(logprobs, old, advantages, mask, count, clip, clamp, weights=None):
    loss, clipped, clamped, kl = 0.0, 0, 0, 0.0
    for i in range(mask.shape[0]):
        for t in range(mask.shape[1]):
            if not mask[i, t]:
                continue
            difference = float(logprobs[i, t] - old[i, t])
            clamped += abs(difference) > clamp
            difference = min(max(difference, -clamp), clamp)
            ratio = math.exp(difference)
            clipped += abs(ratio - 1) > clip
            kl += ratio - 1 - difference
            a = float(advantages[i, t])
            gain = min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a)
            loss -= gain * (1.0 if weights is None else float(weights[i, t]))
    return loss / count, clipped, clamped, kl


@few
@given(SHAPES, st.booleans())
def test_policy_loss_is_the_slow_form(shape, weighted: bool) -> None:
    (logprobs, old, advantages, weights), mask = batch(*shape)
    weights = weights.abs() if weighted else None
    count = int(mask.sum())
    options = {"token_count": count, "clip_range": 0.2, "log_ratio_clamp": 1.5}
    found = policy_loss(logprobs, old, advantages, mask, weights=weights, **options)
    loss, clipped, clamped, kl = slow_policy(logprobs, old, advantages, mask, count, 0.2, 1.5, weights)
    assert float(found.loss) == pytest.approx(loss)
    assert (found.clipped_tokens, found.clamped_tokens) == (clipped, clamped)
    assert found.kl_sum == pytest.approx(kl)
    assert found.kl_sum >= 0


def test_policy_loss_gradient() -> None:
    (logprobs, old, advantages, weights), mask = batch(3, 5, 0)
    logprobs.requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return policy_loss(
            x, old, advantages, mask, token_count=7, clip_range=0.2, log_ratio_clamp=20.0, weights=weights.abs()
        ).loss

    assert torch.autograd.gradcheck(loss, (logprobs,))


def test_first_minibatch_has_ratio_one() -> None:
    (logprobs, _, advantages, _), mask = batch(3, 5, 1)
    logprobs.requires_grad_()
    count = int(mask.sum())
    options = {"token_count": count, "clip_range": 0.2, "log_ratio_clamp": 20.0}
    found = policy_loss(logprobs, logprobs.detach(), advantages, mask, **options)
    assert (found.clipped_tokens, found.clamped_tokens, found.kl_sum) == (0, 0, 0.0)
    found.loss.backward()
    assert torch.allclose(logprobs.grad, torch.where(mask, -advantages, 0.0) / count)  # plain policy gradient


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "flows"),
    [(0.5, 1.0, False), (0.5, -1.0, True), (-0.5, 1.0, True), (-0.5, -1.0, False), (0.1, 1.0, True), (0.1, -1.0, True)],
)
def test_clip_stops_the_gradient_where_the_ratio_has_gone_far_enough(log_ratio, advantage, flows: bool) -> None:
    logprobs = torch.tensor([[log_ratio]], requires_grad=True)
    options = {"token_count": 1, "clip_range": 0.2, "log_ratio_clamp": 20.0}
    found = policy_loss(
        logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), torch.ones(1, 1, dtype=torch.bool), **options
    )
    found.loss.backward()
    assert (float(logprobs.grad) != 0) is flows
    assert found.clipped_tokens == int(abs(math.exp(log_ratio) - 1) > 0.2)


def test_clamp_keeps_the_loss_finite_and_is_counted() -> None:
    logprobs = torch.tensor([[500.0, -500.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    found = policy_loss(
        logprobs,
        torch.zeros(1, 3),
        torch.tensor([[-1.0, 1.0, 1.0]]),
        mask,
        token_count=2,
        clip_range=0.2,
        log_ratio_clamp=20.0,
    )
    found.loss.backward()
    assert found.clamped_tokens == 2 and torch.isfinite(found.loss) and torch.isfinite(logprobs.grad).all()


def slow_value(values, old, returns, mask, count, clip):
    loss = 0.0
    for i in range(mask.shape[0]):
        for t in range(mask.shape[1]):
            if mask[i, t]:
                v, o, r = float(values[i, t]), float(old[i, t]), float(returns[i, t])
                error = (v - r) ** 2
                if clip is not None:
                    error = max(error, (min(max(v, o - clip), o + clip) - r) ** 2)
                loss += 0.5 * error
    return loss / count


@few
@given(SHAPES, st.sampled_from([None, 0.0, 0.2, 5.0]))
def test_value_loss_is_the_slow_form(shape, clip) -> None:
    (values, old, returns, _), mask = batch(*shape)
    found = value_loss(values, old, returns, mask, token_count=11, clip_range=clip)
    assert float(found) == pytest.approx(slow_value(values, old, returns, mask, 11, clip))
    assert float(found) >= float(value_loss(values, old, returns, mask, token_count=11, clip_range=None)) - 1e-12


@pytest.mark.parametrize("clip", [None, 0.2])
def test_value_loss_gradient(clip) -> None:
    (values, old, returns, _), mask = batch(3, 5, 3)
    values.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: value_loss(x, old, returns, mask, token_count=7, clip_range=clip), (values,)
    )


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_padding_leaks_into_no_value_and_no_gradient(poison: float) -> None:
    def losses(fill: float) -> list[Tensor]:
        (a, b, c, d), mask = batch(3, 5, 4)
        mask[:, -1] = False
        tensors = [torch.where(mask, x, fill) for x in (a, b, c, d.abs())]
        for moving, others in ((tensors[0], tensors[1:]),):
            moving.requires_grad_()
            options = {"token_count": int(mask.sum()), "clip_range": 0.2}
            found = policy_loss(moving, others[0], others[1], mask, weights=others[2], log_ratio_clamp=20.0, **options)
            total = found.loss + value_loss(moving, others[0], others[1], mask, **options)
            total.backward()
        weights = importance_weights(tensors[1], tensors[2], mask, cap=2.0)
        return [total.detach(), moving.grad, weights, torch.tensor(found.kl_sum)]

    for clean, poisoned in zip(losses(0.0), losses(poison), strict=True):
        assert torch.equal(clean, poisoned)


@few
@given(SHAPES, st.integers(0, 2**31))
def test_micro_batches_add_up(shape, cut_seed: int) -> None:
    (logprobs, old, advantages, _), mask = batch(*shape)
    count, rows = int(mask.sum()), shape[0]
    cut = cut_seed % (rows + 1)
    options = {"token_count": count, "clip_range": 0.2}

    def total(slices: list[slice]) -> tuple[float, Tensor]:
        x = logprobs.clone().requires_grad_()
        loss = 0.0
        for s in slices:
            if s.start == s.stop:
                continue
            found = policy_loss(x[s], old[s], advantages[s], mask[s], log_ratio_clamp=20.0, **options).loss
            found = found + value_loss(x[s], old[s], advantages[s], mask[s], **options)
            found = found + token_mean(x[s][mask[s]], token_count=count)
            found.backward()
            loss += float(found.detach())
        return loss, x.grad

    whole, parts = total([slice(0, rows)]), total([slice(0, cut), slice(cut, rows)])
    assert whole[0] == pytest.approx(parts[0])
    assert torch.allclose(whole[1], parts[1])


@few
@given(SHAPES, st.sampled_from([0.5, 1.0, 2.0]))
def test_importance_weights(shape, cap: float) -> None:
    (old, generation, _, _), mask = batch(*shape)
    found = importance_weights(old, generation, mask, cap=cap)
    for i in range(mask.shape[0]):
        for t in range(mask.shape[1]):
            if mask[i, t]:
                assert float(found[i, t]) == pytest.approx(min(cap, math.exp(old[i, t] - generation[i, t])))
            else:
                assert float(found[i, t]) == 1.0


def test_importance_weight_of_an_impossible_token_is_the_cap() -> None:
    far = importance_weights(torch.zeros(1, 1), torch.full((1, 1), -1e4), torch.ones(1, 1, dtype=torch.bool), cap=2.0)
    assert float(far) == 2.0


def test_token_mean() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -6.0], dtype=torch.float64, requires_grad=True)
    assert float(token_mean(logprobs, token_count=4).detach()) == 9 / 4
    assert torch.autograd.gradcheck(lambda x: token_mean(x, token_count=4), (logprobs,))
    assert float(token_mean(torch.zeros(0), token_count=4)) == 0


def decided_pairs(ranks: list[int]) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]


def indices(pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    table = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def slow_ranking(rewards: list[float], pairs, margin: float, smoothing: float) -> float:
    if not pairs:
        return 0.0
    total = 0.0
    for better, worse in pairs:
        p = 1 / (1 + math.exp(-(rewards[better] - rewards[worse] - margin)))
        total -= (1 - smoothing) * math.log(p) + smoothing * math.log(1 - p)
    return total / len(pairs)


@few
@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=9),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([0.0, 0.1]),
)
def test_ranking_loss_is_the_slow_form(ranks, seed: int, margin: float, smoothing: float) -> None:
    rewards = torch.randn(len(ranks), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pairs = decided_pairs(ranks)
    found = ranking_loss(rewards, *indices(pairs), margin=margin, label_smoothing=smoothing)
    assert float(found) == pytest.approx(slow_ranking(rewards.tolist(), pairs, margin, smoothing))
    shifted = ranking_loss(rewards + 7.0, *indices(pairs), margin=margin, label_smoothing=smoothing)
    assert float(shifted) == pytest.approx(float(found))  # only differences count


@pytest.mark.parametrize("k", range(2, 10))
def test_ranking_loss_of_k_answers(k: int) -> None:
    rewards = torch.linspace(1.0, -1.0, k, dtype=torch.float64, requires_grad=True)
    pairs = decided_pairs(list(range(k)))
    assert len(pairs) == math.comb(k, 2)
    assert torch.autograd.gradcheck(lambda x: ranking_loss(x, *indices(pairs), label_smoothing=0.1), (rewards,))
    equal = ranking_loss(torch.zeros(k), *indices(pairs))
    assert float(equal) == pytest.approx(math.log(2))


@pytest.mark.parametrize("k", range(2, 10))
def test_fully_tied_prompt_has_loss_and_gradient_zero(k: int) -> None:
    rewards = torch.randn(k, requires_grad=True)
    loss = ranking_loss(rewards, *indices(decided_pairs([1] * k)))
    loss.backward()
    assert float(loss.detach()) == 0.0 and torch.equal(rewards.grad, torch.zeros(k))


def test_ranking_loss_far_apart_stays_finite() -> None:
    rewards = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = ranking_loss(rewards, torch.tensor([0]), torch.tensor([1]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2e4) and torch.equal(rewards.grad, torch.tensor([-1.0, 1.0]))
