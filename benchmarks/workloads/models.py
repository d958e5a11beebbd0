"""The models that every benchmark measures on: Llama-shaped, random weights, the same in every run."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trimtab_models.loading import reward_model_from_policy, save_model

VOCAB = 8192
PAD, EOS = 0, 1


def policy_model() -> LlamaForCausalLM:
    """The policy of 10.5 M parameters; as a reward model it has 8.4 M."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def make_folders(folder: Path) -> tuple[Path, Path]:
    """Folders of the policy and of a reward model made from it, with a tokenizer that only names its ids."""
    tokenizer = id_tokenizer(VOCAB)
    save_model(policy_model(), tokenizer, folder / "policy")
    reward = reward_model_from_policy(folder / "policy", tokenizer=tokenizer, seed=7)
    save_model(reward, tokenizer, folder / "reward")
    return folder / "policy", folder / "reward"


def id_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """A tokenizer that only names its ids: `w17` is 17."""
    words = {f"w{i}": i for i in range(2, vocab)} | {"<pad>": PAD, "<eos>": EOS}
    by_word = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    by_word.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=by_word, pad_token="<pad>", eos_token="<eos>")
