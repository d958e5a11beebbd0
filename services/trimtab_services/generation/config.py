"""Configuration of the generation service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trimtab_services.runtime.config import ModelServiceConfig

__all__ = ["GenerationConfig"]


class GenerationConfig(ModelServiceConfig):
    """What `trimtab serve generation` takes besides what every model service takes."""

    engine: Literal["transformers"] = Field(default="transformers", description="What samples tokens.")
    slots: int = Field(default=32, ge=1, le=4096, description="Sequences that run at the same time.")
    max_sequence_tokens: int | None = Field(
        default=None, ge=2, description="Most tokens of prompt plus completion. Unset: the model's context length."
    )
    prefill_tokens_per_step: int = Field(
        default=512, ge=1, description="Most prompt tokens computed between two decode steps: bounds the stall."
    )
    prefill_chunk_tokens: int = Field(
        default=256, ge=1, description="Longest piece of one prompt in a forward; at most what a step computes."
    )
    kv_on_swap: Literal["recompute", "keep"] = Field(
        default="recompute", description="What becomes of the KV cache of a sequence that goes on under new weights."
    )
    max_items_per_request: int = Field(default=8192, ge=1, description="Most completions of one request.")
    max_queue_tokens: int = Field(
        default=4_000_000, ge=1, description="Most tokens (prompts and allowed new ones) waiting and running."
    )
