"""`trimtab eval`: one line for each command, its module loaded only when it is invoked."""

from __future__ import annotations

import importlib
from typing import Any

import click

__all__ = ["eval"]

_COMMANDS = {
    "preference": (
        "preference.command",
        "Which model people prefer: win rates and Bradley-Terry over blind comparisons.",
    ),
    "reward-model": (
        "reward_model.command",
        "A reward model against labelers: held-out accuracy, k-fold over groups, calibration.",
    ),
    "tasks": ("tasks.command", "Benchmarks by lm-eval against the generation service: the alignment tax."),
    "toxicity": ("safety.toxicity_command", "Toxicity of completions under the paper's three instructions."),
    "toxicity-classifier": (
        "safety.toxicity_classifier_command",
        "Prepare a run that trains the scorer of `toxicity` as a reward model.",
    ),
    "bias": ("safety.bias_command", "CrowS-Pairs and Winogender: probability bias and entropy."),
    "truthfulness": ("safety.truthfulness_command", "TruthfulQA: MC1 and MC2 by log-probs."),
    "hallucination": ("safety.hallucination_command", "How often people flagged closed-domain answers as made up."),
    "over-optimization": (
        "over_optimization.command",
        "Proxy and gold reward over the root of the KL, from runs or sampled policies.",
    ),
    "compute": ("compute.command", "FLOPs of each stage of a run beside a pretraining budget."),
}
"""Of each its module and what it answers."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"trimtab_trainer.eval.{_COMMANDS[cmd_name][0]}")
        command: Any = module.command
        return command  # type: ignore[no-any-return]  # found by name

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, told) for name, (_, told) in _COMMANDS.items()])


@click.group(cls=_LazyGroup)
def eval() -> None:  # the command's name
    """Did a model get better? Figures with intervals, as JSON and as a page, for a run's report too."""
