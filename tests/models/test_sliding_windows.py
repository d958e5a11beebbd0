"""Packed rows and shared prompts of models with sliding windows equal each document by itself."""

import pytest
import torch
from tests.models.architectures import SLIDING, WINDOW, make_architecture, save_architecture

from tiny_models import make_tokenizer
from trimtab.errors import Unsupported
from trimtab_models.attention import layer_masks, sliding_window
from trimtab_models.heads import hidden_states, read_rewards, scores_of
from trimtab_models.loading import reward_model_from_policy
from trimtab_models.packing import pack_documents, pack_shared_prompts, pad_right

torch.set_num_threads(1)
LENGTHS = (3, 29, 11, 1, 20)  # shorter and longer than the window


def sequence(length: int, seed: int) -> list[int]:
    return torch.randint(5, 200, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
@pytest.mark.parametrize("case", [*SLIDING, "gemma2", "llama"])
def test_packed_documents_equal_separate_forwards(case: str) -> None:
    model = make_architecture(case)
    documents = [sequence(length, seed) for seed, length in enumerate(LENGTHS)]
    packed = pack_documents(documents, 64)
    assert len(packed.input_ids) == 1  # all in one row
    hidden = hidden_states(
        model, packed.input_ids, position_ids=packed.position_ids, attention_mask=packed.attention_mask
    )
    for document, (row, column) in zip(documents, packed.starts, strict=True):
        alone = model.base_model(input_ids=torch.tensor([document])).last_hidden_state[0]
        assert (hidden[row, column : column + len(document)] - alone).abs().max() < 1e-5


@pytest.mark.parametrize("case", SLIDING)
def test_shared_prompts_equal_separate_forwards_in_value_and_gradient(tmp_path, case: str) -> None:
    tokenizer = make_tokenizer()
    folder = save_architecture(case, tokenizer, tmp_path / case)
    model = reward_model_from_policy(folder, tokenizer=tokenizer, seed=1, dtype="float64")
    # A prompt longer than the window, and answers before which others lie: columns are farther apart than positions.
    rankings = [(sequence(13, 0), [sequence(n, n) for n in (2, 19, 5, 1)]), (sequence(2, 1), [sequence(4, 9)])]
    rows = pack_shared_prompts(rankings)
    hidden = hidden_states(model, rows.input_ids, position_ids=rows.position_ids, attention_mask=rows.attention_mask)
    shared = scores_of(model, hidden[rows.last_row, rows.last_column])
    separate = read_rewards(model, *pad_right([prompt + answer for prompt, answers in rankings for answer in answers]))
    assert (shared - separate).abs().max() < 1e-5
    gradients = []
    for scores in (shared, separate):
        model.zero_grad()
        (scores * torch.arange(1, len(scores) + 1)).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_a_mask_that_no_window_cuts_is_handed_on_as_it_is() -> None:
    long, short = pack_documents([sequence(30, 0)], 30), pack_documents([sequence(WINDOW, 0)], WINDOW)
    for case, packed in (("llama", long), ("gpt2", long), ("qwen2", long), *((case, short) for case in SLIDING)):
        window, mask, positions = sliding_window(make_architecture(case)), packed.attention_mask, packed.position_ids
        assert layer_masks(window, mask, positions, positions) is mask


@pytest.mark.parametrize(("case", "everywhere"), [("mistral", True), ("gemma3", False)])
def test_queries_and_keys_have_positions_of_their_own(case: str, everywhere: bool) -> None:
    queries, keys = torch.tensor([[19, 20], [4, 5]]), torch.arange(21)[None]
    allowed = keys[:, None, None, :] <= queries[:, None, :, None]
    masks = layer_masks(sliding_window(make_architecture(case)), allowed, queries, keys)
    if isinstance(masks, dict):
        assert masks["full_attention"] is allowed
        masks = masks["sliding_attention"]
    else:
        assert everywhere
    seen = [[row.nonzero()[:, 0].tolist() for row in one[0]] for one in masks]
    assert seen == [[[*range(12, 20)], [*range(13, 21)]], [[*range(5)], [*range(6)]]]


@pytest.mark.parametrize(("case", "kinds"), [("lfm2", "conv, full_attention"), ("recurrent_gemma", "recurrent")])
def test_layers_that_carry_one_document_into_the_next_are_refused(case: str, kinds: str) -> None:
    model, packed = make_architecture(case), pack_documents([sequence(3, 0), sequence(4, 1)], 7)
    with pytest.raises(Unsupported, match=f"{type(model).__name__}: it has layers of kind .*{kinds}.*; only full_"):
        hidden_states(model, packed.input_ids, position_ids=packed.position_ids, attention_mask=packed.attention_mask)
    hidden_states(model, packed.input_ids)  # one document a row needs no mask
