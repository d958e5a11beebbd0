"""Gemma 3 from end to end: tied embeddings, mixed windows, several EOS, and a BOS that its template writes."""

from pathlib import Path

import pytest
import torch
from tests.models.architectures import WINDOW, save_architecture
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from tiny_models import TEMPLATE, make_tokenizer
from trimtab.types import ChatMessage
from trimtab_models.heads import completion_values, read_rewards, scores_of
from trimtab_models.loading import (
    enable_gradient_checkpointing,
    load_policy,
    load_reward_model,
    named_parameter_tensors,
    reward_model_from_policy,
    save_model,
    set_reward_bias,
    vocab_size,
)
from trimtab_models.logprobs import completion_logprobs
from trimtab_models.packing import pad_right
from trimtab_models.tokenizer import encode_conversation, encode_document, encode_prompt, load_tokenizer

torch.set_num_threads(1)
LENGTHS = (30, 5, 17)  # beyond the window and within


def make_gemma_tokenizer() -> PreTrainedTokenizerFast:
    """A BOS in front of every text, and a template that writes it too."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_architecture("gemma3", make_gemma_tokenizer(), tmp_path_factory.mktemp("gemma3") / "policy")


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return pad_right([torch.randint(5, 200, (n,), generator=generator).tolist() for n in LENGTHS])


def test_there_is_one_bos(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    hi = (ChatMessage(role="user", content="hi"), ChatMessage(role="assistant", content="hello"))
    encoded = [
        encode_prompt(tokenizer, "hi"),
        encode_prompt(tokenizer, "hi<bos><|end|>"),
        encode_conversation(tokenizer, hi),
        encode_document(tokenizer, "hi"),
    ]
    tokenizer.chat_template = None
    encoded.append(encode_prompt(tokenizer, "hi"))
    assert all(ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1 for ids in encoded)


def test_policy(folder: Path, tmp_path: Path) -> None:
    model, (ids, lengths) = load_policy(folder), rows()
    prompts = torch.tensor([4, 2, 9])
    enable_gradient_checkpointing(model.train())
    found, _ = completion_logprobs(model, ids, prompts, lengths - prompts)
    found.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        for row, (length, prompt) in enumerate(zip(lengths.tolist(), prompts.tolist(), strict=True)):
            own = model(input_ids=ids[row : row + 1, :length]).logits[0].log_softmax(-1)
            expected = own[prompt - 1 : -1].gather(-1, ids[row, prompt:length, None])[:, 0]
            assert (found[row, : length - prompt] - expected).abs().max() < 1e-4
    assert model.config.sliding_window == WINDOW < max(LENGTHS)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert vocab_size(model) == len(load_tokenizer(folder))

    save_model(model, load_tokenizer(folder), tmp_path / "again")
    one, two = named_parameter_tensors(model), named_parameter_tensors(load_policy(tmp_path / "again"))
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)
    assert "lm_head.weight" not in one


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reward_and_value_model(folder: Path, tmp_path: Path, dtype: str) -> None:
    tokenizer, (ids, lengths) = load_tokenizer(folder), rows()
    made = reward_model_from_policy(folder, tokenizer=tokenizer, seed=2, dtype=dtype)
    set_reward_bias(made, 0.25)
    save_model(made, tokenizer, tmp_path / "reward")
    model = load_reward_model(tmp_path / "reward", dtype=dtype)
    rewards = read_rewards(model, ids, lengths)
    assert torch.equal(rewards, read_rewards(made, ids, lengths))
    assert rewards.dtype == torch.float32 and rewards.std() > 1e-2

    alone = model.base_model(input_ids=ids[1:2, : LENGTHS[1]]).last_hidden_state[0]
    near = 1e-5 if dtype == "float32" else 5e-2
    assert (scores_of(model, alone)[-1] - rewards[1]).abs() < near
    values = completion_values(model, ids, lengths - 3, torch.full((3,), 3))
    assert (values[1] - scores_of(model, alone)[1:4]).abs().max() < near

    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", dtype=model.dtype).eval()
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    padded = torch.where(mask, ids, model.config.pad_token_id)
    theirs = stock(input_ids=padded, attention_mask=mask.long()).logits[:, 0].float()
    assert (theirs - 0.25 - rewards).abs().max() < near
