"""Which plots a run has: one table for the report, which the trainer writes, and for the page of the trainer service.

It stands in the client package because neither of the two may import the other, and both know this one.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

__all__ = ["RunPlot", "plots_of"]


@dataclass(frozen=True, slots=True)
class RunPlot:
    """One plot of a stage.

    Attributes:
        stage: whose steps it shows.
        title: above it.
        figures: metrics of a step, a line each.
        root_of: the metric whose square root is the x axis, where every figure has two points or more; empty: the
            step is, and a figure without two points has no line.
    """

    stage: str
    title: str
    figures: tuple[str, ...]
    root_of: str = ""

    @property
    def x_label(self) -> str:
        """What the x axis shows."""
        return "square root of the KL, nats" if self.root_of else "step"


_SECONDS = ("seconds_rollouts", "seconds_experience", "seconds_update", "seconds_publish")
_REWARD = RunPlot("ppo", "reward and gold score", ("reward", "score", "gold"))
_OTHERS = (
    RunPlot("ppo", "KL to the reference, nats of a sequence", ("mean_kl", "kl_k3")),
    RunPlot("ppo", "entropy, nats of a token", ("entropy",)),
    RunPlot("ppo", "completion: tokens", ("completion_tokens",)),
    RunPlot("ppo", "ended, repeated, clipped: share", ("ended_fraction", "repeated_fraction", "clip_fraction")),
    RunPlot("ppo", "value model: explained variance", ("explained_variance",)),
    RunPlot("ppo", "pretraining loss (ptx)", ("ptx_loss",)),
    RunPlot("ppo", "gradient norms", ("policy_gradient_norm", "ppo_gradient_norm", "ptx_gradient_norm")),
    RunPlot("ppo", "sampler against trainer: log-prob mismatch", ("mismatch_mean", "mismatch_max")),
    RunPlot("ppo", "versions that sampling was behind", ("lag",)),
    RunPlot("ppo", "publication: bytes sent over those of the model", ("publication_share",)),
    RunPlot("ppo", "seconds of a phase", _SECONDS),
    RunPlot("dpo", "DPO: loss", ("loss", "held_out_loss")),
    RunPlot("dpo", "DPO: accuracy of the implicit reward", ("accuracy", "held_out_accuracy")),
    RunPlot("dpo", "DPO: implicit reward of the better and the worse answer", ("better_reward", "worse_reward")),
    RunPlot("dpo", "DPO: log-prob of the better and the worse answer", ("better_logprob", "worse_logprob")),
    RunPlot("reward_model", "reward model: loss", ("loss",)),
    RunPlot("reward_model", "reward model: accuracy on its batches", ("accuracy",)),
    RunPlot("sft", "SFT: loss", ("loss", "held_out_loss")),
    RunPlot("pretrain", "pretraining: loss", ("loss",)),
)


def plots_of(stages: Container[str]) -> list[RunPlot]:
    """The plots of a run, in the order in which they are shown.

    Args:
        stages: that have done steps.
    """
    farthest = "ppo_without_kl" if "ppo_without_kl" in stages else "ppo"
    over_optimization = RunPlot(
        farthest,
        f"over-optimisation in {farthest}: proxy and gold over the root of the KL",
        ("reward", "gold"),
        root_of="mean_kl",
    )
    return [plot for plot in (_REWARD, over_optimization, *_OTHERS) if plot.stage in stages]
