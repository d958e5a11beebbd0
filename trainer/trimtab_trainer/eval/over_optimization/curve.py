"""Over-optimisation: what a policy gains by its reward model, and by a yardstick that nothing trained on, over the KL.

With d the square root of KL(policy || start), in nats of a sequence, Gao, Schulman and Hilton 2022 (arXiv 2210.10760,
section 3.1) find for RL

    R(d) = d (alpha - beta log d)

for the gold reward, measured from the start's. It peaks at d* = exp(alpha / beta - 1), where it is beta d* above the
start. Here the level of the start is fitted too, since one batch at d = 0 knows it no better than the others know
theirs: three coefficients by least squares, all linear.

Iterations that follow each other share a policy and its luck, so the bootstrap resamples blocks of them (Kuensch 1989),
n^(1/3) iterations long. Pure functions over numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trimtab_trainer.claims import Estimate

__all__ = ["Course", "Curve", "Peak", "Point", "distance", "fit_course", "fit_curve", "gain_at"]

_LEAST_POINTS = 8
"""Of a fit: with fewer, three coefficients follow every point."""
_LEAST_DISTANCES = 3
"""As many as coefficients."""
_LEVEL = 0.95
_CURVE_POINTS = 61
_FARTHEST_EXPONENT = 50.0
"""A curve that bends by next to nothing has its peak beyond any policy; just how far is no figure."""


def distance(kl: float) -> float:
    """d, the square root of a KL; of an estimate below 0 that of 0."""
    return math.sqrt(max(kl, 0.0))


@dataclass(frozen=True)
class Point:
    """A policy: its distance from the start, what the reward model says of it, and what the yardstick says.

    Attributes:
        kl: mean over sequences, in nats; an estimate, and so perhaps below 0, which counts as 0.
        proxy: mean reward by the model that was optimised.
        yardstick: mean gold score, or mean reward by a model that no policy was optimised against; None unknown.
    """

    kl: float
    proxy: float
    yardstick: float | None

    @property
    def distance(self) -> float:
        """d, as `distance` has it."""
        return distance(self.kl)


@dataclass(frozen=True)
class Course:
    """The policies of one training, in order."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Peak:
    """Where the fitted curve is highest.

    Attributes:
        distance: d*, with its interval.
        gain: of the curve there above the start.
    """

    distance: Estimate
    gain: Estimate


@dataclass(frozen=True)
class Curve:
    """R(d) = start + d (alpha - beta log d), fitted.

    Attributes:
        start, alpha, beta: coefficients with 95 % intervals.
        explained: share of the variance, at most 1.
        farthest: largest d of a point; beyond it the curve says nothing.
        heights: (d, R(d)) from 0 to there, each R with its own 95 % interval.
        peak: None where no peak can be told, and then
        why_no_peak: says why.
    """

    start: Estimate
    alpha: Estimate
    beta: Estimate
    explained: float
    farthest: float
    heights: Sequence[tuple[float, Estimate]]
    peak: Peak | None
    why_no_peak: str = ""


def gain_at(distance: float, alpha: float, beta: float) -> float:
    """d (alpha - beta log d), 0 at d = 0."""
    return distance * (alpha - beta * math.log(distance)) if distance > 0 else 0.0


def fit_course(course: Course, *, yardstick: bool, samples: int, seed: int) -> Curve | str:
    """The curve of a course's proxy, or of its yardstick; or why there is none."""
    known = [
        (point.distance, point.yardstick if yardstick else point.proxy)
        for point in course.points
        if not yardstick or point.yardstick is not None
    ]
    if len(known) < _LEAST_POINTS:
        return f"{len(known)} policies are known; a fit takes at least {_LEAST_POINTS}"
    distances, values = np.array(known, np.float64).T
    different = len(np.unique(distances))
    if different < _LEAST_DISTANCES:
        return f"the policies are at {different} different distances; a fit takes at least {_LEAST_DISTANCES}"
    return fit_curve(distances, values, samples=samples, seed=seed)


def fit_curve(distances: npt.NDArray[np.float64], values: npt.NDArray[np.float64], *, samples: int, seed: int) -> Curve:
    """Fits the curve to policies in the order of their training.

    A peak is told only where at least 97.5 % of the resampled curves bend down (beta above 0) and its whole interval
    lies between the policies' distances.

    Args:
        distances: [policy] d, three or more of them different.
        values: [policy] mean rewards.
        samples: bootstrap resamples of blocks of policies.
        seed: of the draws.
    """
    start, alpha, beta = _coefficients(distances, values)
    residuals = values - _design(distances) @ [start, alpha, beta]
    resampled = np.array(
        [_coefficients(distances[chosen], values[chosen]) for chosen in _blocks(len(distances), samples, seed)]
    )
    spread = float(((values - values.mean()) ** 2).sum())
    farthest = float(distances.max())
    peak = _peak(alpha, beta, resampled, float(distances.min()), farthest)
    return Curve(
        start=_estimate(start, resampled[:, 0]),
        alpha=_estimate(alpha, resampled[:, 1]),
        beta=_estimate(beta, resampled[:, 2]),
        explained=1 - float((residuals**2).sum()) / spread if spread else 1.0,
        farthest=farthest,
        heights=_heights((start, alpha, beta), resampled, farthest),
        peak=peak if isinstance(peak, Peak) else None,
        why_no_peak=peak if isinstance(peak, str) else "",
    )


def _heights(
    fitted: tuple[float, float, float], resampled: npt.NDArray[np.float64], farthest: float
) -> list[tuple[float, Estimate]]:
    start, alpha, beta = fitted
    distances = np.linspace(0.0, farthest, _CURVE_POINTS)
    of_resamples = _design(distances) @ resampled.T
    return [
        (d, _estimate(start + gain_at(d, alpha, beta), heights))
        for d, heights in zip(distances.tolist(), of_resamples, strict=True)
    ]


def _peak(alpha: float, beta: float, resampled: npt.NDArray[np.float64], nearest: float, farthest: float) -> Peak | str:
    bends = resampled[:, 2] > 0
    if beta <= 0 or bends.mean() < 1 - (1 - _LEVEL) / 2:
        return f"that the curve bends down at all is not certain: it does in {100 * bends.mean():.0f} % of resamples"
    alphas, betas = resampled[bends, 1], resampled[bends, 2]
    places = np.exp(np.minimum(alphas / betas - 1, _FARTHEST_EXPONENT))
    place = _estimate(math.exp(min(alpha / beta - 1, _FARTHEST_EXPONENT)), places)
    if not nearest <= place.low <= place.high <= farthest:
        return (
            f"the fitted peak, at d = {place.value:.3g} ({place.low:.3g} to {place.high:.3g}), is not certain to lie "
            f"among the policies, from d = {nearest:.3g} to {farthest:.3g}"
        )
    return Peak(place, _estimate(beta * place.value, betas * places))


def _design(distances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[policy, 3]: 1, d, -d log d."""
    safe = np.where(distances > 0, distances, 1.0)
    return np.stack([np.ones_like(distances), distances, -distances * np.log(safe)], axis=1)


def _coefficients(distances: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    found = np.linalg.lstsq(_design(distances), values, rcond=None)[0]
    return float(found[0]), float(found[1]), float(found[2])


def _blocks(count: int, samples: int, seed: int) -> npt.NDArray[np.int64]:
    """[sample, count] positions drawn as moving blocks of neighbours."""
    length = round(count ** (1 / 3))
    starts = np.random.default_rng(seed).integers(0, count - length + 1, size=(samples, math.ceil(count / length)))
    return (starts[:, :, None] + np.arange(length)).reshape(samples, -1)[:, :count]


def _estimate(value: float, resampled: npt.NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(resampled, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(value, float(low), float(high))
