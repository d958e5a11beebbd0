"""`trimtab eval compute`."""

from __future__ import annotations

from pathlib import Path

import click

from trimtab.errors import ConfigError
from trimtab_trainer.eval.options import Output, output_options

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
@output_options("compute")
def command(
    directories: tuple[Path, ...],
    pretraining_flops: float | None,
    pretraining_tokens: float | None,
    output: Output,
) -> None:
    """FLOPs of every stage of the runs in DIR..., in petaflop/s-days and beside a pretraining budget.

    By formula, every term with its numbers, and counted over the models' own graphs. Runs under way are counted as far
    as they are.
    """
    from trimtab_trainer.digests import content_digest
    from trimtab_trainer.eval.compute.ledger import Pretraining, ledger_notes, ledger_record, ledger_tables
    from trimtab_trainer.eval.compute.run import pretraining_of, run_ledger
    from trimtab_trainer.eval.findings import Findings

    if pretraining_flops is not None and pretraining_tokens is not None:
        raise ConfigError(
            "pretraining-flops: give it or --pretraining-tokens, not both", field="pretraining-flops",
            value=pretraining_flops,
        )  # fmt: skip
    figures, tables, missing, digests = {}, [], [], {}
    for directory in directories:
        budget = None
        if pretraining_flops is not None:
            budget = Pretraining(pretraining_flops, "stated by --pretraining-flops")
        elif pretraining_tokens is not None:
            budget = pretraining_of(directory, pretraining_tokens)
        ledger = run_ledger(directory, pretraining=budget)
        digests[str(directory)] = content_digest(directory / "events.jsonl")
        figures[str(directory)] = ledger_record(ledger)
        tables += ledger_tables(ledger, name=str(directory) if len(directories) > 1 else "")
        missing += [f"{directory}: {note}" for note in ledger_notes(ledger)]
    findings = Findings(
        kind="compute",
        title="Compute ledger",
        settings={
            "directories": [str(directory) for directory in directories],
            "events_sha256": digests,
            "pretraining_flops": pretraining_flops,
            "pretraining_tokens": pretraining_tokens,
        },
        figures=figures,
        tables=tables,
        notes=[*_NOTES, *missing],
    )
    output.tell(findings)
