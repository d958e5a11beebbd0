"""The gate before an update: sampler, trainer and reference must give the same tokens the same log-probs."""

from __future__ import annotations

from trimtab.errors import Mismatch
from trimtab_trainer.config import PPOConfig
from trimtab_trainer.experience import Experience

__all__ = ["check_logprobs"]


def check_logprobs(config: PPOConfig, experience: Experience, *, first: bool) -> None:
    """Refuses to train where sampler, trainer and reference disagree about the same tokens.

    Args:
        config: its bounds, `gate_tolerance` and `mismatch_tolerance`, in nats.
        experience: with `old_logprobs` of the trainer.
        first: the stage's first batch, whose policy is the reference itself.

    Raises:
        Mismatch: on the first batch the largest difference is beyond `gate_tolerance`; on a later one at
            `max_lag` 0 the mean difference to the sampler is beyond `mismatch_tolerance`.
    """
    mask = experience.mask
    sampler = (experience.generation_logprobs - experience.old_logprobs)[mask].abs()
    reference = (experience.ref_logprobs - experience.old_logprobs)[mask].abs()
    if first:
        for name, differences in (("generation", sampler), ("reference", reference)):
            largest = float(differences.max())
            if not largest <= config.gate_tolerance:
                raise Mismatch(
                    f"start-up check: log-probs of {name} and trainer differ by up to {largest:.3g} nats on the same "
                    f"tokens; allowed by ppo.gate_tolerance: {config.gate_tolerance:g}. Training on this would "
                    "optimise the difference",
                    field="ppo.gate_tolerance",
                    value=largest,
                    limit=config.gate_tolerance,
                )
    elif config.max_lag == 0 and not float(sampler.mean()) <= config.mismatch_tolerance:
        raise Mismatch(
            f"log-probs of generation and trainer differ by {float(sampler.mean()):.3g} nats on average; allowed by "
            f"ppo.mismatch_tolerance: {config.mismatch_tolerance:g}",
            field="ppo.mismatch_tolerance",
            value=float(sampler.mean()),
            limit=config.mismatch_tolerance,
        )
