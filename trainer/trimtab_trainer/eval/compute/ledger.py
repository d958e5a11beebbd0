"""The compute ledger: what each stage of a run cost in FLOPs, by the field's formula and as its operations count.

By formula, for N parameters and D tokens (Kaplan et al. 2020, arXiv 2001.08361, section 2.1 and table 1):

    training   6 N D    a forward, and a backward of twice its cost
    forward    2 N D    scoring, log-probs, values, and generation, whose prompts are read once for each sample

N leaves out token and position embeddings and the output projection, as theirs does. *Counted* are the matrix products
of the model's own graph by `torch.utils.flop_counter`: attention over the sequence and the output projection on the
tokens that are predicted are in it, padding is not. Their ratio says how far the formula can be trusted for a model.

1 petaflop/s-day is 8.64e19 FLOPs. InstructGPT 5.1: 4.9 petaflop/s-days for SFT of the 175B model, 60 for PPO-ptx, 3,640
for the pretraining of GPT-3.

Pure arithmetic; `run` reads a run, `model_flops` counts a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trimtab_trainer.tables import Table

__all__ = [
    "INSTRUCTGPT",
    "PETAFLOP_S_DAY",
    "Cost",
    "Ledger",
    "ModelSize",
    "Pretraining",
    "Term",
    "Work",
    "ledger_notes",
    "ledger_record",
    "ledger_tables",
    "make_ledger",
]

PETAFLOP_S_DAY = 1e15 * 86_400

INSTRUCTGPT = {"sft": 4.9, "ppo": 60.0, "pretrain": 3640.0}
"""Petaflop/s-days of the 175B models of InstructGPT (section 5.1), by our names of the stages."""

_PASSES: Mapping[str, int] = {"training": 6, "forward": 2}


@dataclass(frozen=True)
class Work:
    """Tokens that one model read in a stage.

    Attributes:
        what: in words, such as "policy: PPO update".
        model: name of the model folder.
        kind: training (forward and backward) or forward.
        tokens: read, padding not.
        sequences: that they were in.
        predicted: of them, tokens whose probabilities the output projection gave; 0 for a model with a scalar head.
    """

    what: str
    model: str
    kind: Literal["training", "forward"]
    tokens: float
    sequences: float
    predicted: float = 0.0


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model.

    Attributes:
        formula: N of the formula: without embeddings and output projection.
        total: all of them.
    """

    formula: int
    total: int


@dataclass(frozen=True)
class Term:
    """One line of the ledger: `flops` = 6 or 2 times `parameters` times the tokens; `counted` None where no model could
    be counted."""

    work: Work
    parameters: int
    flops: float
    counted: float | None

    @property
    def formula(self) -> str:
        """The term with its numbers."""
        return f"{_PASSES[self.work.kind]} · {self.parameters:,} · {self.work.tokens:,.0f}"


@dataclass(frozen=True)
class Cost:
    """A stage: its terms, its wall time, and what of it is known to be missing from the sum."""

    stage: str
    terms: Sequence[Term]
    seconds: float
    missing: Sequence[str] = ()

    @property
    def flops(self) -> float:
        """By formula."""
        return sum(term.flops for term in self.terms)

    @property
    def counted(self) -> float | None:
        """By counting; None where some term has no count."""
        counted = [term.counted for term in self.terms]
        known = [one for one in counted if one is not None]
        return sum(known) if known and len(known) == len(counted) else None


@dataclass(frozen=True)
class Pretraining:
    """The budget that a run is compared with: FLOPs, and where the figure comes from."""

    flops: float
    origin: str


@dataclass(frozen=True)
class Ledger:
    """The stages of a run and the pretraining budget beside them; None where none is known."""

    stages: Sequence[Cost]
    pretraining: Pretraining | None

    @property
    def after_pretraining(self) -> float:
        """FLOPs of everything but the stage `pretrain`, by formula."""
        return sum(cost.flops for cost in self.stages if cost.stage != "pretrain")


def make_ledger(
    work: Mapping[str, Sequence[Work]],
    missing: Mapping[str, Sequence[str]],
    seconds: Mapping[str, float],
    *,
    sizes: Mapping[str, ModelSize],
    count: Callable[[Work], float | None],
    pretraining: Pretraining | None,
) -> Ledger:
    """Prices the work of every stage.

    Args:
        work: by stage.
        missing: sentences on what a stage did that nothing tells; by stage.
        seconds: wall time by stage.
        sizes: of every model that the work names.
        count: the counted FLOPs of a piece of work; None where its model cannot be counted.
        pretraining: the budget to compare with; None takes the run's own stage `pretrain`, where it has one.
    """

    def term(one: Work) -> Term:
        parameters = sizes[one.model].formula
        return Term(one, parameters, _PASSES[one.kind] * float(parameters) * one.tokens, count(one))

    stages = [
        Cost(stage, [term(one) for one in done if one.tokens], seconds.get(stage, 0.0), missing.get(stage, ()))
        for stage, done in work.items()
    ]
    own = next((cost for cost in stages if cost.stage == "pretrain" and cost.flops), None)
    if pretraining is None and own is not None:
        pretraining = Pretraining(own.flops, "the run's own stage pretrain")
    return Ledger(stages, pretraining)


def ledger_record(ledger: Ledger) -> dict[str, object]:
    """The ledger as JSON can hold it, nothing rounded."""
    budget = ledger.pretraining
    return {
        "stages": {
            cost.stage: {
                "flops": cost.flops,
                "petaflop_s_days": cost.flops / PETAFLOP_S_DAY,
                "counted_flops": cost.counted,
                "seconds": cost.seconds,
                "terms": [
                    {
                        "what": term.work.what,
                        "model": term.work.model,
                        "kind": term.work.kind,
                        "parameters": term.parameters,
                        "tokens": term.work.tokens,
                        "sequences": term.work.sequences,
                        "predicted_tokens": term.work.predicted,
                        "flops": term.flops,
                        "counted_flops": term.counted,
                    }
                    for term in cost.terms
                ],
                "missing": list(cost.missing),
            }
            for cost in ledger.stages
        },
        "after_pretraining_flops": ledger.after_pretraining,
        "after_pretraining_petaflop_s_days": ledger.after_pretraining / PETAFLOP_S_DAY,
        "pretraining_flops": budget.flops if budget else None,
        "pretraining_origin": budget.origin if budget else None,
        "share_of_pretraining": ledger.after_pretraining / budget.flops if budget else None,
    }


def ledger_tables(ledger: Ledger, *, name: str = "") -> list[Table]:
    """The sums of the stages with the paper's beside them, and every term.

    Args:
        ledger: of a run.
        name: of the run, for the titles; empty for none.
    """
    of_run = f" of {name}" if name else ""
    rows = [_stage_row(cost, ledger.pretraining, INSTRUCTGPT.get(cost.stage)) for cost in ledger.stages]
    after = [cost for cost in ledger.stages if cost.stage != "pretrain"]
    terms = [term for cost in after for term in cost.terms]
    both = INSTRUCTGPT["sft"] + INSTRUCTGPT["ppo"]
    all_after = Cost("all after pretraining", terms, sum(cost.seconds for cost in after))
    rows.append(_stage_row(all_after, ledger.pretraining, both))
    header = ["stage", "FLOPs", "petaflop/s-days", "FLOPs counted", "seconds", "of pretraining", "InstructGPT 175B"]
    lines = [
        [cost.stage, term.work.what, term.formula, _flops(term.flops), _flops(term.counted)]
        for cost in ledger.stages
        for term in cost.terms
    ]
    return [
        Table(f"Compute{of_run}", header, rows),
        Table(f"Compute{of_run}: terms", ["stage", "what", "formula", "FLOPs", "FLOPs counted"], lines, names=2),
    ]


def ledger_notes(ledger: Ledger) -> list[str]:
    """What the ledger lacks, and what pretraining it is compared with, in sentences."""
    stages: dict[str, list[str]] = {}
    for cost in ledger.stages:
        for one in cost.missing:
            stages.setdefault(one, []).append(cost.stage)
    unknown = "not known; `trimtab eval compute --pretraining-tokens` states one"
    origin = ledger.pretraining.origin if ledger.pretraining else unknown
    return [*(f"Not in {', '.join(names)}: {one}." for one, names in stages.items()), f"Pretraining: {origin}."]


def _stage_row(cost: Cost, budget: Pretraining | None, paper: float | None) -> list[str]:
    theirs = f"{100 * paper / INSTRUCTGPT['pretrain']:.3g} % ({paper:,g} petaflop/s-days)" if paper else ""
    if not cost.terms:
        return [cost.stage, "not known", "", "", f"{cost.seconds:,.0f}", "", theirs]
    return [
        cost.stage,
        _flops(cost.flops),
        f"{cost.flops / PETAFLOP_S_DAY:.3g}",
        _flops(cost.counted),
        f"{cost.seconds:,.0f}",
        _share(cost.flops, budget),
        theirs,
    ]


def _flops(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _share(flops: float, budget: Pretraining | None) -> str:
    return f"{100 * flops / budget.flops:.3g} %" if budget else ""
