"""The section `dpo` of the run spec; imports no torch.

Rafailov = Rafailov et al. 2023 (arXiv 2305.18290); Azar = Azar et al. 2023 (arXiv 2310.12036).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trimtab_trainer.stage_configs import OptimizerConfig, Positive, Section

__all__ = ["DPOConfig"]


class DPOConfig(Section):
    """Direct preference optimisation (Rafailov) on the rankings of `reward_model`: what PPO is compared with.

    Which rankings are read, of whom, how many and how long they may be is said in the section `reward_model` alone, so
    that both learn from equal data.
    """

    policy: str = Field(default="sft/rl_init", description="Model reference: the start and the reference, as PPO's.")
    loss: Literal["sigmoid", "ipo"] = Field(
        default="sigmoid", description="sigmoid: Rafailov, equation 7. ipo: the squared loss of Azar, equation 17."
    )
    beta: float = Field(
        default=0.1,
        gt=0,
        description="How much a nat of log-ratio to the reference is worth: larger stays nearer to it (Rafailov: 0.1; "
        "0.5 for summaries). Azar's tau.",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="Share of pairs taken for wrongly labelled (conservative DPO)."
    )
    optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(
            learning_rate=1e-6, schedule="constant", final_fraction=1.0, warmup_steps=150, warmup_from=0.0
        ),
        description="Rafailov, appendix B: 1e-6 after 150 steps from 0, there with RMSprop.",
    )
    epochs: Positive = Field(default=1, description="Passes; each ends with a saved model, `dpo/epoch-N`.")
    batch_size: Positive = Field(
        default=64, description="Prompts of an optimizer step, each with all its pairs (Rafailov: 64 pairs)."
    )
    micro_batch_tokens: int = Field(default=8192, ge=1, description="Most tokens of one forward, padding included.")
    cache: str = Field(
        default="{directory}/reference_logprobs",
        min_length=1,
        description="Folder of the reference's log-probs, each asked for once. Runs may share one.",
    )
    reference_timeout_s: float = Field(
        default=1800, gt=0, description="Log-probs of a block of prompts that are not there by then are an error."
    )
    gate_tolerance: float | None = Field(
        default=None,
        gt=0,
        description="Start-up check: largest difference of log-probs between trainer and reference, in nats a token of "
        "an answer. null: 0.002 at float32, 0.1 at bfloat16.",
    )
    checkpoint_every: Positive = Field(default=50, description="Optimizer steps between two checkpoints.")
    keep_checkpoints: int = Field(default=2, ge=2, description="Checkpoints kept: the newest and those before it.")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="Order of the data. null: the run's seed.")

    @model_validator(mode="after")
    def _smooths_what_can_be_smoothed(self) -> DPOConfig:
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}; allowed with loss ipo: 0, whose target margin "
                "1 / (2 beta) is finite whatever the labels say"
            )
        return self
