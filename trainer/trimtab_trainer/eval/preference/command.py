"""`trimtab eval preference`."""

from __future__ import annotations

from pathlib import Path

import click

from trimtab_trainer.eval.options import Output
from trimtab_trainer.eval.preference.options import label_options, read, settings

__all__ = ["command"]


@click.command("preference")
@label_options("preference")
@click.option(
    "--bradley-terry/--no-bradley-terry",
    default=None,
    help="Strengths of all contestants on one scale.  [default: where there are more than two]",
)
def command(
    files: tuple[Path, ...],
    by: str,
    baseline: str | None,
    groups: tuple[str, ...],
    resamples: int,
    seed: int,
    skip_bad_rows: int,
    bradley_terry: bool | None,
    output: Output,
) -> None:
    """Which model people prefer: blind comparisons and rankings, as `trimtab labeling export` writes them to FILE.

    Win rates with ties as one half, Bradley-Terry strengths, the labelers' ratings and flags, and how often the answer
    shown first wins. A contestant's name is such as ppo@9:t0.7: model, version and temperature.
    """
    from trimtab_trainer.eval.preference.findings import preference_findings

    labels = read(files, by, groups, skip_bad_rows)
    asked = settings(
        files,
        by=by,
        baseline=baseline,
        groups=groups,
        bootstrap_samples=resamples,
        seed=seed,
        skip_bad_rows=skip_bad_rows,
    )
    findings = preference_findings(
        labels, asked, baseline=baseline, bradley_terry=bradley_terry, samples=resamples, seed=seed
    )
    output.tell(findings)
