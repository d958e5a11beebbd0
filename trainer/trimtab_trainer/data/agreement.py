"""How often two labelers agree on the same answers, with bootstrap intervals over prompts, of a file of any size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from trimtab_trainer.bootstrap import LEAST_CLUSTERS, clustered_interval
from trimtab_trainer.data.on_disk import digest, open_private_database
from trimtab_trainer.data.records import Ranking
from trimtab_trainer.evaluation import labeler_agreement

__all__ = ["Agreement", "Labelings"]

_BETWEEN = "between groups"


@dataclass(frozen=True)
class Agreement:
    """Two labelers, two answers, one order: how often they say the same where both decide.

    Attributes:
        source: of the rankings; "" for all of them together.
        group: the group that both labelers are of; "between groups" where they are of two; "" for any two.
        value: share of agreeing decisions, 0..1.
        low, high: 95 % interval; None below 5 prompts, of which no bootstrap makes an interval.
        decisions: pairs of answers that a pair of labelers both decided.
        prompts: different prompts with such a decision.
    """

    source: str
    group: str
    value: float
    low: float | None
    high: float | None
    decisions: int
    prompts: int


class Labelings:
    """Collects labelings, of one row or of several rows on the same answers, in whatever order those stand."""

    def __init__(self) -> None:
        self._rows = 0
        self._database = open_private_database(
            "CREATE TABLE labelings (item BLOB, row INTEGER, prompt BLOB, source TEXT, grp TEXT, labeler TEXT,"
            " ranks TEXT);"
            "CREATE TABLE agreed (source TEXT, grp TEXT, prompt BLOB, agree INTEGER, total INTEGER,"
            " PRIMARY KEY (source, grp, prompt)) WITHOUT ROWID"
        )

    def add(self, ranking: Ranking) -> None:
        """Takes what each labeler said of one row's answers."""
        self._rows += 1
        order = sorted(range(len(ranking.answers)), key=lambda place: ranking.answers[place])
        item = digest(json.dumps([ranking.prompt_id, *(ranking.answers[place] for place in order)]))
        prompt = digest(ranking.prompt_id)
        for one in ranking.labelings:
            ranks = json.dumps([one.ranks[place] for place in order])
            self._database.execute(
                "INSERT INTO labelings VALUES (?, ?, ?, ?, ?, ?, ?)",
                (item, self._rows, prompt, ranking.source, one.group, one.labeler, ranks),
            )

    def agreements(self, *, samples: int, seed: int) -> list[Agreement]:
        """Agreement over everything, then of each source, then of its groups; empty where no two labelers decided.

        A known labeler counts once on the same answers, with the first labeling; one of nobody known is compared within
        its row only, since in another row it may be the same person's.

        Args:
            samples: bootstrap resamples of the prompts.
            seed: of the bootstrap.
        """
        self._database.execute("DELETE FROM agreed")
        self._database.executemany(
            "INSERT INTO agreed VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET agree = agree + excluded.agree,"
            " total = total + excluded.total",
            self._decisions(),
        )
        names = self._database.execute("SELECT DISTINCT source, grp FROM agreed ORDER BY source, grp").fetchall()
        return [self._agreement(source, group, samples, seed) for source, group in names]

    def _decisions(self) -> Iterator[tuple[str, str, bytes, int, int]]:
        rows = self._database.execute(
            "SELECT item, row, prompt, source, grp, labeler, ranks FROM labelings ORDER BY item, row"
        )
        for _, of_item in groupby(rows, key=itemgetter(0)):
            for one, other in _pairs(_Said._make((*row[1:-1], json.loads(row[-1]))) for row in of_item):
                share, total = labeler_agreement([[one.ranks, other.ranks]])
                if not total:
                    continue
                group = one.group if one.group == other.group else _BETWEEN
                for key in {("", ""), (one.source, ""), (one.source, group)}:
                    yield (*key, one.prompt, round(share * total), total)

    def _agreement(self, source: str, group: str, samples: int, seed: int) -> Agreement:
        clusters = self._database.execute(
            "SELECT agree, total, count(*) FROM agreed WHERE source = ? AND grp = ? GROUP BY agree, total"
            " ORDER BY agree, total",
            (source, group),
        ).fetchall()
        agree = sum(agree * times for agree, _, times in clusters)
        decisions = sum(total * times for _, total, times in clusters)
        prompts = sum(times for _, _, times in clusters)
        low = high = None
        if prompts >= LEAST_CLUSTERS:
            of_agree, of_total, times = np.array(clusters, np.float64).T
            low, high = clustered_interval(of_agree, of_total, samples=samples, seed=seed, times=times)
        return Agreement(source, group, agree / decisions, low, high, decisions, prompts)


class _Said(NamedTuple):
    row: int
    prompt: bytes
    source: str
    group: str
    labeler: str
    ranks: list[int]


def _pairs(labelings: Iterable[_Said]) -> Iterator[tuple[_Said, _Said]]:
    """Every two labelings of the same answers by two people."""
    known: dict[str, _Said] = {}
    for _, of_row in groupby(labelings, key=lambda said: said.row):
        for one, other in combinations(said_in_row := list(of_row), 2):
            if not (one.labeler and other.labeler):
                yield one, other
        for said in said_in_row:
            if said.labeler:
                known.setdefault(said.labeler, said)
    yield from combinations(known.values(), 2)
