"""Tokenizers and models of a few ten thousand parameters: real architectures, made on the spot."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

TEXT = """A trim tab is the small surface that steers the rudder that steers the ship.
The quick brown fox jumps over the lazy dog, twice; what does the dog do? It sleeps.
user: say something helpful. assistant: here is something helpful, honest and harmless."""

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(*, template: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 300 tokens with distinct pad and EOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", additional_special_tokens=specials[2:]
    )
    if template:
        fast.chat_template = TEMPLATE
    return fast


def make_policy(shape: str, vocab_size: int, *, seed: int = 0, hidden: int = 32, layers: int = 2) -> PreTrainedModel:
    """An untrained causal model of one of the shapes llama, gpt2, qwen2; weights large enough that logits differ."""
    torch.manual_seed(seed)
    common = {"vocab_size": vocab_size, "eos_token_id": 1, "bos_token_id": None, "pad_token_id": 0}
    if shape == "gpt2":
        config = GPT2Config(n_embd=hidden, n_layer=layers, n_head=4, n_positions=256, initializer_range=0.2, **common)
        return GPT2LMHeadModel(config)
    sizes = dict(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=256,
        initializer_range=0.2,
        **common,
    )
    if shape == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **sizes))
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **sizes))
