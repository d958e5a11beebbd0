"""`trimtab eval tasks`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from trimtab_trainer.digests import content_digest
from trimtab_trainer.eval.clusters import Measure
from trimtab_trainer.eval.contestants import Comparison, Connection, Contestant, ask_services
from trimtab_trainer.eval.findings import Findings, check_new_file, interval
from trimtab_trainer.eval.options import Output, contestant_options, findings_options
from trimtab_trainer.eval.tasks.figures import (
    TASKS,
    check_rows,
    document_figures,
    document_texts,
    parse_tasks,
    task_figures,
)
from trimtab_trainer.eval.tasks.lm_eval import Front, LmEval, Work, find_lm_eval, front_of, run_lm_eval
from trimtab_trainer.tables import Table

__all__ = ["command"]

_PATH = click.Path(path_type=Path)
_NOTES = (
    "Zero-shot, with the prompts and metrics of lm-eval's own tasks; no chat template. Intervals of 95 % by bootstrap "
    "over documents, of squad_v2 over contexts and of drop over passages, since questions on one text go together; "
    "differences are paired, below zero is worse but for the perplexity.",
    "In squad_v2 an unanswerable question counts as right only where the answer has no word (NoAns_exact).",
)


@click.command("tasks")
@contestant_options(urls=True, tokenizer=True)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    required=True,
    metavar="NAME=FILE",
    help=f"A file of JSON lines with rows of {', '.join(TASKS)}; may be given again.",
)
@click.option("--limit", type=click.IntRange(1), help="Only the first documents of each file.")
@click.option("--lm-eval-python", metavar="PYTHON", help="Interpreter that has lm-eval.  [default: this one]")
@click.option(
    "--max-answer-tokens", type=click.IntRange(1), default=64, show_default=True, help="Of generated answers."
)
@click.option("--concurrency", type=click.IntRange(1, 64), default=8, show_default=True, help="Requests at a time.")
@click.option("--time-limit", default=14400.0, show_default=True, help="Seconds for lm-eval, of each model.")
@click.option("--samples-dir", type=_PATH, help="New folder that keeps what lm-eval wrote, by model.")
@findings_options("tasks")
def command(
    compared: Comparison,
    tasks: tuple[str, ...],
    limit: int | None,
    lm_eval_python: str | None,
    max_answer_tokens: int,
    concurrency: int,
    time_limit: float,
    samples_dir: Path | None,
    resamples: int,
    seed: int,
    output: Output,
) -> None:
    """Benchmarks by lm-eval, as a process of its own, against the generation service's HTTP front.

    One generation service after another is started on the model folders; or give host:port, or the URL of an HTTP
    front. Nothing is fetched from a hub. lm-eval comes with `pip install 'lm-eval[api]==0.4.13'`.
    """
    contestants, reference, connection = compared.contestants, compared.baseline, compared.connection
    folders = compared.tokenizers
    if samples_dir is not None:
        check_new_file("samples-dir", samples_dir)
    files = parse_tasks(tasks)
    for task, file in files.items():
        check_rows(task, file)
    digests = {task: content_digest(file) for task, file in files.items()}
    lm_eval = find_lm_eval(lm_eval_python)
    ask_services("generation", contestants, connection)
    if samples_dir is not None:
        samples_dir.mkdir(parents=True)
    work = Work(files, limit, max_answer_tokens, concurrency, connection.timeout_s, time_limit)
    described: dict[str, Any] = {}
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    cut: dict[str, dict[str, int]] = {}
    for contestant in contestants:
        click.echo(f"{contestant.name}: lm-eval runs {', '.join(files)}", err=True)
        with front_of(contestant, connection) as front:
            described[contestant.name] = front.described
            of_model = _run(lm_eval, front, contestant, folders[contestant.name], work, connection, samples_dir)
        rows[contestant.name] = of_model
        cut[contestant.name] = {
            task: _cut(of_task, folders[contestant.name], front.max_tokens, work) for task, of_task in of_model.items()
        }
    figures = _figures(rows, reference, resamples, seed)
    findings = Findings(
        kind="tasks",
        title="Benchmarks: the alignment tax",
        settings={
            "models": described,
            "baseline": reference,
            "tasks": {task: {"file": str(file), "sha256": digests[task]} for task, file in files.items()},
            "lm_eval": lm_eval.version,
            "limit": limit,
            "max_answer_tokens": max_answer_tokens,
            "bootstrap_samples": resamples,
            "seed": seed,
        },
        figures={"tasks": figures, "cut_documents": cut},
        tables=_tables(figures, list(rows), reference),
        notes=[*_NOTES, *_cut_notes(cut)],
    )
    output.tell(findings)


def _run(
    lm_eval: LmEval,
    front: Front,
    contestant: Contestant,
    tokenizer: Path,
    work: Work,
    connection: Connection,
    samples_dir: Path | None,
) -> dict[str, list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory(prefix="trimtab-lm-eval-") as folder:
        found = run_lm_eval(lm_eval, front, tokenizer, work, connection, Path(folder))
        if samples_dir is not None:
            shutil.copytree(Path(folder) / "out", samples_dir / contestant.name)
    return found


def _cut(rows: Sequence[Mapping[str, Any]], tokenizer_folder: Path, most: int, work: Work) -> int:
    """Documents whose context lm-eval cut at its start, since it was longer than the model's."""
    from trimtab_models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder)

    def is_cut(request: Mapping[str, Any]) -> bool:
        context, asked = request["arg_0"], request["arg_1"]
        text, more = (context + asked, 0) if isinstance(asked, str) else (context, work.max_answer_tokens)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"]) + more > most - 1

    return sum(any(map(is_cut, row["arguments"].values())) for row in rows)


def _figures(
    rows: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], baseline: str, resamples: int, seed: int
) -> dict[str, Any]:
    """By task, model and metric."""
    found = {
        model: {task: document_figures(task, of_task) for task, of_task in of_model.items()}
        for model, of_model in rows.items()
    }
    texts = {task: document_texts(task, of_task) for task, of_task in rows[baseline].items()}
    return {
        task: {
            model: task_figures(
                task,
                of_model[task],
                None if model == baseline else found[baseline][task],
                texts[task],
                samples=resamples,
                seed=seed,
            )
            for model, of_model in found.items()
        }
        for task in found[baseline]
    }


def _tables(figures: Mapping[str, Any], models: Sequence[str], baseline: str) -> list[Table]:
    values, deltas = [], []
    for task, by_model in figures.items():
        for metric, of_baseline in by_model[baseline].items():
            of_models = [by_model[model][metric] for model in models]
            cells = [_cell(metric, one) for one in of_models]
            values.append([task, metric, *cells, str(of_baseline["documents"])])
            deltas.append([task, metric, *(_cell(metric, one["delta"]) for one in of_models if "delta" in one)])
    tables = [Table("Benchmarks", ["task", "metric", *models, "documents"], values, names=2)]
    others = [model for model in models if model != baseline]
    if others:
        tables.append(Table(f"Minus {baseline}", ["task", "metric", *others], deltas, names=2))
    return tables


def _cell(metric: str, figure: Mapping[str, Any]) -> str:
    found = Measure(figure["value"], figure["low"], figure["high"])
    return interval(found, "{:.4g}".format) if metric == "perplexity" else interval(found)  # of a weak model: no bounds


def _cut_notes(cut: Mapping[str, Mapping[str, int]]) -> list[str]:
    told = [f"{model}: {count} of {task}" for model, by_task in cut.items() for task, count in by_task.items() if count]
    return [f"Documents whose beginning lm-eval cut off, since the model's context is shorter: {'; '.join(told)}."] * (
        len(told) > 0
    )
