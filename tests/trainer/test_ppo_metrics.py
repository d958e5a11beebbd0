"""How old the policies were that sampled a batch, counted or refused; and which rollouts people are told of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trimtab.errors import Mismatch
from trimtab.types import VersionSpan
from trimtab_models.tokenizer import load_tokenizer
from trimtab_trainer.ppo_metrics import check_age, samples_of
from trimtab_trainer.rollouts import Rollout

PUBLISHED = {7: 0, 8: 1, 9: 2}


def rollout(*versions: int) -> Rollout:
    spans = tuple(
        VersionSpan(versions.index(version), versions.index(version) + versions.count(version), version)
        for version in dict.fromkeys(versions)
    )
    tokens = tuple(range(5, 5 + len(versions)))
    return Rollout("p", 0, (5, 6), tokens, np.zeros(len(tokens), np.float32), True, spans)


def test_ages_are_counted_by_every_token() -> None:
    batch = [rollout(9), rollout(7, 8, 9, 9), rollout(8), rollout(9)]
    ages = {"lag": 2.0, "mean_lag": 4 / 7, "stale_fraction": 0.5, "mixed_fraction": 0.25}
    assert check_age(batch, PUBLISHED, 2, max_lag=2) == ages
    assert check_age([rollout(9)], PUBLISHED, 2, max_lag=0) == dict.fromkeys(ages, 0.0)


@pytest.mark.parametrize(
    ("versions", "iteration", "words"),
    [
        ((7,), 2, "2 to 2 iterations old"),  # too old
        ((9,), 1, "-1 to -1 iterations old"),  # of a policy that comes later
        ((4,), 2, "version 4, which is no policy of this run"),
    ],
)
def test_what_cannot_be_is_refused(versions: tuple[int, ...], iteration: int, words: str) -> None:
    with pytest.raises(Mismatch, match=words):
        check_age([rollout(*versions)], PUBLISHED, iteration, max_lag=1)


@pytest.mark.parametrize(
    ("count", "most", "places"), [(15, 4, [0, 3, 7, 11]), (7, 4, [0, 1, 3, 5]), (3, 9, [0, 1, 2]), (5, 0, [])]
)
def test_samples_are_spread_over_the_batch(llama_folder: Path, count: int, most: int, places: list[int]) -> None:
    batch = [replace(rollout(9), reward=float(number)) for number in range(count)]
    assert [one.reward for one in samples_of(batch, load_tokenizer(llama_folder), most)] == places
