"""How far a reward model's scores agree with labelers' rankings, and what stands beside that.

Three scores are held against the same labels: the reward model's, the rule "the longer answer wins", and where a gold
score exists the oracle, what a model that knew it would reach. Beside them stands how often two labelers agree. Pairs
that a labeler ties are left out; a pair of equal scores counts one half; intervals are a bootstrap over prompts.
Counting is that of `evaluation` and `data.agreement`, as everywhere.

Pure functions over rankings and numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab_trainer.bootstrap import LEAST_CLUSTERS, clustered_interval
from trimtab_trainer.claims import Estimate
from trimtab_trainer.data import Labeling, Ranking
from trimtab_trainer.data.agreement import Agreement, Labelings
from trimtab_trainer.evaluation import (
    Accuracy,
    Calibration,
    RankedAnswers,
    calibration,
    pair_agreement,
    ranking_accuracy,
)

__all__ = ["ALL", "HELD_OUT", "LONGER", "MODEL", "ORACLE", "TRAINING", "Judged", "Measured", "measure"]

MODEL, LONGER, ORACLE = "reward model", "longer wins", "oracle"
ALL, TRAINING, HELD_OUT = "all labelers", "training labelers", "held-out labelers"

GoldScore = Callable[[Ranking], Sequence[float]]
"""Gold scores of a ranking's answers."""


@dataclass(frozen=True)
class Judged:
    """A ranking with the reward model's scores of its answers."""

    ranking: Ranking
    scores: Sequence[float]


@dataclass(frozen=True)
class Measured:
    """Everything that was found; `accuracies` are by score, then by whose labels.

    Attributes:
        by_side: of all labelers, and of both sides where groups are held out.
        by_source: of each source.
        by_group: of each (source, group).
        above_longer: by side, accuracy of the reward model minus that of "longer wins", paired; None below 5 prompts.
        calibration: of the reward model, by side.
        agreements: between labelers; empty where no two labelled the same answers.
        rankings, tied: how many, and those in which no labeler decided a pair.
    """

    by_side: Mapping[str, Mapping[str, Accuracy]]
    by_source: Mapping[str, Mapping[str, Accuracy]]
    by_group: Mapping[str, Mapping[tuple[str, str], Accuracy]]
    above_longer: Mapping[str, Estimate | None]
    calibration: Mapping[str, Calibration]
    agreements: Sequence[Agreement]
    rankings: int
    tied: int


def measure(
    judged: Sequence[Judged],
    *,
    held_out_groups: Collection[str] = (),
    gold: GoldScore | None = None,
    samples: int,
    seed: int,
) -> Measured:
    """Holds scores against rankings.

    Args:
        judged: at least one with a decided pair.
        held_out_groups: labeler groups whose labels the model was not trained on.
        gold: what people really want, where it is known.
        samples: bootstrap resamples of the prompts.
        seed: of the bootstrap.
    """
    scores: dict[str, list[Sequence[float]]] = {
        MODEL: [one.scores for one in judged],
        LONGER: [[float(len(answer)) for answer in one.ranking.answers] for one in judged],
    }
    if gold is not None:
        scores[ORACLE] = [gold(one.ranking) for one in judged]
    rankings = [one.ranking for one in judged]

    def accuracies(
        label: Callable[[Ranking, Labeling], str], *, by_group: bool = True
    ) -> dict[str, Mapping[str, Accuracy]]:
        return {
            name: ranking_accuracy(_ranked(rankings, of_name, label), samples=samples, seed=seed, by_group=by_group)
            for name, of_name in scores.items()
        }

    def side(_: Ranking, labeling: Labeling) -> str:
        return (HELD_OUT if labeling.group in held_out_groups else TRAINING) if held_out_groups else ALL

    by_side = {
        name: {whose or ALL: found for whose, found in of_name.items()}
        for name, of_name in accuracies(side, by_group=bool(held_out_groups)).items()
    }
    by_group = accuracies(lambda ranking, labeling: f"{ranking.source}\0{labeling.group}")
    sides: dict[str, list[RankedAnswers]] = {ALL: _ranked(rankings, scores[MODEL], side)}
    for one in sides[ALL]:
        if one.group != ALL:
            sides.setdefault(one.group, []).append(one)
    longer = _ranked(rankings, scores[LONGER], side)
    labelings = Labelings()
    for ranking in rankings:
        labelings.add(ranking)
    return Measured(
        by_side=by_side,
        by_source={
            name: {source: found for source, found in of_name.items() if source}
            for name, of_name in accuracies(lambda ranking, labeling: ranking.source).items()
        },
        by_group={
            name: {(pair[0], pair[1]): found for key, found in of_name.items() if len(pair := key.split("\0")) == 2}
            for name, of_name in by_group.items()
        },
        above_longer={
            whose: _difference(ours, [other for other in longer if whose in (ALL, other.group)], samples, seed)
            for whose, ours in sides.items()
        },
        calibration={
            whose: found
            for whose, ours in sides.items()
            if (found := calibration(ours, samples=samples, seed=seed)) is not None
        },
        agreements=labelings.agreements(samples=samples, seed=seed),
        rankings=len(rankings),
        tied=sum(all(len(set(one.ranks)) == 1 for one in ranking.labelings) for ranking in rankings),
    )


def _ranked(
    rankings: Sequence[Ranking], scores: Sequence[Sequence[float]], label: Callable[[Ranking, Labeling], str]
) -> list[RankedAnswers]:
    """Every labeling beside the scores of its ranking's answers, under a label."""
    return [
        RankedAnswers(ranking.prompt_id, label(ranking, labeling), labeling.ranks, of_ranking)
        for ranking, of_ranking in zip(rankings, scores, strict=True)
        for labeling in ranking.labelings
    ]


def _difference(
    ours: Sequence[RankedAnswers], theirs: Sequence[RankedAnswers], samples: int, seed: int
) -> Estimate | None:
    """Our accuracy minus theirs on the same pairs, with an interval over prompts."""
    clusters: dict[str, list[float]] = {}
    for one, other in zip(ours, theirs, strict=True):
        agree, pairs = pair_agreement(one.ranks, one.scores)
        if pairs:
            cluster = clusters.setdefault(one.prompt, [0.0, 0.0])
            cluster[0] += agree - pair_agreement(other.ranks, other.scores)[0]
            cluster[1] += pairs
    if len(clusters) < LEAST_CLUSTERS:
        return None
    sums, counts = np.array(list(clusters.values())).T
    low, high = clustered_interval(sums, counts, samples=samples, seed=seed)
    return Estimate(float(sums.sum() / counts.sum()), low, high)
