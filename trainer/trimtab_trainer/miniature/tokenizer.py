"""The miniature's tokenizer and its untrained base model.

One word is one token, so that a fact is three tokens and contexts stay under 96. There is no chat template: a prompt's
text ends in `answer :` and is encoded as it stands, without BOS (the first word of every prompt, `story`, serves
attention as the sink that BOS would be). Pad, BOS and EOS are three different tokens, since Hugging Face's sequence
classifiers find the last token by the id of the pad token.

The model is Llama-shaped with 3 layers: one to gather subject and verb at each object, one to find the same fact in
the story, one to carry what was found to the last token, where the reward is read.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from trimtab_trainer.miniature.world import vocabulary

SPECIAL_TOKENS = PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
"""The special tokens, with ids 0 to 3; an unknown word becomes `<unk>`."""

CONTEXT_TOKENS = 96
"""Context length of the model: the longest prompt (27 tokens) and answer (24, EOS not counted) leave room for prose."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer; text is cut at whitespace, decoding joins words by single spaces."""
    words = (*SPECIAL_TOKENS, *vocabulary())
    model = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def base_config(width: int = 64) -> LlamaConfig:
    """Shape of a base model: 3 layers, heads of 16, tied embeddings, rotary positions.

    Args:
        width: 64 makes 0.16 M parameters, which everything is trained from; 128 makes four times as many, the large
            base that the small aligned model is compared with.
    """
    return LlamaConfig(
        vocab_size=len(SPECIAL_TOKENS) + len(vocabulary()),
        hidden_size=width,
        intermediate_size=176 * width // 64,
        num_hidden_layers=3,
        num_attention_heads=width // 16,
        num_key_value_heads=width // 16,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        bos_token_id=SPECIAL_TOKENS.index(BOS),
        eos_token_id=SPECIAL_TOKENS.index(EOS),
        initializer_range=0.05,
    )


def untrained_policy(seed: int, width: int = 64) -> LlamaForCausalLM:
    """A base model before pretraining, fp32 on the CPU, its weights drawn from `seed` (sets the global seed)."""
    set_seed(seed)
    return LlamaForCausalLM(base_config(width))


def save_base(folder: str | Path, *, seed: int, width: int = 64) -> None:
    """Writes an untrained base model and its tokenizer as one Hugging Face folder."""
    untrained_policy(seed, width).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
