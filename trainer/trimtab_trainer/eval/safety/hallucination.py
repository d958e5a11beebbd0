"""How often people flagged answers to closed-domain prompts as made up, as InstructGPT 4.1 reports it.

Closed-domain are tasks whose output should hold nothing that is not in the input, such as summarization and closed QA.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trimtab.errors import ConfigError
from trimtab_trainer.data.categories import paper_category
from trimtab_trainer.eval.preference.answers import flag_rates
from trimtab_trainer.eval.preference.bootstrap import Figure
from trimtab_trainer.eval.preference.labels import Label, contestants_of

__all__ = ["FLAG", "PAPER_RATES", "Rate", "hallucination_rates", "of_categories"]

PAPER_RATES = {"InstructGPT": 0.21, "GPT-3": 0.41}
"""Share of closed-domain answers that labelers called made up (Ouyang et al. 2022, section 1 and figure 4)."""

FLAG = "hallucination"


@dataclass(frozen=True)
class Rate:
    """How often a contestant hallucinates.

    Attributes:
        rate: share of the labels that answer the question with yes.
        above_baseline: its rate minus the baseline's; None of the baseline, and without one.
    """

    rate: Figure
    above_baseline: Figure | None


def of_categories(labels: Sequence[Label], categories: Iterable[str]) -> list[Label]:
    """Labels of prompts of these use cases, in whichever spelling ("closed_qa", "Closed QA").

    Raises:
        ConfigError: there is none; names the categories that the labels have.
    """
    wanted = {paper_category(category) for category in categories}
    found = [label for label in labels if paper_category(label.category) in wanted]
    if not found:
        known = sorted({label.category or "(none)" for label in labels})
        asked = ", ".join(sorted(wanted))
        raise ConfigError(
            f"categories: no label of {asked}; the files have {', '.join(known)}", field="categories", value=asked
        )
    return found


def hallucination_rates(labels: Sequence[Label], baseline: str | None, *, samples: int, seed: int) -> dict[str, Rate]:
    """By contestant; a label that leaves the question open does not count.

    Args:
        labels: those to count.
        baseline: a contestant to compare the others with.
        samples: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        ConfigError: the baseline is no contestant, or no label answers the question on one of its answers.
    """
    contestants_of(labels, baseline)
    means = flag_rates(labels, FLAG, samples=samples, seed=seed)
    if means is None:
        raise ConfigError(f"flags: no label answers the question {FLAG!r}", field="flags", value=FLAG)
    if baseline is not None and baseline not in means.names:
        raise ConfigError(
            f"baseline: no label answers the question {FLAG!r} on {baseline}", field="baseline", value=baseline
        )
    return {
        name: Rate(
            means.mean(name), means.difference(name, baseline) if baseline is not None and name != baseline else None
        )
        for name in means.names
    }
