"""Tiny models of the architectures whose output layer or attention is not Llama's; weights large enough to tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from trimtab_models.loading import save_model

WINDOW = 8
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "gpt2": ("gpt2", {}),
    "qwen2": ("qwen2", {}),
    "granite": ("granite", {"logits_scaling": 8.0}),
    "hyperclovax": ("hyperclovax", {"logits_scaling": 0.25}),
    "cohere": ("cohere", {"logit_scale": 0.0625}),
    "gemma2": ("gemma2", {"head_dim": 8, "final_logit_softcapping": 2.0}),
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "qwen2_sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": _MIXED},
    ),
    "gemma3": ("gemma3_text", {"head_dim": 16, "sliding_window": WINDOW, "layer_types": _MIXED}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}),
    "recurrent_gemma": ("recurrent_gemma", {}),
    "llama4": (
        "llama4_text",
        {"head_dim": 8, "attention_chunk_size": WINDOW, "num_local_experts": 2, "intermediate_size_mlp": 64},
    ),
}
"""Name of a case -> Hugging Face's model type and what its configuration adds."""

SLIDING = ("mistral", "qwen2_sliding", "gemma3")


def make_architecture(case: str, vocab_size: int = 200) -> PreTrainedModel:
    """An untrained causal model of three layers, in evaluation mode."""
    model_type, extra = _KINDS[case]
    config = AutoConfig.for_model(
        model_type,
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        **({} if model_type == "gpt2" else {"num_key_value_heads": 2}),
        **extra,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def save_architecture(case: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """The folder, with such a model and the tokenizer in it."""
    save_model(make_architecture(case, len(tokenizer)), tokenizer, folder)
    return folder
