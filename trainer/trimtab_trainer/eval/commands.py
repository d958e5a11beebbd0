"""`trimtab eval`: one line for each command, its module loaded only when it is invoked."""

from __future__ import annotations

import importlib
from typing import Any

import click

__all__ = ["eval"]

_COMMANDS = {
    "preference": "Which model people prefer: win rates and Bradley-Terry over blind comparisons.",
    "reward-model": "A reward model against labelers: held-out accuracy, k-fold over groups, calibration.",
    "tasks": "Benchmarks by lm-eval against the generation service: the alignment tax.",
    "toxicity": "Toxicity of completions under the paper's three instructions.",
    "toxicity-classifier": "Prepare a run that trains the scorer of `toxicity` as a reward model.",
    "bias": "CrowS-Pairs and Winogender: probability bias and entropy.",
    "truthfulness": "TruthfulQA: MC1 and MC2 by log-probs.",
    "hallucination": "How often people flagged closed-domain answers as made up.",
    "over-optimization": "Proxy and gold reward over the root of the KL, from runs or sampled policies.",
    "compute": "FLOPs of each stage of a run beside a pretraining budget.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"trimtab_trainer.eval.{cmd_name.replace('-', '_')}_command")
        command: Any = module.command
        return command  # type: ignore[no-any-return]  # found by name

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup)
def eval() -> None:  # the command's name
    """Did a model get better? Figures with intervals, as JSON and as a page, for a run's report too."""
