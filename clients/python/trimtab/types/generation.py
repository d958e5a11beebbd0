"""Records of the generation service: how to sample, what to sample, and the completions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from trimtab.errors import InvalidRequest, TrimtabError
from trimtab.types.shared import (
    DEFAULT_MAX_NEW_TOKENS,
    INT32_END,
    INT64_END,
    MAX_ID_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    MIN_TOP_P,
    FloatArray,
    Priority,
    Prompt,
    Record,
    ServedModel,
    Text,
    TokenIds,
    VersionRequirement,
    check_prompt,
    refuse_duplicates,
)

__all__ = [
    "Completion",
    "FinishReason",
    "GenerateRequest",
    "GenerateResult",
    "GenerationPrompt",
    "SamplingParams",
    "VersionSpan",
]


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "STOP"
    """An end-of-sequence token, a stop id (both kept in the completion) or a stop string."""
    LENGTH = "LENGTH"
    """`max_new_tokens` was reached."""
    CANCELLED = "CANCELLED"
    """It was given up. Inside a server only; never sent."""


class SamplingParams(Record):
    """How tokens are drawn, with the names and meanings of Hugging Face's GenerationConfig.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token and reports log-probs at temperature 1.
        top_p: keeps the smallest set of likeliest tokens that reaches this probability; 1 keeps all.
        top_k: keeps this many likeliest tokens; 0 keeps all.
        min_new_tokens: no end-of-sequence token before this many tokens.
        max_new_tokens: most tokens of a completion.
        stop_token_ids: end a completion besides the model's own end-of-sequence set.
        stop_strings: end a completion once they appear in its text.
        ignore_eos: runs on over end-of-sequence tokens.
    """

    temperature: float = Field(default=1.0, ge=0, le=MAX_TEMPERATURE)
    top_p: float = Field(default=1.0, ge=MIN_TOP_P, le=1)
    top_k: int = Field(default=0, ge=0, lt=INT32_END)
    min_new_tokens: int = Field(default=0, ge=0, lt=INT32_END)
    max_new_tokens: int = Field(default=DEFAULT_MAX_NEW_TOKENS, ge=1, lt=INT32_END)
    stop_token_ids: TokenIds = ()
    stop_strings: tuple[Annotated[Text, Field(min_length=1)], ...] = Field(default=(), max_length=MAX_STOP_STRINGS)
    ignore_eos: bool = False

    @field_validator("temperature")
    @classmethod
    def _no_trace_of_temperature(cls, temperature: float) -> float:
        if 0 < temperature < MIN_TEMPERATURE:
            raise ValueError(f"must be 0 or at least {MIN_TEMPERATURE:g}")
        return temperature

    @model_validator(mode="after")
    def _minimum_fits(self) -> SamplingParams:
        if self.min_new_tokens > self.max_new_tokens:
            raise InvalidRequest(
                f"min_new_tokens: {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}",
                field="min_new_tokens",
                value=self.min_new_tokens,
                limit=self.max_new_tokens,
            )
        return self

    @property
    def is_truncated(self) -> bool:
        """Whether tokens are drawn from another distribution than the one whose log-probs are reported."""
        return self.top_p < 1 or self.top_k > 0 or self.min_new_tokens > 0 or self.temperature == 0


class GenerationPrompt(Record):
    """One prompt of a generation request.

    Attributes:
        prompt_id: unique in the request; comes back with each completion.
        prompt: text, token ids or a conversation.
        seed: key of the random numbers, 64 bits.
        num_samples: completions wanted.
        first_sample_index: sample index of the first of them.
        max_new_tokens: overrides the request's for this prompt; 0 does not.
    """

    prompt_id: Text = Field(min_length=1, max_length=MAX_ID_CHARACTERS)
    prompt: Prompt
    seed: int = Field(default=0, ge=0, lt=2**64)
    num_samples: int = Field(default=1, ge=1, lt=INT32_END)
    first_sample_index: int = Field(default=0, ge=0, lt=INT32_END)
    max_new_tokens: int = Field(default=0, ge=0, lt=INT32_END)

    @model_validator(mode="after")
    def _has_prompt(self) -> GenerationPrompt:
        check_prompt(self.prompt)
        return self


class GenerateRequest(Record):
    """Asks for completions.

    Attributes:
        prompts: at least one, ids unique.
        sampling: how tokens are drawn.
        version: which policy version may sample them.
        max_wait_ms: how long a replica that is behind may wait for the version.
        priority: order among waiting work.
        return_text: adds the decoded text.
        model: by name; empty is the only one.
        per_item_errors: a bad prompt is answered with its error instead of refusing the request.
        request_id: in logs and traces; empty: the server makes one.
    """

    prompts: tuple[GenerationPrompt, ...] = Field(min_length=1)
    sampling: SamplingParams = SamplingParams()
    version: VersionRequirement = VersionRequirement()
    max_wait_ms: int = Field(default=0, ge=0, lt=INT64_END)
    priority: Priority = Priority.ROLLOUT
    return_text: bool = False
    model: Text = ""
    per_item_errors: bool = False
    request_id: Text = Field(default="", max_length=MAX_ID_CHARACTERS)

    @model_validator(mode="after")
    def _unique(self) -> GenerateRequest:
        refuse_duplicates((prompt.prompt_id for prompt in self.prompts), "prompts", "prompt_id")
        return self


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Which policy version sampled tokens [start_token, end_token) of a completion.

    `kv_kept` is true when the KV cache of the tokens before was kept from the older weights instead of recomputed.
    """

    start_token: int
    end_token: int
    version: int
    kv_kept: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished completion; `logprobs` is float32 [tokens], before top-p and top-k."""

    sample_index: int
    token_ids: tuple[int, ...]
    logprobs: FloatArray
    finish_reason: FinishReason
    version_spans: tuple[VersionSpan, ...]
    text: str = ""
    prompt_token_count: int = 0
    queue_ms: float = 0.0
    compute_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """One completion, or the error of one prompt (only with `per_item_errors`)."""

    prompt_id: str
    served: ServedModel
    completion: Completion | None = None
    error: TrimtabError | None = None
