"""Simulated labelers: ten for training, five held out. No human takes part; every row says so in its labeler's name.

A labeler's utility of an answer is the gold criteria under personal weights, plus a taste for length, plus noise drawn
once for each (labeler, prompt, answer). Why noise: personal weights alone leave labelers agreeing on well over 90 % of
pairs, while the people of Ouyang et al. 2022 (section 3.4) agree on 72.6 % (training) and 77.3 % (held out). `NOISE`
was chosen on the answers of the miniature's own SFT model mixed with flawed ones: .2 gave .732 (282,662 decisions), and
.694 among samples alone; every run measures it again.

Ranking is a pure function of seed, labeler and texts: order, batch size and restarts cannot change a label.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from statistics import NormalDist
from typing import Any

from trimtab.errors import DataError
from trimtab_trainer.data.splits import HELD_OUT_GROUP
from trimtab_trainer.miniature.gold import CRITERIA, WEIGHTS, gold

NOISE = 0.2
"""Standard deviation of the noise on a utility, on the gold scale; makes two labelers agree on about 73 % of pairs."""

WEIGHT_SPREAD = 0.5
"""Standard deviation of the logarithm of a labeler's personal weights around the gold ones."""

LENGTH_TASTE_SPREAD = 0.004
"""Standard deviation of a labeler's taste for length, utility for each word."""

TIE_WIDTH = 0.03
"""Answers whose utility is within this of the best of a group share its rank."""

TRAINING_LABELERS = 10
"""Labelers whose rankings may train the reward model."""

HELD_OUT_LABELERS = 5
"""Labelers who only evaluate it, as in the paper's held-out group."""

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Labeler:
    """One simulated labeler.

    Attributes:
        name: `simulated-training-01` ... or `simulated-held-out-01` ....
        group: `training` or `heldout`.
        weights: weight of each gold criterion; they sum to 1.
        length_taste: utility for each word of an answer.
        noise: standard deviation of the noise on a utility.
        seed: seed of that noise.
    """

    name: str
    group: str
    weights: dict[str, float]
    length_taste: float
    noise: float = NOISE
    seed: int = 0

    def utility(self, prompt: str, answer: str, *, finished: bool = True) -> float:
        """How much this labeler likes an answer; deterministic in everything that is given.

        Raises:
            DataError: the prompt is not one of the miniature.
        """
        criteria = _criteria(prompt, answer, finished)
        liked = sum(self.weights[name] * criteria[name] for name in CRITERIA)
        return liked + self.length_taste * len(answer.split()) + self.noise * self._noise(prompt, answer)

    def _noise(self, prompt: str, answer: str) -> float:
        """A standard normal number that belongs to (seed, labeler, prompt, answer)."""
        key = "\x1f".join((str(self.seed), self.name, prompt, answer)).encode()
        drawn = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
        return _NORMAL.inv_cdf(((drawn >> 12) + 0.5) / 2**52)  # 52 bits: never rounds to 0 or 1


def make_labelers(seed: int = 0, *, noise: float = NOISE) -> tuple[Labeler, ...]:
    """The ten training labelers, then the five held-out ones, with weights and tastes drawn from `seed`."""
    made = []
    sides = (("training", "training", TRAINING_LABELERS), (HELD_OUT_GROUP, "held-out", HELD_OUT_LABELERS))
    for group, side, count in sides:
        for number in range(1, count + 1):
            name = f"simulated-{side}-{number:02d}"
            rng = random.Random(f"{seed}/{name}")
            raw = {criterion: WEIGHTS[criterion] * rng.lognormvariate(0, WEIGHT_SPREAD) for criterion in CRITERIA}
            total = sum(raw.values())
            weights = {criterion: weight / total for criterion, weight in raw.items()}
            made.append(Labeler(name, group, weights, rng.gauss(0, LENGTH_TASTE_SPREAD), noise, seed))
    return tuple(made)


def rank(
    prompt: str, answers: Sequence[str], labeler: Labeler, *, finished: Sequence[bool] | None = None
) -> list[list[int]]:
    """Ranks K answers to one prompt.

    Args:
        prompt: a prompt of the miniature.
        answers: K different texts.
        labeler: who ranks.
        finished: for each answer whether it ended by itself; None means that all did.

    Returns:
        Tie groups of indices into `answers`, best first: `[[2], [0, 3], [1]]`. Inside a group indices ascend.

    Raises:
        DataError: the prompt is not one of the miniature, or two answers are equal.
    """
    if len(set(answers)) != len(answers):
        raise DataError(
            f"answers of one ranking must all differ; {len(answers)} were given, {len(set(answers))} are different",
            field="answers",
            value=list(answers),
            limit="all different",
        )
    ended = finished if finished is not None else [True] * len(answers)
    utilities = [labeler.utility(prompt, text, finished=end) for text, end in zip(answers, ended, strict=True)]
    groups: list[list[int]] = []
    best = 0.0
    for index in sorted(range(len(answers)), key=lambda i: (-utilities[i], i)):
        if groups and best - utilities[index] < TIE_WIDTH:
            groups[-1].append(index)
        else:
            groups.append([index])
            best = utilities[index]
    return [sorted(group) for group in groups]


def ranking_row(
    prompt: str, answers: Sequence[str], labelers: Iterable[Labeler], *, finished: Sequence[bool] | None = None
) -> dict[str, Any]:
    """One row of a rankings file: `prompt`, `answers` and one label for each labeler.

    Raises:
        DataError: see `rank`; or fewer than 2 or more than 9 answers.
    """
    if not 2 <= len(answers) <= 9:
        raise DataError(
            f"answers: a ranking takes 2 to 9 of them, not {len(answers)}",
            field="answers",
            value=len(answers),
            limit="2..9",
        )
    labels = [
        {"labeler": who.name, "group": who.group, "ranking": rank(prompt, answers, who, finished=finished)}
        for who in labelers
    ]
    return {"prompt": prompt, "answers": list(answers), "labels": labels}


def labelers_for(prompt: str, labelers: Sequence[Labeler], count: int) -> list[Labeler]:
    """Assigns `count` different labelers to a prompt by a digest of its text, so that the load spreads evenly."""
    if not 1 <= count <= len(labelers):
        raise DataError(
            f"{count} labelers a prompt were asked for, there are {len(labelers)}",
            field="labelers_per_prompt",
            value=count,
            limit=len(labelers),
        )
    return random.Random(f"labelers/{prompt}").sample(list(labelers), count)


def ranks_of(ranking: Sequence[Sequence[int]]) -> list[int]:
    """Rank of each answer, 0 for the best tie group."""
    places = {index: place for place, group in enumerate(ranking) for index in group}
    return [places[index] for index in range(len(places))]


def oracle(rows: Iterable[dict[str, Any]], *, group: str) -> float:
    """How often the gold score orders a pair as a labeler of a group did: what no reward model can honestly exceed.

    Pairs that the labeler ties are left out; a pair that is equal in gold counts one half. Every answer counts as
    finished: one that was cut off does not end in a full stop, or is too long, and scores as unfinished by itself.
    """
    agreed = total = 0.0
    for row in rows:
        scores = [gold(row["prompt"], answer).score for answer in row["answers"]]
        for label in row["labels"]:
            if label["group"] != group:
                continue
            places = ranks_of(label["ranking"])
            for a, b in combinations(range(len(scores)), 2):
                if places[a] != places[b]:
                    difference = (scores[a] - scores[b]) * (places[b] - places[a])
                    agreed += 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0
                    total += 1
    return agreed / total if total else float("nan")


@lru_cache(maxsize=4096)
def _criteria(prompt: str, answer: str, finished: bool) -> dict[str, float]:
    """The labelers of one row look at the same answers one after the other."""
    return gold(prompt, answer, finished=finished).criteria
