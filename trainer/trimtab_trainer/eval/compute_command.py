"""`trimtab eval compute`."""

from __future__ import annotations

from pathlib import Path

import click

from trimtab.errors import ConfigError

__all__ = ["command"]

_NOTES = (
    "FLOPs: 6 N D for training and 2 N D for forwards and generation (Kaplan et al. 2020, table 1); N is without "
    "embeddings and output projection, D the tokens that the run's events say were read, padding not.",
    "FLOPs counted: the matrix products of each model's own graph by torch.utils.flop_counter on a sequence of the "
    "stage's mean length, scaled to its tokens: attention and output projection are in it. It is a count of "
    "operations, not a measurement of time; recomputed activations, retried samples and steps that a killed run made "
    "twice are in neither column.",
    "InstructGPT (section 5.1): 4.9 petaflop/s-days for SFT and 60 for PPO-ptx of the 175B model, 3,640 for the "
    "pretraining of GPT-3; its reward model of 6B is in neither figure.",
)


@click.command("compute")
@click.argument("directories", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--pretraining-flops",
    type=click.FloatRange(min=0, min_open=True),
    help="What pretraining the base model cost.  [default: the run's own stage pretrain]",
)
@click.option(
    "--pretraining-tokens",
    type=click.FloatRange(min=0, min_open=True),
    help="Tokens that the base model was pretrained on, for 6 N D.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for NAME.json and NAME.html, such as DIR/eval.")
@click.option("--name", default="compute", show_default=True, help="Of the findings' files.")
@click.option("--json", "as_json", is_flag=True, help="The figures as one JSON object.")
def command(
    directories: tuple[Path, ...],
    pretraining_flops: float | None,
    pretraining_tokens: float | None,
    out: Path | None,
    name: str,
    as_json: bool,
) -> None:
    """FLOPs of every stage of the runs in DIR..., in petaflop/s-days and beside a pretraining budget.

    By formula, every term with its numbers, and counted over the models' own graphs. Runs under way are counted as far
    as they are.
    """
    from trimtab_trainer.eval.compute import Pretraining, ledger_notes, ledger_record, ledger_tables
    from trimtab_trainer.eval.compute_run import pretraining_of, run_ledger
    from trimtab_trainer.eval.findings import Findings, check_place
    from trimtab_trainer.eval.options import file_digest, tell

    if pretraining_flops is not None and pretraining_tokens is not None:
        raise ConfigError(
            "pretraining-flops: give it or --pretraining-tokens, not both", field="pretraining-flops",
            value=pretraining_flops,
        )  # fmt: skip
    if out is not None:
        check_place(out, name)
    figures, tables, missing = {}, [], []
    for directory in directories:
        budget = None
        if pretraining_flops is not None:
            budget = Pretraining(pretraining_flops, "stated by --pretraining-flops")
        elif pretraining_tokens is not None:
            budget = pretraining_of(directory, pretraining_tokens)
        ledger = run_ledger(directory, pretraining=budget)
        figures[str(directory)] = ledger_record(ledger)
        tables += ledger_tables(ledger, name=str(directory) if len(directories) > 1 else "")
        missing += [f"{directory}: {note}" for note in ledger_notes(ledger)]
    findings = Findings(
        kind="compute",
        title="Compute ledger",
        settings={
            "directories": [str(directory) for directory in directories],
            "events_sha256": {str(directory): file_digest(directory / "events.jsonl") for directory in directories},
            "pretraining_flops": pretraining_flops,
            "pretraining_tokens": pretraining_tokens,
        },
        figures=figures,
        tables=tables,
        notes=[*_NOTES, *missing],
    )
    tell(findings, out, name, as_json=as_json)
