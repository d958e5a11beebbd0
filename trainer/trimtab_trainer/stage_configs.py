"""Sections of the run spec: one for each stage, every field with its meaning and source.

Sources in the descriptions: InstructGPT = Ouyang et al. 2022 (arXiv 2203.02155); Ziegler = Ziegler et al. 2019
(arXiv 1909.08593) and its code; Stiennon = Stiennon et al. 2020 (arXiv 2009.01325); N+ = Huang et al. 2024
(arXiv 2403.17031). Defaults are the preset `instructgpt`. This module imports no torch; `config` has the rest.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trimtab_trainer.data.splits import HELD_OUT_GROUP, AllBut, Groups

__all__ = [
    "AnswersAt",
    "CollectRankingsConfig",
    "Fraction",
    "OptimizerConfig",
    "Positive",
    "PretrainConfig",
    "RLInitConfig",
    "RewardModelConfig",
    "SFTBaselineConfig",
    "SFTConfig",
    "Section",
    "TrainingStage",
]

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the spec: frozen, unknown keys are errors, numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class OptimizerConfig(Section):
    """AdamW in float32, its learning rate and clipping; optionally with Muon.

    InstructGPT App. C: Adam, beta 0.9 and 0.95, in all stages.
    """

    learning_rate: float = Field(gt=0, le=1, description="Peak.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment (InstructGPT App. C).")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="Decay of the second moment (InstructGPT App. C).")
    eps: float = Field(default=1e-8, gt=0, le=1, description="AdamW's epsilon; N+ uses 1e-5 in PPO.")
    weight_decay: float = Field(
        default=0.0, ge=0, le=1, description="Decoupled decay of matrices; never of gains, biases and embeddings."
    )
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="cosine", description="Shape after the warm-up, down to `final_fraction` of the peak."
    )
    final_fraction: Fraction = Field(default=0.1, description="End of the schedule (InstructGPT App. C: 10 %).")
    warmup_steps: int = Field(
        default=0, ge=0, description="Steps of linear warm-up. 0: none (InstructGPT, SFT and RM)."
    )
    warmup_from: Fraction = Field(
        default=0.1, description="Where the warm-up starts, as a part of the peak (InstructGPT C.4: a tenth)."
    )
    muon_learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Peak of Muon (Jordan et al. 2024), which then trains the matrices of the blocks, by the same "
        "schedule; AdamW keeps embeddings, gains and heads. null: AdamW trains all (InstructGPT).",
    )
    max_gradient_norm: float | None = Field(
        default=1.0, gt=0, description="Gradients are scaled down to this global norm. null: no clipping."
    )


class TrainingStage(Section):
    """What the supervised stages share."""

    optimizer: OptimizerConfig
    micro_batch_tokens: int = Field(
        default=8192,
        ge=1,
        description="Most tokens of one forward, padding included; a batch with more is accumulated. Results do not "
        "depend on it beyond rounding.",
    )
    checkpoint_every: Positive = Field(default=50, description="Optimizer steps between two checkpoints.")
    keep_checkpoints: int = Field(default=2, ge=2, description="Checkpoints kept: the newest and those before it.")
    too_long: Literal["error", "leave_out"] = Field(
        default="error", description="A row with more than `max_tokens`: an error, or left out, counted and reported."
    )
    max_tokens: int | None = Field(
        default=None, ge=2, description="Most tokens of a sequence. null: the context length of the model."
    )
    skip_bad_rows: int = Field(default=0, ge=0, description="Bad rows tolerated in each file; each is reported.")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="Order of the data. null: the run's seed.")


class PretrainConfig(TrainingStage):
    """Language modelling from nothing, for the miniature: every token of packed documents counts."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=4e-3, warmup_steps=50, weight_decay=0.1)
    text: str = Field(default="{directory}/data/pretrain.jsonl", description="Rows with `text`.")
    held_out: str | None = Field(
        default="{directory}/data/pretrain_held_out.jsonl", description="Rows for the held-out loss. null: none."
    )
    epochs: Positive = Field(default=1, description="Passes over the text, each in another order.")
    batch_tokens: int = Field(default=2048, ge=8, description="Tokens of one optimizer step.")
    max_steps: int | None = Field(default=None, ge=1, description="Ends earlier. null: all epochs.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Residual dropout.")


class RLInitConfig(Section):
    """The start and KL reference of PPO (InstructGPT C.4): the base after few epochs with pretraining mixed in."""

    epochs: Positive = Field(default=2, description="Passes over the demonstrations (InstructGPT C.4).")
    pretraining_mix: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the examples that is pretraining text (InstructGPT C.4: 10 %)."
    )
    optimizer: OptimizerConfig | None = Field(default=None, description="null: the stage's.")


class SFTConfig(TrainingStage):
    """Supervised fine-tuning on completions only (InstructGPT App. C.1)."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=9.65e-6)
    initial_model: str = Field(default="base", description="Model reference: what to start from.")
    demonstrations: str = Field(
        default="{data}/demonstrations.jsonl.gz",
        description="Rows with prompt and completion, or `labeling:PROJECT`.",
    )
    held_out_groups: tuple[str, ...] = Field(
        default=(HELD_OUT_GROUP,),
        description="Labeler groups whose demonstrations are for the held-out loss only.",
    )
    limit: int | None = Field(default=None, ge=1, description="Only the first rows of the seeded order. null: all.")
    held_out_fraction: float = Field(
        default=0.05, ge=0, lt=1, description="Share of the prompts kept for the held-out loss, chosen by hash."
    )
    epochs: Positive = Field(default=16, description="Passes (InstructGPT C.1); each ends with a saved model.")
    batch_size: Positive = Field(default=32, description="Demonstrations of an optimizer step (InstructGPT C.1).")
    dropout: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Residual dropout (InstructGPT C.1). An architecture without one (Llama) gets it on the output of "
        "every attention and MLP block.",
    )
    pretraining: str | None = Field(
        default="{data}/pretrain.jsonl.gz", description="Rows with `text` for the mix. null: no mix possible."
    )
    pretraining_mix: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the examples of each batch that is pretraining text. 0: none."
    )
    pretraining_tokens: int = Field(default=128, ge=2, description="Tokens of one passage of the mix.")
    rl_init: RLInitConfig | None = Field(
        default=RLInitConfig(),
        description="Also trains the start of PPO apart, as `sft/rl_init`. null: PPO starts from `sft`.",
    )

    @model_validator(mode="after")
    def _mix_has_text(self) -> SFTConfig:
        mixes = [self.pretraining_mix, self.rl_init.pretraining_mix if self.rl_init else 0.0]
        if max(mixes) > 0 and self.pretraining is None:
            raise ValueError(f"pretraining_mix is {max(mixes)}, so `pretraining` must name a file with `text` rows")
        return self


class AnswersAt(Section):
    """Answers sampled of each prompt at one temperature."""

    temperature: float = Field(gt=0, le=10, description="Of the softmax.")
    count: Positive = Field(description="Answers of each prompt.")


class CollectRankingsConfig(Section):
    """Answers sampled by the generation service and ranked by simulated labelers; only for the miniature."""

    prompts: str = Field(default="{directory}/data/prompts.jsonl", description="Rows with `prompt`.")
    limit: int | None = Field(default=None, ge=1, description="Only the first prompts. null: all.")
    model: str = Field(default="sft", description="Model reference: what samples the answers.")
    answers: tuple[AnswersAt, ...] = Field(
        default=(AnswersAt(temperature=1.0, count=3), AnswersAt(temperature=1.5, count=2)),
        description="Answers sampled of each prompt; equal ones are merged.",
    )
    corrupted_answers: int = Field(
        default=4, ge=0, le=8, description="Answers of each prompt that are the right one with a known flaw."
    )
    reference_answer: bool = Field(default=False, description="Adds the right answer to those of each prompt.")
    labelers_per_prompt: Positive = Field(default=3, description="Training labelers who rank each prompt.")
    held_out_labelers_per_prompt: int = Field(
        default=1, ge=0, description="Held-out labelers who rank each prompt; for the accuracy only."
    )
    max_new_tokens: Positive = Field(default=24, description="Most tokens of an answer.")
    labelers: Literal["simulated"] = Field(
        default="simulated", description="Who ranks. People rank in the labeling service, not inside a run."
    )
    prompts_per_request: Positive = Field(default=500, description="Prompts between two saved parts of the result.")
    timeout_s: float = Field(default=600, gt=0, description="Longest wait for one part.")

    @model_validator(mode="after")
    def _four_to_nine(self) -> CollectRankingsConfig:
        total = sum(at.count for at in self.answers) + self.corrupted_answers + self.reference_answer
        if not 4 <= total <= 9:
            raise ValueError(
                f"answers and corrupted_answers make {total} answers of a prompt; allowed: 4..9 (InstructGPT 3.5)"
            )
        return self


class RewardModelConfig(TrainingStage):
    """The reward model: all pairs of a prompt's ranking as one batch element (InstructGPT 3.5, equation 1)."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=9e-6)
    initial_model: str = Field(
        default="sft/epoch-1",
        description="Model reference: any folder with the same tokenizer. A causal model gets a new head.",
    )
    rankings: str = Field(
        default="{data}/rankings.jsonl.gz", description="Rows with answers and rankings, or `labeling:PROJECT`."
    )
    rankings_held_out: str | None = Field(
        default=None, description="Rows for the accuracy. null: `held_out_fraction` of the prompts of `rankings`."
    )
    held_out_fraction: float = Field(default=0.1, ge=0, lt=1, description="Share of the prompts kept for accuracy.")
    demonstrations: str | None = Field(
        default="{data}/demonstrations.jsonl.gz",
        description="After training the offset is set so that these have mean reward 0 (InstructGPT 3.5). null: none.",
    )
    offset_rows: Positive = Field(default=500, description="Demonstrations that the offset is measured on, at most.")
    groups: tuple[str, ...] | dict[str, tuple[str, ...]] | None = Field(
        default=None,
        description="Labeler groups to train on: a list, or a list for some values of `source`. null: all. The others "
        "still measure.",
    )
    held_out_groups: tuple[str, ...] = Field(
        default=(HELD_OUT_GROUP,),
        description="Labeler groups never trained on where `groups` is null. They measure, on held-out prompts and on "
        "those that nobody else ranked.",
    )
    sources: tuple[str, ...] | None = Field(
        default=None,
        description="Rows to keep, by `source` or `source/subset`, such as anthropics/hh-rlhf/helpful-base. null: all.",
    )
    limit: int | None = Field(default=None, ge=1, description="Only the first rankings of the seeded order. null: all.")
    limit_held_out: int | None = Field(default=None, ge=1, description="Likewise of the held-out ones. null: all.")
    members: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Reward models trained, `reward_model/member-1` and so on, each with a head and an order of its "
        "own. `reward_model` is the first.",
    )
    disjoint_members: bool = Field(
        default=False,
        description="Each member learns from a part of the rankings that no other sees, so that one can judge a policy "
        "that was optimised against another. false: each from all of them.",
    )
    folds: int = Field(
        default=5,
        ge=2,
        le=20,
        description="Only `reward_model_folds`: groups of labelers, each held out once (InstructGPT 4.1: 5).",
    )
    epochs: Positive = Field(default=1, description="Passes; more than one overfits (InstructGPT C.2).")
    batch_size: Positive = Field(default=64, description="Prompts, each with all its answers (InstructGPT C.2).")
    margin: float = Field(
        default=0.0, ge=0, description="Score difference by which the better answer must win (InstructGPT: 0)."
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="Share of pairs taken for wrongly labelled (InstructGPT: 0)."
    )
    bootstrap_samples: int = Field(
        default=1000, ge=100, le=100_000, description="Resamples of the prompts for the interval of the accuracy."
    )

    @property
    def groups_trained_on(self) -> Groups:
        """The labeler groups whose labels are learnt."""
        return AllBut(self.held_out_groups) if self.groups is None else self.groups


class SFTBaselineConfig(Section):
    """Which epoch of SFT the others are compared with: the one whose answers have the highest mean reward."""

    prompts: Positive = Field(
        default=256, description="Held-out prompts of `ppo`, from the other end of the order than those of `evaluate`."
    )
    samples_per_prompt: Positive = Field(default=1, description="Answers of each epoch's model to a prompt.")
    bootstrap_samples: int = Field(default=1000, ge=100, le=100_000, description="Resamples of the prompts.")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="Of the draws. null: the run's seed.")


class EvaluatedModel(Section):
    """One model of the evaluation."""

    model: str = Field(description="Model reference.")
    demonstrations: int = Field(
        default=0, ge=0, le=16, description="Demonstrations put before each prompt: a few-shot prompted base."
    )


class EvaluateConfig(Section):
    """What the models of a run answer to held-out prompts, and what became of their pretraining."""

    models: dict[str, EvaluatedModel] = Field(
        default={
            "base": EvaluatedModel(model="base"),
            "sft": EvaluatedModel(model="sft"),
            "ppo_ptx": EvaluatedModel(model="ppo"),
        },
        min_length=1,
        description="Name to model; null leaves one of the preset out. The claims compare those named base, base_4x, "
        "few_shot, sft, ppo, ppo_without_kl, ppo_ptx, dpo and ptx_control.",
    )
    judge: str | None = Field(
        default=None,
        description="Model reference: a reward model that no policy was optimised against, such as "
        "`reward_model/member-2`, which judges every answer too. null: none.",
    )
    prompts: int | None = Field(default=256, ge=1, description="Held-out prompts of `ppo`, at most. null: all.")
    samples_per_prompt: Positive = Field(default=4, description="Answers of each model to a prompt, seeds of its own.")
    passages: int | None = Field(default=None, ge=1, description="Held-out pretraining passages. null: all.")
    bootstrap_samples: int = Field(default=2000, ge=100, le=100_000, description="Resamples of the prompts.")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="Of draws and resamples. null: the run's seed.")

    @field_validator("models", mode="before")
    @classmethod
    def _without_nulls(cls, models: Any) -> Any:
        return {name: one for name, one in models.items() if one is not None} if isinstance(models, dict) else models
