"""Agreement between the labelers of a project, out of its labels."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import sqlalchemy as sa

from trimtab_services.labeling import projects
from trimtab_services.labeling.agreement import Proportion, Share, kendall_tau_b, pair_share, proportion
from trimtab_services.labeling.contents import TaskKind
from trimtab_services.labeling.projects import Project
from trimtab_services.labeling.qualification import score_of
from trimtab_services.labeling.tables import accounts, assignments, tasks

__all__ = ["AgreementReport", "LabelerAgreement", "PairAgreement", "report"]

Rankings = dict[int, dict[str, list[list[int]]]]
"""By task, then by labeler."""


@dataclass(frozen=True, slots=True)
class LabelerAgreement:
    """One labeler beside all others; the meaning of each field is in labeling.proto."""

    labeler: str
    group: str
    labels: int
    skips: int
    agreement: Proportion
    gold: Proportion
    median_ms: int
    passed: bool | None


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """Two labelers; the meaning of each field is in labeling.proto."""

    labeler_a: str
    labeler_b: str
    agreement: Proportion
    tau: float
    tau_tasks: int


@dataclass(frozen=True, slots=True)
class AgreementReport:
    """All of it, by names."""

    agreement: Proportion
    labelers: list[LabelerAgreement]
    pairs: list[PairAgreement]


def report(connection: sa.Connection, project_name: str) -> AgreementReport:
    """Measures the agreement in a project; a project of demonstrations has none, and tells counts and times only.

    Raises:
        NotFound: no such project.
    """
    project = projects.get(connection, project_name)
    # all that is asked of a label: a project may have 100,000 of them, of as many characters each
    ranking = sa.null() if project.kind is TaskKind.DEMONSTRATE else assignments.c.label["ranking"]
    query = (
        sa.select(
            assignments.c.task_id,
            assignments.c.state,
            ranking.label("ranking"),
            assignments.c.assign_time,
            assignments.c.done_time,
            assignments.c.gold_agreeing,
            assignments.c.gold_pairs,
            accounts.c.name,
            accounts.c.group,
            tasks.c.is_qualification,
        )
        .join(accounts, accounts.c.id == assignments.c.account_id)
        .join(tasks, tasks.c.id == assignments.c.task_id)
        .where(
            assignments.c.project_id == project.id,
            assignments.c.state != "leased",
            tasks.c.withdraw_time.is_(None),
        )
        .order_by(assignments.c.task_id, accounts.c.name)
    )
    rankings: Rankings = defaultdict(dict)
    by_labeler: dict[str, list[sa.RowMapping]] = defaultdict(list)
    for row in connection.execute(query).mappings():
        by_labeler[row["name"]].append(row)
        if row["state"] == "submitted" and not row["is_qualification"] and row["ranking"] is not None:
            rankings[row["task_id"]][row["name"]] = row["ranking"]
    shares = _shares(rankings)
    qualification = sa.select(sa.func.count()).where(
        tasks.c.project_id == project.id, tasks.c.is_qualification.is_(True), tasks.c.withdraw_time.is_(None)
    )
    wanted = connection.execute(qualification).scalar_one()
    return AgreementReport(
        agreement=_pooled(shares.values()),
        labelers=[_labeler(name, by_labeler[name], shares, project, wanted) for name in sorted(by_labeler)],
        pairs=[_pair(*names, shares[names], rankings) for names in sorted(shares)],
    )


def _shares(rankings: Rankings) -> dict[tuple[str, str], dict[int, Share]]:
    """For each two labelers, by name, what they share on each of their tasks."""
    shares: dict[tuple[str, str], dict[int, Share]] = defaultdict(dict)
    for task, by_name in rankings.items():
        for one, other in combinations(sorted(by_name), 2):
            shares[one, other][task] = pair_share(by_name[one], by_name[other])
    return shares


def _pooled(shares: Iterable[Mapping[int, Share]]) -> Proportion:
    """Over pairs of labelers; all that they said of one task stays together, since it is not independent."""
    agreeing: dict[int, int] = defaultdict(int)
    pairs: dict[int, int] = defaultdict(int)
    for by_task in shares:
        for task, share in by_task.items():
            agreeing[task] += share.agreeing
            pairs[task] += share.pairs
    return proportion(Share(agreeing[task], pairs[task]) for task in pairs)


def _labeler(
    name: str,
    rows: list[sa.RowMapping],
    shares: Mapping[tuple[str, str], Mapping[int, Share]],
    project: Project,
    wanted: int,
) -> LabelerAgreement:
    labels = [row for row in rows if row["state"] == "submitted" and not row["is_qualification"]]
    gold = [Share(row["gold_agreeing"], row["gold_pairs"]) for row in rows if row["gold_pairs"]]
    done = sum(row["is_qualification"] for row in rows)
    agreeing, pairs = sum(share.agreeing for share in gold), sum(share.pairs for share in gold)
    times = [1000 * (row["done_time"] - row["assign_time"]) for row in labels]
    return LabelerAgreement(
        labeler=name,
        group=rows[0]["group"],
        labels=len(labels),
        skips=sum(row["state"] == "skipped" for row in rows),
        agreement=_pooled(by_task for names, by_task in shares.items() if name in names),
        gold=proportion(gold),
        median_ms=round(statistics.median(times)) if times else 0,
        passed=score_of(project, wanted, done, agreeing, pairs).passed if wanted else None,
    )


def _pair(one: str, other: str, by_task: Mapping[int, Share], rankings: Rankings) -> PairAgreement:
    taus = [kendall_tau_b(rankings[task][one], rankings[task][other]) for task in by_task]
    defined = [tau for tau in taus if tau is not None]
    return PairAgreement(
        one, other, proportion(by_task.values()), statistics.fmean(defined) if defined else 0.0, len(defined)
    )
