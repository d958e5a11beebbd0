"""Packing changes no result: nothing is lost, nothing crosses, order is kept."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab_models.heads import hidden_states, read_rewards, scores_of
from trimtab_models.loading import load_policy, reward_model_from_policy
from trimtab_models.packing import first_fit_decreasing, pack_documents, pack_shared_prompts, pad_right, unpad
from trimtab_models.tokenizer import load_tokenizer

DOCUMENTS = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=12), min_size=1, max_size=12)


@given(DOCUMENTS, st.integers(1, 20))
def test_packing_loses_nothing_and_crosses_nothing(documents: list[list[int]], row_tokens: int) -> None:
    packed = pack_documents(documents, row_tokens)
    for index, ((row, column), length) in enumerate(zip(packed.starts, packed.lengths, strict=True)):
        span = slice(column, column + length)
        assert packed.input_ids[row, span].tolist() == documents[index]
        assert packed.position_ids[row, span].tolist() == list(range(length))
        sees = packed.attention_mask[row, 0, span]
        assert (sees.sum(-1) == torch.arange(1, length + 1)).all()
        assert sees[:, span].tril().equal(sees[:, span])
    assert int((packed.document_ids >= 0).sum()) == sum(map(len, documents))


@given(st.lists(st.integers(1, 30), max_size=30), st.integers(1, 30))
def test_rows_hold_every_document_once(lengths: list[int], row_tokens: int) -> None:
    rows = first_fit_decreasing(lengths, row_tokens)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[index] for index in row) <= row_tokens for row in rows)


@given(DOCUMENTS, st.integers(1, 8))
def test_padding_round_trip(documents: list[list[int]], multiple: int) -> None:
    rows, lengths = pad_right(documents, multiple=multiple)
    assert rows.shape[1] % multiple == 0
    assert [row.tolist() for row in unpad(rows, lengths)] == documents


def test_the_id_of_padding_is_a_token_like_any_other() -> None:
    documents = [[0, 5, 0], [0], [7, 0, 0, 0]]
    packed = pack_documents(documents, 5)
    for index, ((row, column), length) in enumerate(zip(packed.starts, packed.lengths, strict=True)):
        assert packed.document_ids[row, column : column + length].tolist() == [index] * len(documents[index])
    rows = pack_shared_prompts([([0, 5], [[0], [6, 0]])])
    assert rows.last_column.tolist() == [2, 4]


def test_packed_equals_separate(policy_folder) -> None:
    model = load_policy(policy_folder)
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(5, 200, (n,), generator=generator).tolist() for n in (3, 17, 9, 1, 12)]
    packed = pack_documents(documents, 24)
    hidden = hidden_states(
        model, packed.input_ids, position_ids=packed.position_ids, attention_mask=packed.attention_mask
    )
    for document, (row, column) in zip(documents, packed.starts, strict=True):
        alone = hidden_states(model, torch.tensor([document]))[0]
        assert torch.allclose(hidden[row, column : column + len(document)], alone, atol=1e-5)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31))
@pytest.mark.parametrize("shape", ["llama", "gpt2", "qwen2"])
def test_shared_prompt_equals_separate_in_value_and_gradient(request, shape: str, seed: int) -> None:
    folder = request.getfixturevalue(f"{shape}_folder")
    model = reward_model_from_policy(folder, tokenizer=load_tokenizer(folder), seed=seed, dtype="float64")
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(5, 200, (length,), generator=generator).tolist()

    rankings = [(ids(1, 9), [ids(1, 7) for _ in range(k)]) for k in (2, 5)]
    rows = pack_shared_prompts(rankings)
    hidden = hidden_states(model, rows.input_ids, position_ids=rows.position_ids, attention_mask=rows.attention_mask)
    shared = scores_of(model, hidden[rows.last_row, rows.last_column])
    separate_ids, lengths = pad_right([prompt + answer for prompt, answers in rankings for answer in answers])
    separate = read_rewards(model, separate_ids, lengths)
    assert torch.allclose(shared, separate, atol=1e-6)
    weights = torch.randn(len(shared), generator=generator)
    gradients = []
    for scores in (shared, separate):
        model.zero_grad()
        (scores * weights).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*gradients, strict=True))
