"""The Bradley-Terry model: strengths such that P(i is preferred to j) = sigmoid(strength_i - strength_j).

Pure functions over a matrix of wins. A tie is half a win of each side, as in the Elo system and in win rates, so that
with two models the fitted probability is the observed win rate. Bradley and Terry 1952; that the likelihood has one
finite maximum exactly where every set of models wins, or ties, against the rest is Ford 1957 (Hunter 2004, "MM
algorithms for generalized Bradley-Terry models", assumption 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trimtab.errors import DataError

__all__ = ["check_estimable", "fit", "is_estimable"]

Matrix = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]

_MOST_STEPS = 200
_STEP_TOLERANCE = 1e-9
_SAFE_STEP = 1e-4
"""Newton's steps below it are not halved: they converge, and the likelihood changes by less than its rounding."""


def is_estimable(wins: Matrix) -> bool:
    """Whether the strengths have a finite estimate.

    Args:
        wins: [model, model] weight of the comparisons in which the first was preferred, half of the ties included.
    """
    return bool(_reached(wins > 0).all())


def check_estimable(wins: Matrix, names: Sequence[str]) -> None:
    """Refuses comparisons of which no finite strengths follow.

    Args:
        wins: as of `is_estimable`.
        names: of the models.

    Raises:
        DataError: models that were never compared, directly or by way of others, or models that never win or tie
            against the others; both are named.
    """
    linked = _reached(wins + wins.T > 0)
    if not linked.all():
        mine, others = _split(names, linked[0])
        raise DataError(
            f"sources: no comparison links {mine} with {others}; Bradley-Terry compares linked models only",
            field="sources",
            value=mine,
        )
    beats = _reached(wins > 0)
    least = beats[int(beats.sum(axis=1).argmin())]
    if not least.all():
        losers, others = _split(names, least)
        raise DataError(
            f"ranking: {losers} never won or tied against {others}: the strengths have no finite estimate",
            field="ranking",
            value=losers,
        )


def fit(wins: Matrix) -> Vector:
    """Maximum-likelihood strengths, [model] in nats of log-odds; their mean is 0.

    Newton's method on the concave log-likelihood sum_ij wins_ij log sigmoid(s_i - s_j), each step halved until the
    likelihood does not fall.

    Args:
        wins: as of `is_estimable`, and estimable.

    Raises:
        ArithmeticError: no maximum was found.
    """
    compared = wins + wins.T
    strengths = np.zeros(len(wins))
    likelihood = _log_likelihood(wins, strengths)
    for _ in range(_MOST_STEPS):
        chance = 1 / (1 + np.exp(np.subtract.outer(-strengths, -strengths)))
        gradient = (wins * chance.T - wins.T * chance).sum(axis=1)  # chance.T is 1 - chance without its rounding
        information = -compared * chance * chance.T
        np.fill_diagonal(information, -information.sum(axis=1))  # nobody meets itself
        # Only differences matter, so the last model stands still in the step, and the mean is taken off afterwards.
        step = np.append(np.linalg.solve(information[:-1, :-1], gradient[:-1]), 0)
        step -= step.mean()
        if np.abs(step).max() <= _STEP_TOLERANCE:
            return strengths + step
        while np.abs(step).max() > _SAFE_STEP and _log_likelihood(wins, strengths + step) < likelihood:
            step = step / 2
        strengths = strengths + step
        likelihood = _log_likelihood(wins, strengths)
    raise ArithmeticError(f"Bradley-Terry: no maximum within {_MOST_STEPS} steps")


def _log_likelihood(wins: Matrix, strengths: Vector) -> float:
    return -float((wins * np.logaddexp(0, np.subtract.outer(-strengths, -strengths))).sum())


def _reached(edges: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[from, to]: where a path leads, each model to itself too (Warshall's algorithm)."""
    reached = edges | np.eye(len(edges), dtype=bool)
    for middle in range(len(edges)):
        reached |= np.outer(reached[:, middle], reached[middle])
    return reached


def _split(names: Sequence[str], inside: npt.NDArray[np.bool_]) -> tuple[str, str]:
    """The names inside, and those outside."""
    mine = [name for name, is_inside in zip(names, inside, strict=True) if is_inside]
    return ", ".join(mine), ", ".join(name for name in names if name not in mine)
