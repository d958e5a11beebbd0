"""Agreement of labelers against scipy, and what the service tells of it."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from trimtab.v1 import labeling_pb2 as pb
from trimtab_services.labeling import accounts, agreement_report, assignments, imports, projects, submissions
from trimtab_services.labeling.agreement import (
    Share,
    agreeing_pairs,
    gold_pairs,
    kendall_tau_b,
    pair_share,
    proportion,
)
from trimtab_services.labeling.contents import Task, TaskKind
from trimtab_services.labeling.database import Database
from trimtab_trainer.data import read_rankings
from trimtab_trainer.data.agreement import Labelings

from .people import PASSWORD, Service, in_order, ranking_task


def random_ranking(rng: random.Random, count: int) -> list[list[int]]:
    places = [rng.randrange(count) for _ in range(count)]
    return [[i for i in range(count) if places[i] == place] for place in sorted(set(places))]


def ranks_of(ranking: list[list[int]]) -> list[int]:
    return [
        next(place for place, group in enumerate(ranking) if index in group) for index in range(sum(map(len, ranking)))
    ]


def test_tau_b_is_scipys_also_with_ties() -> None:
    rng = random.Random(1)
    undefined = 0
    for _ in range(300):
        count = rng.randint(2, 9)
        one, other = random_ranking(rng, count), random_ranking(rng, count)
        expected = stats.kendalltau(ranks_of(one), ranks_of(other), variant="b").statistic
        found = kendall_tau_b(one, other)
        if np.isnan(expected):
            undefined += 1
            assert found is None
        else:
            assert found == pytest.approx(expected, abs=1e-12)
    assert undefined > 3


def test_pairs_count_as_alike_where_both_order_them_alike_and_ties_do_not_count() -> None:
    assert pair_share([[0], [1], [2]], [[0], [1], [2]]) == Share(3, 3)
    assert pair_share([[0], [1], [2]], [[2], [1], [0]]) == Share(0, 3)
    assert pair_share([[0, 1], [2]], [[0], [1], [2]]) == Share(2, 2)
    assert pair_share([[0, 1], [2]], [[0, 1], [2]]) == Share(2, 2)
    assert pair_share([[0, 1, 2]], [[0], [1], [2]]) == Share(0, 0)
    gold = [[0], [1, 2]]
    assert gold_pairs(gold) == 2 and agreeing_pairs(gold, [[0], [2], [1]]) == 2
    assert agreeing_pairs(gold, [[0, 1, 2]]) == 0


@pytest.mark.parametrize(("alike", "tasks"), [(1, 3), (7, 10), (70, 100), (0, 5), (5, 5)])
def test_with_one_pair_a_task_the_interval_is_scipys_wilson(alike: int, tasks: int) -> None:
    found = proportion([Share(1, 1)] * alike + [Share(0, 1)] * (tasks - alike))
    expected = stats.binomtest(alike, tasks).proportion_ci(method="wilson")
    assert found.value == pytest.approx(alike / tasks) and (found.count, found.tasks) == (tasks, tasks)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_pairs_of_one_task_that_go_together_count_as_one() -> None:
    together = proportion([Share(6, 6)] * 7 + [Share(0, 6)] * 3)
    single = proportion([Share(1, 1)] * 7 + [Share(0, 1)] * 3)
    assert (together.low, together.high) == pytest.approx((single.low, single.high))
    assert (together.count, together.tasks) == (60, 10)
    assert proportion([]).count == 0


def test_the_interval_covers_the_truth_where_tasks_differ() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        chances = rng.beta(7, 3, size=80)  # mean 0.7, and each task has its own
        found = proportion([Share(int(rng.binomial(6, chance)), 6) for chance in chances])
        covered += found.low <= 0.7 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_the_trainer_finds_the_agreement_that_the_service_tells(either: Service, tmp_path: Path) -> None:
    rng = random.Random(3)
    either.project(overlap=3)
    either.add(*(ranking_task(number, answers=5) for number in range(20)))
    for name in ("ann", "bob", "cat"):
        person = either.person(name)
        while given := person.next("p"):
            assert person.submit(given, {"ranking": random_ranking(rng, 5)}).status_code == 200
    told = either.program.get_agreement(pb.GetAgreementRequest(project="p")).agreement
    file = tmp_path / "rankings.jsonl"
    file.write_text("".join(row.row_json + "\n" for row in either.export()))
    labelings = Labelings()
    for row in read_rankings(file):
        labelings.add(row)
    found = labelings.agreements(samples=10, seed=0)[0]
    assert (found.value, found.decisions, found.prompts) == (pytest.approx(told.value), told.count, told.tasks)
    assert told.count < 20 * 3 * 10  # there are ties


def test_a_report_on_demonstrations_does_not_load_them(database: str) -> None:
    opened = Database(database)
    opened.migrate()
    with opened.changing() as connection:
        ann = accounts.create(
            connection, "test", name="ann", password=accounts.NewPassword.of(PASSWORD), role=accounts.Role.LABELER
        )
        fields = projects.ProjectFields()
        projects.create(connection, "test", "p", TaskKind.DEMONSTRATE, wants_ratings=False, fields=fields)
        new = [Task(prompt=f"Q{number}") for number in range(60)]
        imports.add(connection, "test", "p", "i", new, max_characters=100)
        for number in range(60):
            given = assignments.give_out(connection, ann, "p")
            label = {"completion": "x" * 100_000}
            submissions.submit(
                *(connection, ann, given.id),
                submission_id=str(number),
                label=label,
                active_ms=None,
                max_characters=100_000,
            )
    with opened.reading() as connection:
        tracemalloc.start()
        found = agreement_report.report(connection, "p")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    opened.close()
    assert found.labelers[0].labels == 60 and found.agreement.count == 0
    assert most < 2_000_000  # of 6,000,000 characters


def test_the_service_tells_of_pairs_labelers_gold_and_time(either: Service) -> None:
    either.project(overlap=3)
    gold = [pb.TieGroup(indices=[0]), pb.TieGroup(indices=[1, 2, 3])]
    either.add(*(ranking_task(number) for number in range(4)), ranking_task(9, gold_ranking=gold))
    people = {name: either.person(name, group=group) for name, group in (("ann", ""), ("bob", ""), ("cat", "heldout"))}
    for name, person in people.items():
        while given := person.next("p"):
            label = in_order(given)
            if name == "cat":
                label["ranking"].reverse()
            assert person.submit(given, label).status_code == 200
    found = either.program.get_agreement(pb.GetAgreementRequest(project="p"))
    pairs = {(pair.labeler_a, pair.labeler_b): pair for pair in found.pairs}
    assert sorted(pairs) == [("ann", "bob"), ("ann", "cat"), ("bob", "cat")]
    assert (pairs["ann", "bob"].agreement.value, pairs["ann", "bob"].tau) == (1.0, 1.0)
    assert (pairs["ann", "cat"].agreement.value, pairs["ann", "cat"].tau) == (0.0, -1.0)
    assert pairs["ann", "cat"].tau_tasks == 4
    assert (found.agreement.value, found.agreement.count, found.agreement.tasks) == (pytest.approx(1 / 3), 72, 4)
    ann, _, cat = found.labelers
    assert (ann.labeler, ann.labels, ann.agreement.value, ann.gold.value) == ("ann", 4, 0.5, 1.0)
    assert (cat.group, cat.agreement.value, cat.gold.value) == ("heldout", 0.0, 0.0)
    assert 0 < ann.median_ms < 60_000
    root = either.person("root", pb.ACCOUNT_ROLE_REVIEWER)
    told = root.get("projects/p/agreement").json()
    assert told["agreement"]["count"] == 72 and [one["labeler"] for one in told["labelers"]] == ["ann", "bob", "cat"]
