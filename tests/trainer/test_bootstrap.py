from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from trimtab_trainer.bootstrap import cluster_draws, clustered_interval, resampled_sums


def test_the_interval_covers_and_clusters_widen_it() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(100):
        probability = generator.beta(2, 2, size=60)  # pairs of a prompt go together
        sums = generator.binomial(20, probability).astype(float)
        low, high = clustered_interval(sums, np.full(60, 20.0), samples=300, seed=trial)
        hits += low <= 0.5 <= high
    assert hits >= 85
    pairs = np.repeat(sums / 20, 20)
    narrow = clustered_interval(pairs, np.ones_like(pairs), samples=300, seed=0)
    assert high - low > 2 * (narrow[1] - narrow[0])


def test_the_interval_is_that_of_scipy() -> None:
    from scipy.stats import bootstrap

    generator = np.random.default_rng(1)
    counts = generator.integers(1, 9, size=80).astype(float)
    sums = generator.normal(counts * 0.3, 1.0)
    expected = bootstrap(
        (sums, counts), lambda sums, counts, axis=-1: sums.sum(axis) / counts.sum(axis),
        paired=True, vectorized=True, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    found = clustered_interval(sums, counts, samples=20_000, seed=0)
    assert found == pytest.approx((expected.low, expected.high), abs=0.005)


def test_equal_clusters_are_held_once() -> None:
    agree, total, times = np.array([(3, 4, 50), (1, 2, 30), (5, 5, 20)], np.float64).T
    together = clustered_interval(agree, total, samples=2000, seed=0, times=times)
    spread = [np.repeat(values, times.astype(int)) for values in (agree, total)]
    assert clustered_interval(*spread, samples=2000, seed=0) == together


def test_columns_are_of_the_same_draws_and_every_sample_draws_as_many_clusters() -> None:
    values = np.arange(7.0)
    sums = resampled_sums(np.stack([values, 2 * values, np.ones(7)], axis=1), samples=50, seed=3)
    assert np.array_equal(sums[:, 1], 2 * sums[:, 0]) and set(sums[:, 2]) == {7.0} and len(set(sums[:, 0])) > 10


def test_parts_change_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    def draws() -> np.ndarray:
        return np.concatenate([*cluster_draws(np.ones(7), samples=50, generator=np.random.default_rng(0))])

    whole = draws()
    monkeypatch.setattr("trimtab_trainer.bootstrap._PART", 20)
    assert np.array_equal(draws(), whole) and whole.shape == (50, 7)


def test_memory_does_not_grow_with_samples_times_clusters() -> None:
    sums = np.random.default_rng(0).random(31_000)
    tracemalloc.start()
    clustered_interval(sums, np.ones(31_000), samples=600, seed=0)  # all draws at once: 142 MiB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 2**20
