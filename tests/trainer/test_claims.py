"""Statistics of the claims table, against scipy and against counting by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from trimtab_trainer.claim_table import Evaluated, claim_table, preference
from trimtab_trainer.claims import give_back, mean_difference, sample_mean, win_rate
from trimtab_trainer.context import StageResult


def draw(seed: int, prompts: int, samples: int, shift: float = 0.0) -> list[list[float]]:
    return (np.random.default_rng(seed).normal(shift, 1, (prompts, samples)).round(1)).tolist()


def test_win_rate_counts_every_pair_of_a_prompt() -> None:
    ours, theirs = draw(0, 60, 4, 0.3), draw(1, 60, 3)
    found = win_rate(ours, theirs, samples=500, seed=0)
    rates, ties = [], []
    for left, right in zip(ours, theirs, strict=True):
        pairs = list(itertools.product(left, right))
        rates.append(sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs))
        ties.append(sum(a == b for a, b in pairs) / len(pairs))
    assert found.value == pytest.approx(np.mean(rates)) and found.ties == pytest.approx(np.mean(ties))
    assert found.low < found.value < found.high and found.prompts == 60
    mirrored = win_rate(theirs, ours, samples=500, seed=0)
    assert mirrored.value == pytest.approx(1 - found.value) and mirrored.ties == pytest.approx(found.ties)


def test_win_rate_is_mann_whitneys_u_over_its_pairs() -> None:
    ours, theirs = draw(2, 1, 30, 0.5), draw(3, 1, 25)
    u = scipy.stats.mannwhitneyu(ours[0], theirs[0]).statistic
    assert win_rate(ours * 5, theirs * 5, samples=100, seed=0).value == pytest.approx(u / (30 * 25))


def test_intervals_are_those_of_scipys_bootstrap_and_cover() -> None:
    values = draw(4, 200, 4, 0.5)
    found = sample_mean(values, samples=4000, seed=1)
    means = np.mean(values, axis=1)
    theirs = scipy.stats.bootstrap((means,), np.mean, n_resamples=4000, method="percentile", rng=2).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    covered = [
        estimate.low <= 0.5 <= estimate.high
        for seed in range(200)
        if (estimate := sample_mean(draw(100 + seed, 60, 2, 0.5), samples=300, seed=seed))
    ]
    assert 0.89 <= np.mean(covered) <= 0.99  # 0.95 expected, standard deviation 0.015


def test_a_paired_difference_is_tighter_than_an_unpaired_one() -> None:
    noise = np.random.default_rng(5).normal(0, 3, (100, 1))
    ours = (noise + np.random.default_rng(6).normal(0.5, 0.3, (100, 4))).tolist()
    theirs = (noise + np.random.default_rng(7).normal(0, 0.3, (100, 4))).tolist()
    found = mean_difference(ours, theirs, samples=1000, seed=0)
    difference = np.mean(ours, axis=1) - np.mean(theirs, axis=1)
    low, high = scipy.stats.t.interval(0.95, 99, difference.mean(), scipy.stats.sem(difference))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02) and found.low > 0.4


def test_give_back_over_tokens() -> None:
    generator = np.random.default_rng(8)
    tokens = generator.integers(5, 30, 400).astype(float)
    start = tokens * (1.0 + generator.normal(0, 0.1, 400))
    losses = {"start": start, "ppo": start + 0.10 * tokens, "ptx": start + 0.02 * tokens}
    found = give_back(losses, tokens, samples=300, seed=0)
    assert found.tax.value == pytest.approx(0.10) and found.returned.value == pytest.approx(0.8)
    assert found.returned.low == pytest.approx(0.8) == pytest.approx(found.returned.high)
    below = {**losses, "ptx": start - 0.05 * tokens}
    assert give_back(below, tokens, samples=300, seed=0).returned.value == pytest.approx(1.5)


@pytest.mark.parametrize(("reward", "gold", "holds"), [(0.3, -0.2, True), (0.3, 0.2, False), (-0.3, -0.2, False)])
def test_over_optimisation_is_reward_up_and_gold_down(reward: float, gold: float, holds: bool) -> None:
    draw = np.random.default_rng(0)

    def evaluated(reward: float, gold: float, kl: float) -> Evaluated:
        moved = draw.normal(0, 0.1, (60, 2, 2))
        return Evaluated(
            [
                [{"reward": one + reward, "gold": other + gold, "kl": kl} for one, other in prompt]
                for prompt in moved.tolist()
            ]
        )

    models = {"ppo": evaluated(0.0, 0.0, 2.0), "ppo_without_kl": evaluated(reward, gold, 6.0)}
    (claim,) = claim_table(models, {}, samples=500, seed=0)
    assert claim.holds is holds
    assert claim.measured == pytest.approx(gold, abs=0.05) and "from a KL of 2.0 to 6.0 nats" in claim.note


def test_give_back_weighs_passages_by_their_tokens() -> None:
    """Long passages are taxed more, so that a mean over passages would be another figure; its interval is scipy's."""
    generator = np.random.default_rng(9)
    tokens = generator.integers(5, 60, 300).astype(float)
    losses = {"start": tokens * 1.0, "ppo": tokens * (1 + 0.004 * tokens), "ptx": tokens * (1 + 0.001 * tokens)}
    losses["ptx"] += generator.normal(0, 0.5, 300)
    found = give_back(losses, tokens, samples=4000, seed=0)
    assert found.tax.value == pytest.approx((losses["ppo"] - losses["start"]).sum() / tokens.sum())

    def returned(start, ppo, ptx, axis):
        return (ppo - ptx).sum(axis) / (ppo - start).sum(axis)

    theirs = scipy.stats.bootstrap(
        tuple(losses.values()), returned, n_resamples=4000, method="percentile", paired=True, vectorized=True, rng=1
    ).confidence_interval
    assert found.returned.value == pytest.approx(returned(*losses.values(), axis=0))
    assert (found.returned.low, found.returned.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)
    assert found.returned.high - found.returned.low > 0.01


@pytest.mark.parametrize(
    ("low", "asset", "holds"),
    [(0.6, 0.7, True), (0.52, 0.7, False), (0.6, 0.2, False)],
    ids=["beats both rules", "within chance of the rule", "below the rule of one source"],
)
def test_a_reward_model_beats_longer_wins_on_every_source(low: float, asset: float, holds: bool) -> None:
    metrics = {"accuracy": 0.65, "accuracy_low": low, "accuracy_high": 0.7, "longer_wins": 0.53}
    agreement = {"labeler_agreement": 0.73, "labeler_agreement_pairs": 90.0}
    details = {
        "accuracy_by_source": {"hh": {"value": 0.62}, "asset": {"value": asset}},
        "longer_wins_by_source": {"hh": {"value": 0.6}, "asset": {"value": 0.21}},
    }
    result = StageResult(metrics={**metrics, **agreement}, details=details)
    (claim,) = claim_table({}, {"reward_model": result}, samples=100, seed=0)
    assert claim.holds is holds and (claim.measured, claim.low, claim.high) == (0.65, low, 0.7)
    assert "two labelers agree on 0.730 of 90 pairs" in claim.note and "on hh 0.620 beside 0.600" in claim.note


def test_the_alignment_tax_is_that_of_where_ppo_started() -> None:
    def forgetting(loss: float) -> Evaluated:
        return Evaluated([[{"reward": 0.0}]] * 5, losses=np.full(8, loss), tokens=np.ones(8))

    models = {"sft": forgetting(9.0), "rl_init": forgetting(1.0), "ppo": forgetting(2.0), "ppo_ptx": forgetting(1.25)}
    *_, tax, back = claim_table(models, {}, samples=100, seed=0, start="rl_init")
    assert (tax.measured, back.measured) == (1.0, 0.75)
    unknown = claim_table(models, {}, samples=100, seed=0, start=None)
    assert tax.claim not in [claim.claim for claim in unknown]


def test_a_preference_is_also_told_among_answers_that_ended() -> None:
    """Ours ends always and is worse where theirs ended too: what is won is the ending."""
    ours = Evaluated([[{"gold": 0.5, "ended": True}]] * 8)
    theirs = Evaluated([[{"gold": 0.9, "ended": True}]] * 2 + [[{"gold": 0.1, "ended": False}]] * 6)
    (claim,) = claim_table({"ppo_ptx": ours, "sft": theirs}, {}, samples=100, seed=0)
    assert claim.measured == 0.75 and "among answers that ended by themselves 0.000 (2 prompts)" in claim.note


def test_dpo_stands_beside_sft_and_ppo_ptx_with_the_kl_of_both() -> None:
    def evaluated(gold: float, kl: float) -> Evaluated:
        scores = draw(int(10 * kl), 60, 2, gold)
        return Evaluated([[{"gold": score, "reward": 0.0, "kl": kl} for score in prompt] for prompt in scores])

    models = {"sft": evaluated(0.0, 0.0), "ppo_ptx": evaluated(1.0, 2.0), "dpo": evaluated(1.05, 2.5)}
    claims = {claim.claim: claim for claim in claim_table(models, {}, samples=500, seed=0)}
    over_sft, over_ppo = (claims[f"DPO is preferred to {name}"] for name in ("SFT", "PPO-ptx"))
    assert over_sft.holds and over_sft.measured > 0.7
    assert not over_ppo.holds and over_ppo.low is not None and over_ppo.low < 0.5 < over_ppo.measured
    assert "KL to PPO's start 2.50 and 2.00 nats" in over_ppo.note and "by gold score" in over_ppo.note
    judged, over = preference(models["dpo"], models["sft"], samples=500, seed=0)
    assert judged == "gold" and (over.value, over.low) == (over_sft.measured, over_sft.low)
