"""`trimtab eval toxicity`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from trimtab.errors import ConfigError
from trimtab.types import SamplingParams
from trimtab_trainer.data.writers import json_line, new_files
from trimtab_trainer.digests import content_digest
from trimtab_trainer.eval.clusters import Measure
from trimtab_trainer.eval.contestants import Comparison, Connection, Contestant, ask_services, served
from trimtab_trainer.eval.findings import Findings, check_new_file, interval
from trimtab_trainer.eval.options import Output, choices_option, contestant_options, findings_options
from trimtab_trainer.eval.safety.instructions import INSTRUCTIONS, NONE, instructed
from trimtab_trainer.eval.safety.toxicity import (
    SCORED_PROMPT,
    TOXIC,
    ToxicityPrompt,
    known_toxicity,
    read_toxicity_prompts,
    scorer_accuracy,
    scorer_auc,
    toxicity_figures,
)
from trimtab_trainer.eval.safety.toxicity_services import check_prompts, complete, parse_scorer, scores_of
from trimtab_trainer.evaluation import Accuracy
from trimtab_trainer.tables import Table, percent

__all__ = ["command"]

_PATH = click.Path(path_type=Path)
_NOTES = (
    "Score: the scorer's raw output, higher is more toxic; mean over prompts of the mean over their completions. Above "
    "human: share of completions scored as more toxic than what the person wrote after the same prompt. Intervals of "
    "95 % by bootstrap over prompts, differences paired by prompt.",
    "The scorer is right where it orders two people's continuations as their known toxicity (Perspective) does, "
    "toxicities of one tenth left out; its AUC is of those of 0.5 and more against the others. Both are held-out "
    "figures only if it was not trained on these rows. A figure is no better than its scorer, and differences that are "
    "small beside its errors say nothing.",
    "Empty completions are not scored: a model that says nothing is not toxic, and of no use either.",
)


@dataclass(frozen=True)
class _Scored:
    """Texts and scores of the completions of each prompt; those of no text are left out of both."""

    texts: Sequence[Sequence[str]]
    scores: Sequence[Sequence[float]]


@click.command("toxicity")
@contestant_options()
@click.option("--prompts", "file", type=_PATH, required=True, help="Rows of RealToxicityPrompts: prompt, continuation.")
@click.option(
    "--scorer",
    "place",
    required=True,
    metavar="PLACE",
    help="folder:PATH of a classifier, such as `trimtab eval toxicity-classifier` prepares, or grpc:HOST:PORT of a "
    "reward service; a higher reward is more toxic.",
)
@choices_option("--instruction", INSTRUCTIONS, "all three")
@click.option(
    "--limit",
    type=click.IntRange(2),
    help="Completes only the first prompts; the scorer is still measured on all rows.",
)
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True, help="Completions of each prompt.")
@click.option("--temperature", default=0.0, show_default=True, help="0 takes the likeliest token, as the paper.")
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--max-new-tokens", default=64, show_default=True, help="A completion also ends at a line break.")
@click.option("--completions", type=_PATH, help="Also write every text with its score there: it is offensive.")
@findings_options("toxicity")
def command(
    compared: Comparison,
    file: Path,
    place: str,
    asked: list[str],
    limit: int | None,
    samples: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    completions: Path | None,
    resamples: int,
    seed: int,
    output: Output,
) -> None:
    """Toxicity of completions under the paper's three instructions: respectful, none, toxic.

    By the generation service, one started on each model folder, or yours by host:port. Texts are shown and kept nowhere
    but in --completions.
    """
    contestants, reference, connection = compared.contestants, compared.baseline, compared.connection
    scorer = parse_scorer(place)
    if completions is not None:
        check_new_file("completions", completions)
    if temperature == 0 and samples > 1:
        raise ConfigError(f"samples: {samples} at temperature 0 are all equal", field="samples", value=samples, limit=1)
    sampling = SamplingParams(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, stop_strings=("\n",))
    written = read_toxicity_prompts(file)
    rows = written[:limit]
    digest = content_digest(file)
    ask_services("generation", contestants, connection)
    ask_services("reward", [scorer], connection)
    check_prompts(contestants, file, rows, asked, max_new_tokens)
    described: dict[str, Any] = {}
    texts: dict[tuple[str, str], list[list[str]]] = {}
    for contestant in contestants:
        described[contestant.name] = _complete(contestant, connection, rows, asked, sampling, samples, seed, texts)
    with served("reward", scorer, connection) as judge:
        described_scorer = judge.described()
        human = scores_of(judge, [row.human for row in written])
        found = {key: _score(judge, of_key) for key, of_key in texts.items()}
    without = {model: scored for (model, instruction), scored in found.items() if instruction == NONE}
    accuracy, auc = _right(written, human, resamples, seed)
    figures: dict[str, Any] = {
        "scorer_accuracy": asdict(accuracy) if accuracy is not None else None,
        "scorer_auc": asdict(auc) if auc is not None else None,
        "models": {
            contestant.name: {
                instruction: toxicity_figures(
                    rows,
                    found[contestant.name, instruction].scores,
                    human[: len(rows)],
                    None if contestant.name == reference else found[reference, instruction].scores,
                    without[contestant.name].scores if contestant.name in without and instruction != NONE else None,
                    samples=resamples,
                    seed=seed,
                )
                for instruction in asked
            }
            for contestant in contestants
        },
    }
    findings = Findings(
        kind="toxicity",
        title="Toxicity: RealToxicityPrompts",
        settings={
            "models": described,
            "baseline": reference,
            "scorer": described_scorer,
            "scored_prompt": SCORED_PROMPT,
            "files": {str(file): digest},
            "prompts": len(rows),
            "rows": len(written),
            "instructions": {one: INSTRUCTIONS[one] for one in asked},
            "sampling": sampling.model_dump(),
            "samples": samples,
            "bootstrap_samples": resamples,
            "seed": seed,
        },
        figures=figures,
        tables=_tables(figures["models"], accuracy, auc, reference),
        notes=_NOTES,
    )
    if completions is not None:
        _write(completions, rows, found)
    output.tell(findings)


def _complete(
    contestant: Contestant,
    connection: Connection,
    rows: Sequence[ToxicityPrompt],
    asked: Sequence[str],
    sampling: SamplingParams,
    samples: int,
    seed: int,
    texts: dict[tuple[str, str], list[list[str]]],
) -> dict[str, Any]:
    """Adds a contestant's completions by its name and instruction; returns which model it is."""
    with served("generation", contestant, connection) as model:
        for instruction in asked:
            prompts = [instructed(instruction, row.prompt) for row in rows]
            texts[contestant.name, instruction] = complete(
                model, prompts, sampling=sampling, samples=samples, seed=seed
            )
        return model.described()


def _score(judge: Any, texts: Sequence[Sequence[str]]) -> _Scored:
    kept = [[text for text in of_prompt if text] for of_prompt in texts]
    scores = iter(scores_of(judge, [text for of_prompt in kept for text in of_prompt]))
    return _Scored(kept, [[next(scores) for _ in of_prompt] for of_prompt in kept])


def _right(
    rows: Sequence[ToxicityPrompt], human: Sequence[float], resamples: int, seed: int
) -> tuple[Accuracy | None, Measure | None]:
    """How often the scorer orders people's texts rightly, and the area under its ROC curve."""
    known = known_toxicity(rows)
    by_row = {row.number: score for row, score in zip(rows, human, strict=True)}
    scores = [by_row[row.number] for row in known]
    if len(known) < 2:
        return None, None
    accuracy = scorer_accuracy(known, scores, samples=resamples, seed=seed)
    return accuracy, scorer_auc(known, scores, samples=resamples, seed=seed)


def _write(path: Path, rows: Sequence[ToxicityPrompt], found: Mapping[tuple[str, str], _Scored]) -> None:
    with new_files(path) as (lines,):
        for (model, instruction), scored in found.items():
            for row, texts, scores in zip(rows, scored.texts, scored.scores, strict=True):
                for text, score in zip(texts, scores, strict=True):
                    of_row = {"prompt": row.prompt, "completion": text, "score": score}
                    lines.write(json_line({"model": model, "instruction": instruction, **of_row}))


def _tables(figures: Mapping[str, Any], accuracy: Accuracy | None, auc: Measure | None, baseline: str) -> list[Table]:
    right = percent(accuracy.value) if accuracy is not None else "unknown"
    rows = []
    for model, by_instruction in figures.items():
        for instruction, one in by_instruction.items():
            cells = [_cell(one.get(key)) for key in ("score", "score_delta", "instruction_delta")]
            above = _cell(one.get("above_human"), percent)
            counts = f"{one['scored_prompts']} of {one['prompts']}"
            rows.append([model, instruction, *cells, above, counts, right])
    header = [
        "model",
        "instruction",
        "score",
        f"minus {baseline}",
        f"minus {NONE}",
        "above human",
        "prompts answered",
        "scorer right",
    ]
    tables = [Table("Toxicity", header, rows, names=2)]
    if accuracy is not None:
        area = interval(auc) if auc is not None else "not known"
        row = [interval(accuracy, percent), str(accuracy.pairs), str(accuracy.prompts), area]
        header = ["right", "pairs", "groups of texts", f"AUC, toxic from {TOXIC} on"]
        tables.append(Table("The scorer on what people wrote", header, [row], names=0))
    return tables


def _cell(figure: Mapping[str, Any] | None, shown: Callable[[float], str] = "{:.3f}".format) -> str:
    return interval(Measure(**figure), shown) if figure is not None else ""
