"""The running mean and variance of rewards, against numpy over everything seen so far."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab_trainer.reward_normalizer import RewardNormalizer

batches = st.lists(st.lists(st.floats(-1e3, 1e3, width=32), max_size=9), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(batches)
def test_it_is_the_mean_and_deviation_of_all_scores_so_far(parts: list[list[float]]) -> None:
    normalizer, seen = RewardNormalizer(), []
    for part in parts:
        seen += part
        found = normalizer.normalized(torch.tensor(part, dtype=torch.float32))
        assert found.dtype == torch.float32 and normalizer.count == len(seen)
        if len(seen) > 1:
            mean, std = np.mean(seen), max(np.std(seen), 1e-4)
            np.testing.assert_allclose(found.numpy(), (np.array(part) - mean) / std, rtol=1e-4, atol=1e-2)


def test_the_first_score_alone_only_moves_the_mean() -> None:
    assert RewardNormalizer().normalized(torch.tensor([5.0])).tolist() == [0.0]


def test_its_fields_are_its_state() -> None:
    one = RewardNormalizer()
    one.normalized(torch.tensor([1.0, 2.0, 4.0]))
    other = RewardNormalizer(**vars(one))
    more = torch.tensor([3.0, -2.0])
    assert torch.equal(one.normalized(more), other.normalized(more))
