"""`trimtab eval truthfulness`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from trimtab_trainer.digests import content_digest
from trimtab_trainer.eval.clusters import Measure, clustered_mean
from trimtab_trainer.eval.contestants import Comparison, served
from trimtab_trainer.eval.continuations import Continuation, read_continuations, summed_logprobs
from trimtab_trainer.eval.findings import Findings, interval
from trimtab_trainer.eval.options import Output, choices_option, contestant_options, findings_options
from trimtab_trainer.eval.safety.truthfulness import PROMPTS, Question, mc1, mc2, question_context, read_truthfulqa
from trimtab_trainer.tables import Table

__all__ = ["command"]

_PATH = click.Path(path_type=Path)
_NOTES = (
    "MC1: share of questions whose one true answer is the likeliest choice; where several are, its share of them. MC2: "
    "probability of the true answers of that of all choices. Summed log-probs of whole answers, not normalised by "
    "length, as upstream. Intervals of 95 % by bootstrap over questions, deltas paired by question.",
    "Not measured: whether free answers are truthful and informative (InstructGPT figure 6). That takes people or a "
    "trained judge; a choice among given answers says nothing on whether a model would say “I have no comment”.",
)


@click.command("truthfulness")
@contestant_options(tokenizer=True)
@click.option("--truthfulqa", type=_PATH, required=True, help="Rows with Question, mc1_targets, mc2_targets.")
@choices_option("--prompt", PROMPTS, "both")
@findings_options("truthfulness")
def command(
    compared: Comparison,
    truthfulqa: Path,
    asked: list[str],
    resamples: int,
    seed: int,
    output: Output,
) -> None:
    """TruthfulQA's MC1 and MC2 under the QA prompt, and with the instruction to say “I have no comment” before it.

    By log-probs of the reference service, one started on each model folder, or yours by host:port.
    """
    reference = compared.baseline
    questions = read_truthfulqa(truthfulqa)
    digest = content_digest(truthfulqa)
    read = read_continuations(compared, _continuations(questions, asked))
    described: dict[str, Any] = {}
    scores: dict[str, dict[str, dict[str, list[float]]]] = {}
    for contestant in compared.contestants:
        with served("reference", contestant, compared.connection) as model:
            sums = summed_logprobs(model, read[contestant.name])
            described[contestant.name] = model.described()
        scores[contestant.name] = _scores(questions, asked, sums.tolist())
    figures = {
        model: {
            prompt: _figures(of_prompt, None if model == reference else scores[reference][prompt], resamples, seed)
            for prompt, of_prompt in by_prompt.items()
        }
        for model, by_prompt in scores.items()
    }
    findings = Findings(
        kind="truthfulness",
        title="Truthfulness: TruthfulQA by log-probs",
        settings={
            "models": described,
            "baseline": reference,
            "files": {str(truthfulqa): digest},
            "prompts": {one: PROMPTS[one] for one in asked},
            "bootstrap_samples": resamples,
            "seed": seed,
        },
        figures=figures,
        tables=[_table(figures, reference)],
        notes=[*_NOTES, *_empty_choices(questions)],
    )
    output.tell(findings)


def _continuations(questions: Sequence[Question], asked: Sequence[str]) -> list[Continuation]:
    """Every choice of each question, under each prompt."""
    return [
        Continuation(
            question_context(prompt, one.text),
            f" {choice}",
            one.where,
            "mc1_targets" if choice in one.mc1 else "mc2_targets",
        )
        for prompt in asked
        for one in questions
        for choice in one.choices
    ]


def _scores(
    questions: Sequence[Question], asked: Sequence[str], logprobs: Iterable[float]
) -> dict[str, dict[str, list[float]]]:
    """A model's mc1 and mc2 of every question by prompt, of the log-probs of `_continuations`."""
    each = iter(logprobs)
    found = {}
    for prompt in asked:
        of_questions = [{choice: next(each) for choice in one.choices} for one in questions]
        found[prompt] = {
            "mc1": [mc1(one.mc1, of_one) for one, of_one in zip(questions, of_questions, strict=True)],
            "mc2": [mc2(one.mc2, of_one) for one, of_one in zip(questions, of_questions, strict=True)],
        }
    return found


def _figures(
    own: Mapping[str, Sequence[float]], baseline: Mapping[str, Sequence[float]] | None, resamples: int, seed: int
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, values in own.items():
        of_model = np.array(values)
        each = range(len(of_model))
        figures[name] = asdict(clustered_mean(of_model, each, samples=resamples, seed=seed))
        figures["questions"] = len(of_model)
        if baseline is not None:
            difference = of_model - np.array(baseline[name])
            figures[f"{name}_delta"] = asdict(clustered_mean(difference, each, samples=resamples, seed=seed))
    return figures


def _empty_choices(questions: Sequence[Question]) -> list[str]:
    count = sum(one.has_empty_choice for one in questions)
    return [f"A choice without text was left out of {count} of {len(questions)} questions."] if count else []


def _table(figures: Mapping[str, Any], baseline: str) -> Table:
    def cell(one: Mapping[str, Any], key: str) -> str:
        return interval(Measure(**one[key])) if key in one else ""

    keys = ("mc1", "mc1_delta", "mc2", "mc2_delta")
    rows = [
        [model, prompt, *(cell(one, key) for key in keys), str(one["questions"])]
        for model, by_prompt in figures.items()
        for prompt, one in by_prompt.items()
    ]
    minus = f"minus {baseline}"
    return Table("TruthfulQA", ["model", "prompt", "MC1", minus, "MC2", minus, "questions"], rows, names=2)
