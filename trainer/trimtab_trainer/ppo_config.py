"""The section `ppo` of the run spec; sources of the descriptions as in `stage_configs`. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trimtab_trainer.stage_configs import Fraction, OptimizerConfig, Positive, Section

__all__ = ["PPOConfig", "RolloutSamplingConfig"]


class RolloutSamplingConfig(Section):
    """How PPO's rollouts are drawn. Truncated sampling is refused: engines renormalise and the ratio leaks."""

    temperature: float = Field(default=1.0, gt=0, le=10, description="InstructGPT C.4: 1; N+: 0.7.")
    max_new_tokens: Positive = Field(default=1024, description="InstructGPT: at most 1k tokens.")
    top_p: float = Field(default=1.0, description="Must stay 1 (off).")
    top_k: int = Field(default=0, description="Must stay 0 (off).")
    min_new_tokens: int = Field(default=0, description="Must stay 0 (off).")

    @model_validator(mode="after")
    def _nothing_truncated(self) -> RolloutSamplingConfig:
        for key, value, off in (
            ("top_p", self.top_p, 1.0),
            ("top_k", self.top_k, 0),
            ("min_new_tokens", self.min_new_tokens, 0),
        ):
            if value != off:
                raise ValueError(
                    f"{key} is {value}; allowed in PPO: {off} (off). The sampler would renormalise what is left while "
                    "the update scores the whole distribution, so the ratio is wrong before the first step (mean "
                    "0.895 instead of 1 at top-p 0.8)"
                )
        return self


class PPOConfig(Section):
    """PPO-ptx (InstructGPT 3.5, equation 2, and C.4)."""

    policy: str = Field(default="sft/rl_init", description="Model reference: the start and the KL reference.")
    reward_model: str = Field(
        default="reward_model", description="Model reference: scores rollouts; start of the values."
    )
    prompts: str = Field(default="{data}/prompts.jsonl.gz", description="Rows with `prompt`.")
    prompts_held_out: str | None = Field(default=None, description="Rows for evaluation. null: `held_out_fraction`.")
    held_out_fraction: float = Field(default=0.05, ge=0, lt=1, description="Share of prompts kept for evaluation.")
    limit: int | None = Field(default=None, ge=1, description="Only the first prompts of the seeded order. null: all.")
    max_prompt_tokens: Positive = Field(default=1024, description="InstructGPT: at most 1k tokens.")
    too_long: Literal["error", "leave_out"] = Field(
        default="error", description="A longer prompt: an error, or left out, counted and reported."
    )
    skip_bad_rows: int = Field(default=0, ge=0, description="Bad rows tolerated in each file; each is reported.")
    pretraining: str | None = Field(default="{data}/pretrain.jsonl.gz", description="Rows with `text` for ptx.")
    pretraining_held_out: str | None = Field(
        default=None,
        description="Rows with `text` whose loss is measured before and after. null: `held_out_fraction` of the "
        "documents of `pretraining`.",
    )

    iterations: Positive = Field(default=500, description="Batches of rollouts (InstructGPT: 256k episodes / 512).")
    prompts_per_iteration: Positive = Field(default=512, description="InstructGPT C.4: batch 512.")
    samples_per_prompt: Positive = Field(default=1, description="Completions of each prompt (InstructGPT: 1).")
    minibatches: Positive = Field(default=8, description="Optimizer steps of one epoch (InstructGPT C.4: 8 of 64).")
    epochs: Positive = Field(default=1, description="Inner epochs (InstructGPT C.4: 1; N+: 4).")
    sampling: RolloutSamplingConfig = RolloutSamplingConfig()

    optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(
            learning_rate=9.6e-6, schedule="constant", final_fraction=1.0, warmup_steps=80, eps=1e-5
        ),
        description="Of the policy: constant after 10 iterations (of 8 steps) from a tenth (InstructGPT C.4).",
    )
    value_optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(learning_rate=9e-6, schedule="constant", final_fraction=1.0, eps=1e-5),
        description="Of the value model (InstructGPT C.4: 9e-6).",
    )
    clip_range: float = Field(default=0.2, gt=0, lt=1, description="Clip of the ratio (InstructGPT C.4: 0.2).")
    value_clip_range: float | None = Field(
        default=0.2, gt=0, description="Absolute, in reward units (N+, Ziegler). null: values are not clipped."
    )
    gamma: Fraction = Field(default=1.0, description="Discount (InstructGPT C.4: none).")
    lam: Fraction = Field(default=0.95, description="Lambda of GAE (N+).")
    whiten_advantages: bool = Field(default=True, description="Over the whole batch (N+, Ziegler).")
    kl_coef: float = Field(default=0.02, ge=0, description="Beta (InstructGPT C.4: 0.02); the start of `adaptive`.")
    kl_controller: Literal["fixed", "adaptive"] = Field(default="fixed", description="Ziegler 2.2: adaptive.")
    kl_target: float = Field(default=6.0, gt=0, description="Nats of a sequence; only `adaptive` (Ziegler).")
    kl_horizon: Positive = Field(default=10_000, description="Episodes; only `adaptive` (Ziegler).")
    kl_stop: float | None = Field(
        default=None, gt=0, description="Ends the stage, well, once mean KL of a batch passes it. null: never."
    )
    kl_limit: float | None = Field(
        default=100.0,
        gt=0,
        description="Mean KL of a batch, nats of a sequence, beyond which the run has diverged: the batch is saved, "
        "generation goes back to the last good version, the run fails. null: no limit.",
    )
    loss_limit: float | None = Field(
        default=1000.0,
        gt=0,
        description="Largest size of the policy, value or pretraining loss of a minibatch; beyond it the run has "
        "diverged, as with `kl_limit`. null: no limit.",
    )
    update_kl_stop: float | None = Field(
        default=None,
        gt=0,
        description="Ends an iteration's update early once a minibatch is that far from the policy before it (k3, nats "
        "of a token; OpenAI baselines: 0.015). null: never.",
    )
    missing_eos_score: Literal["auto", "none"] | float = Field(
        default="auto",
        description="Replaces the score of a completion without EOS (N+, Ziegler: -1). auto: the lesser of -1 and the "
        "1 % quantile of the start's scores. none: keeps its score.",
    )
    normalize_rewards: bool = Field(
        default=False,
        description="Scores minus their running mean, over their running standard deviation (Ziegler 2.1). The values "
        "start from the reward model's own scale: give them a critic warm-up.",
    )
    ptx_coef: float = Field(default=27.8, ge=0, description="Gamma (InstructGPT C.4). 0: plain PPO.")
    ptx_ratio: float = Field(
        default=8.0, gt=0, description="Pretraining passages for each episode (InstructGPT C.4: 8)."
    )
    ptx_passage_tokens: int = Field(default=1024, ge=2, description="Tokens of a passage.")
    max_lag: int = Field(
        default=0,
        ge=0,
        le=16,
        description="Iterations that the policy which samples may be behind. Above 0 generation overlaps the update.",
    )
    importance_weight_cap: float = Field(
        default=2.0, ge=1, description="Truncates old/generation probability ratios at `max_lag` above 0."
    )
    old_logprobs: Literal["recompute", "generation"] = Field(
        default="recompute",
        description="recompute: first ratio is exactly 1. generation: within the tolerance; at `max_lag` above 0 the "
        "ratio itself is then to the sampler, and all importance weights are 1.",
    )
    ema_decay: float = Field(default=0.992, ge=0, lt=1, description="InstructGPT C.4; min(it, (1+n)/(10+n)). 0: off.")
    critic_warmup_iterations: int = Field(default=0, ge=0, description="First iterations that train the values only.")
    gate_tolerance: float | None = Field(
        default=None,
        gt=0,
        description="Start-up check: largest difference of log-probs between sampler, trainer and reference, in nats. "
        "null: 0.002 at float32, 1 at bfloat16 and for a sampler whose weights were rounded.",
    )
    gate_mean_tolerance: float | None = Field(
        default=None,
        gt=0,
        description="Likewise of their mean difference. null: 0.0002 at float32, 0.05 at bfloat16.",
    )
    mismatch_tolerance: float = Field(
        default=0.05, gt=0, description="Largest mean |generation - old| log-prob of a batch, in nats, that may train."
    )
    reported_samples: int = Field(
        default=4,
        ge=0,
        le=100,
        description="Rollouts of an iteration that are reported as text, for people: in events.jsonl and to the "
        "trainer service. 0: none.",
    )
    log_ratio_clamp: float = Field(default=20.0, gt=0, description="Log-ratios beyond are clamped and counted.")
    micro_batch_tokens: int = Field(default=8192, ge=1, description="Most tokens of one forward, padding included.")
    serving_dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None,
        description="What published weights are rounded to. bfloat16: few elements change in a step, and only these "
        "are sent. null: the trainer's own float32, of which nearly all change.",
    )
    rollout_timeout_s: float = Field(default=1800, gt=0, description="A batch not complete by then is an error.")
    checkpoint_every: Positive = Field(default=10, description="Iterations between two checkpoints.")
    keep_checkpoints: int = Field(default=2, ge=2, description="Checkpoints kept: the newest and those before it.")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="Prompt order, draws. null: the run's seed.")

    @model_validator(mode="after")
    def _fits(self) -> PPOConfig:
        episodes = self.prompts_per_iteration * self.samples_per_prompt
        if episodes % self.minibatches:
            raise ValueError(
                f"minibatches is {self.minibatches}, but an iteration has prompts_per_iteration * samples_per_prompt = "
                f"{episodes} episodes; allowed: a divisor of {episodes}"
            )
        if self.ptx_coef > 0 and self.pretraining is None:
            raise ValueError(f"ptx_coef is {self.ptx_coef}, so `pretraining` must name a file with `text` rows")
        if self.critic_warmup_iterations >= self.iterations:
            raise ValueError(
                f"critic_warmup_iterations is {self.critic_warmup_iterations}; allowed: less than iterations "
                f"({self.iterations})"
            )
        return self
