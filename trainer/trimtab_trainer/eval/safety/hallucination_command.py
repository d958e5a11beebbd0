"""`trimtab eval hallucination`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimtab_trainer.eval.options import Output
from trimtab_trainer.eval.preference.options import label_options, read, settings

if TYPE_CHECKING:
    from trimtab_trainer.eval.findings import Findings
    from trimtab_trainer.eval.preference.labels import Label
    from trimtab_trainer.eval.safety.hallucination import Rate

__all__ = ["command"]


@click.command("hallucination")
@label_options("hallucination")
@click.option(
    "--categories",
    default="closed_qa,extraction,summarization",
    show_default=True,
    help="Use cases of the prompts that count, separated by commas.",
)
def command(
    files: tuple[Path, ...],
    by: str,
    baseline: str | None,
    groups: tuple[str, ...],
    resamples: int,
    seed: int,
    skip_bad_rows: int,
    categories: str,
    output: Output,
) -> None:
    """How often labelers flagged answers to closed-domain prompts as made up, by contestant.

    FILE is as `trimtab labeling export` writes it; its rows need a `category`, and its labels the question
    "hallucination" answered.
    """
    from trimtab_trainer.eval.safety.hallucination import hallucination_rates, of_categories

    labels = read(files, by, groups, skip_bad_rows)
    counted = of_categories(labels, categories.split(","))
    rates = hallucination_rates(counted, baseline, samples=resamples, seed=seed)
    asked = settings(
        files,
        by=by,
        baseline=baseline,
        groups=groups,
        categories=categories,
        bootstrap_samples=resamples,
        seed=seed,
        skip_bad_rows=skip_bad_rows,
    )
    output.tell(_findings(counted, len(labels), rates, baseline, asked))


def _findings(
    counted: Sequence[Label], labels: int, rates: Mapping[str, Rate], baseline: str | None, asked: Mapping[str, Any]
) -> Findings:
    from trimtab_trainer.eval.findings import Findings
    from trimtab_trainer.eval.preference.tables import INTERVAL_NOTE, figure_table, points, too_few
    from trimtab_trainer.eval.safety.hallucination import PAPER_RATES
    from trimtab_trainer.tables import Table, percent

    answers = {(name,): rate.rate for name, rate in rates.items()}
    tables = [
        figure_table("Hallucination in closed-domain answers", ["model"], "rate", "answers", answers.items(), percent)
    ]
    above = {(name,): rate.above_baseline for name, rate in rates.items() if rate.above_baseline is not None}
    if above:
        tables.append(figure_table(f"Above {baseline}", ["model"], "points", "answers", above.items(), points))
    paper = [[name, percent(rate)] for name, rate in PAPER_RATES.items()]
    tables.append(Table("The paper's models (Ouyang et al. 2022, section 1)", ["model", "rate"], paper))
    open_questions = sum(len(label.contestants) for label in counted) - sum(one.rate.count for one in rates.values())
    notes = [
        f"{len(counted)} of {labels} labels are of closed-domain prompts. An answer counts once for each label that "
        f"answers the question; {open_questions} were left open and do not count.",
        "A rate is what labelers noticed; nothing here checks an answer against its prompt. The paper's rates are of "
        "its own prompts and labelers.",
        INTERVAL_NOTE,
        *too_few(answers.values()),
    ]
    figures = {
        "labels": len(counted),
        "open": open_questions,
        "rates": {name: asdict(rate) for name, rate in rates.items()},
        "paper": PAPER_RATES,
    }
    return Findings("hallucination", "Closed-domain hallucination", asked, figures, tables, notes=notes)
