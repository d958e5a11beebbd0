"""The KL coefficient and the decay of averaged weights."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab_trainer.kl import AdaptiveKLController, ema_decay_at

POSITIVE = st.floats(1e-3, 1e3)


@given(POSITIVE, POSITIVE, st.floats(-10, 1e4), st.integers(1, 512), st.integers(512, 100_000))
def test_controller_is_zieglers_formula(coef, target, kl, episodes, horizon) -> None:
    controller = AdaptiveKLController(coef, target, horizon)
    controller.update(kl, episodes)
    error = kl / target - 1
    if error > 0.2:
        error = 0.2
    if error < -0.2:
        error = -0.2
    assert controller.coef == pytest.approx(coef * (1 + error * episodes / horizon))
    assert controller.coef > 0
    assert (controller.coef > coef) is (error > 0) or controller.coef == pytest.approx(coef)


@given(POSITIVE, st.floats(-10, 1e4))
def test_without_a_target_the_coefficient_is_fixed(coef: float, kl: float) -> None:
    controller = AdaptiveKLController(coef, None, 10_000)
    controller.update(kl, 512)
    assert controller.coef == coef


def test_on_target_nothing_moves() -> None:
    controller = AdaptiveKLController(0.02, 6.0, 10_000)
    controller.update(6.0, 512)
    assert controller.coef == 0.02


def test_it_finds_the_coefficient_of_a_simple_plant() -> None:
    controller = AdaptiveKLController(0.02, 6.0, 10_000)
    for _ in range(3000):
        controller.update(1.2 / controller.coef, 256)  # KL falls as its price rises
    assert 1.2 / controller.coef == pytest.approx(6.0, rel=0.01)


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_ema_decay(step: int, decay: float) -> None:
    found = ema_decay_at(step, decay)
    assert found == min(decay, (step + 1) / (step + 10))
    assert 0 <= found <= decay and found <= ema_decay_at(step + 1, decay)


def test_ema_reaches_the_papers_decay() -> None:
    assert ema_decay_at(0, 0.992) == 0.1
    assert ema_decay_at(1115, 0.992) == 0.992 > ema_decay_at(1100, 0.992)
