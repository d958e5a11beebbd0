"""Warnings of a run that goes wrong: only where it does, with the figures."""

from __future__ import annotations

import torch

from trimtab_trainer.health import is_negative_kl, warn_of_low_scores, warn_of_negative_kl


def test_a_kl_below_zero_beyond_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(256, generator=generator)
    error = float(noise.std()) / 16
    assert not is_negative_kl(noise - noise.mean() - 1.9 * error)
    assert is_negative_kl(noise - noise.mean() - 2.1 * error)
    assert not is_negative_kl(noise.abs())
    assert not is_negative_kl(torch.zeros(256))  # the first batch: policy and reference are the same
    assert not is_negative_kl(torch.tensor([-3.0]))


def test_it_is_told_every_third_iteration_in_a_row() -> None:
    told: list[str] = []
    for iterations in range(8):
        warn_of_negative_kl(iterations, -0.5, told.append)
    assert len(told) == 2 and "for 3 iterations" in told[0] and "mean KL is -0.5" in told[0]


def test_finished_completions_below_the_score_of_unfinished_ones() -> None:
    told: list[str] = []
    ended = torch.arange(400) >= 200
    scores = torch.zeros(400)
    scores[:200] = -9.0  # not ended: their score is replaced and does not count
    warn_of_low_scores(scores, ended, -1.0, told.append)
    scores[200:202] = -2.0
    warn_of_low_scores(scores, ended, -1.0, told.append)
    assert told == []  # 1 % is not more than 1 %
    scores[202:204] = -2.0
    warn_of_low_scores(scores, ended, -1.0, told.append)
    assert told == []  # 2 % of 200 is not yet beyond chance
    scores[204:206] = -2.0
    warn_of_low_scores(scores, ended, -1.0, told.append)
    warn_of_low_scores(scores, ended, None, told.append)
    warn_of_low_scores(scores, torch.zeros(400, dtype=torch.bool), -1.0, told.append)
    assert len(told) == 1 and "3.0% of the finished completions score below missing_eos_score -1" in told[0]
