"""The models that every benchmark measures on: Llama-shaped, random weights, the same in every run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trimtab_models.loading import reward_model_from_policy, save_model

VOCAB = 8192
"""Of the smallest model; prompts keep to its ids, which the larger ones have too."""
PAD, EOS = 0, 1
SHAPES: dict[str, dict[str, Any]] = {
    "10m": {
        "vocab_size": VOCAB,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    },
    "40m": {
        "vocab_size": VOCAB,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 10,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    },
    "135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "360m": {
        "vocab_size": 49152,
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "1b": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
}
"""10.5 M parameters, 8.4 M as a reward model; 40 M, 36 M as a reward model; the shapes of SmolLM2-135M and 360M; of
TinyLlama, 1.1 billion."""


def policy_model(
    shape: str | Mapping[str, Any] = "10m", *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> LlamaForCausalLM:
    """A policy of one of `SHAPES`, or of a shape like these, its weights made where it goes."""
    torch.manual_seed(7)
    sizes = SHAPES[shape] if isinstance(shape, str) else shape
    config = LlamaConfig(pad_token_id=PAD, bos_token_id=None, eos_token_id=EOS, dtype=dtype, **sizes)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    nn.Module.to(model, dtype=dtype)
    return model.eval()


def make_folders(folder: Path, shape: str = "10m", *, device: str | torch.device = "cpu") -> tuple[Path, Path]:
    """Folders of the policy and of a reward model made from it, with a tokenizer that only names its ids."""
    tokenizer = id_tokenizer(SHAPES[shape]["vocab_size"])
    save_model(policy_model(shape, device=device), tokenizer, folder / "policy")
    reward = reward_model_from_policy(folder / "policy", tokenizer=tokenizer, seed=7)
    save_model(reward, tokenizer, folder / "reward")
    return folder / "policy", folder / "reward"


def id_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """A tokenizer that only names its ids: `w17` is 17."""
    words = {f"w{i}": i for i in range(2, vocab)} | {"<pad>": PAD, "<eos>": EOS}
    by_word = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    by_word.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=by_word, pad_token="<pad>", eos_token="<eos>")
