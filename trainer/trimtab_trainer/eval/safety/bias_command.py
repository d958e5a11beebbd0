"""`trimtab eval bias`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from trimtab.errors import ConfigError
from trimtab_trainer.digests import content_digest
from trimtab_trainer.eval.clusters import Measure
from trimtab_trainer.eval.contestants import Comparison, served
from trimtab_trainer.eval.continuations import Continuation, read_continuations, summed_logprobs
from trimtab_trainer.eval.findings import Findings, interval
from trimtab_trainer.eval.options import Output, choices_option, contestant_options, findings_options
from trimtab_trainer.eval.safety.bias import PairLogprobs, Pairs, bias_figures, read_crows_pairs, read_winogender
from trimtab_trainer.eval.safety.instructions import INSTRUCTIONS, context_of
from trimtab_trainer.tables import Table

__all__ = ["command"]

_PATH = click.Path(path_type=Path)
_NOTES = (
    "Entropy in bits of the choice between the two sentences of a pair, p proportional to the probability of each "
    "whole sentence behind the instruction: 1 is no preference. Intervals of 95 % by bootstrap over the pairs of "
    "CrowS-Pairs and the occupations of Winogender.",
    "A model that knows little has no preference either: read entropy beside the benchmarks. Sentences are in English "
    "and about stereotypes of the United States; neutral sentences of Winogender are left out.",
)


@click.command("bias")
@contestant_options(tokenizer=True)
@click.option("--crows-pairs", type=_PATH, help="Rows with sent_more, sent_less, bias_type.")
@click.option("--winogender", type=_PATH, help="Rows with sentid, sentence.")
@choices_option("--instruction", INSTRUCTIONS, "all three")
@findings_options("bias")
def command(
    compared: Comparison,
    crows_pairs: Path | None,
    winogender: Path | None,
    asked: list[str],
    resamples: int,
    seed: int,
    output: Output,
) -> None:
    """Probability bias on CrowS-Pairs and Winogender: entropy of the choice, and how often the stereotype wins.

    By log-probs of the reference service, one started on each model folder, or yours by host:port.
    """
    reference = compared.baseline
    files = {"crows_pairs": crows_pairs, "winogender": winogender}
    if not any(files.values()):
        raise ConfigError("give --crows-pairs, --winogender or both", field="crows_pairs")
    readers = {"crows_pairs": read_crows_pairs, "winogender": read_winogender}
    sets = {key: readers[key](path) for key, path in files.items() if path is not None}
    digests = {str(path): content_digest(path) for path in files.values() if path is not None}
    read = read_continuations(compared, _continuations(sets, asked))
    described: dict[str, Any] = {}
    found: dict[tuple[str, str, str], PairLogprobs] = {}
    for contestant in compared.contestants:
        with served("reference", contestant, compared.connection) as model:
            sums = iter(summed_logprobs(model, read[contestant.name]).reshape(-1, 2))
            described[contestant.name] = model.described()
        for key, of_set in sets.items():
            for instruction in asked:
                of_pairs = np.array([next(sums) for _ in of_set.pairs])
                found[key, contestant.name, instruction] = PairLogprobs(of_pairs[:, 0], of_pairs[:, 1])
    figures: dict[str, Any] = {
        key: {
            contestant.name: {
                instruction: bias_figures(
                    sets[key].pairs,
                    found[key, contestant.name, instruction],
                    None if contestant.name == reference else found[key, reference, instruction],
                    samples=resamples,
                    seed=seed,
                )
                for instruction in asked
            }
            for contestant in compared.contestants
        }
        for key in sets
    }
    findings = Findings(
        kind="bias",
        title="Bias: CrowS-Pairs and Winogender",
        settings={
            "models": described,
            "baseline": reference,
            "files": digests,
            "instructions": {one: INSTRUCTIONS[one] for one in asked},
            "bootstrap_samples": resamples,
            "seed": seed,
        },
        figures=figures,
        tables=[table for key in sets for table in _tables(sets[key], figures[key], reference)],
        notes=_NOTES,
    )
    output.tell(findings)


def _continuations(sets: Mapping[str, Pairs], asked: Sequence[str]) -> list[Continuation]:
    """Both sentences of each pair, under each instruction, of each data set."""
    return [
        Continuation(context_of(instruction), sentence, pair.where, field)
        for of_set in sets.values()
        for instruction in asked
        for pair in of_set.pairs
        for sentence, field in zip((pair.first, pair.second), of_set.fields, strict=True)
    ]


def _tables(of_set: Pairs, figures: Mapping[str, Any], baseline: str) -> list[Table]:
    rows = [
        [
            model,
            instruction,
            *(_cell(one, key) for key in ("entropy", "entropy_delta", "preferred", "preferred_delta")),
            str(one["pairs"]),
        ]
        for model, by_instruction in figures.items()
        for instruction, one in by_instruction.items()
    ]
    preferred = f"{of_set.first} preferred"
    header = ["model", "instruction", "entropy, bits", f"minus {baseline}", preferred, f"minus {baseline}"]
    tables = [Table(of_set.name, [*header, "pairs"], rows, names=2)]
    if of_set.name == "CrowS-Pairs":
        tables.append(_by_group(of_set, figures))
    return tables


def _by_group(of_set: Pairs, figures: Mapping[str, Any]) -> Table:
    first = {model: next(iter(by_instruction.items())) for model, by_instruction in figures.items()}
    (instruction,) = {name for name, _ in first.values()}
    groups = next(iter(first.values()))[1]["by_group"]
    rows = [
        [group, *(_cell(one["by_group"][group], "preferred") for _, one in first.values()), str(groups[group]["pairs"])]
        for group in groups
    ]
    title = f"{of_set.name}: {of_set.first} preferred by kind, instruction {instruction}"
    return Table(title, ["kind", *first, "pairs"], rows)


def _cell(one: Mapping[str, Any], key: str) -> str:
    return interval(Measure(**one[key])) if key in one else ""
