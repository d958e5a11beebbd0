"""Scores depend on no neighbour and no padding, and one that is not finite is an error that names its row."""

import pytest
import torch

from trimtab.errors import InternalError, Reason
from trimtab_models.anatomy import score_weight
from trimtab_models.heads import check_finite, completion_values, hidden_states, read_rewards, scores_of
from trimtab_models.loading import load_reward_model, reward_model_from_policy, save_model, set_reward_bias
from trimtab_models.packing import pad_right
from trimtab_models.tokenizer import load_tokenizer

torch.set_num_threads(1)
LENGTHS = (1, 9, 4, 17, 2)


def sequences(seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 200, (n,), generator=generator).tolist() for n in LENGTHS]


@pytest.fixture
def model(policy_folder):
    made = reward_model_from_policy(policy_folder, tokenizer=load_tokenizer(policy_folder), seed=3)
    set_reward_bias(made, 0.5)
    return made


@torch.no_grad()
def test_batch_of_one_is_batch_of_many(model) -> None:
    together = read_rewards(model, *pad_right(sequences()))
    alone = torch.cat([read_rewards(model, *pad_right([ids])) for ids in sequences()])
    assert together.dtype == torch.float32 and together.shape == (5,)
    assert (together - alone).abs().max() < 1e-5
    assert together.std() > 1e-3  # the comparison is one


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 1, 199])
def test_padding_ids_and_width_do_not_matter(model, padding: int) -> None:
    ids, lengths = pad_right(sequences())
    expected = read_rewards(model, ids, lengths)
    wide = torch.full((5, 40), padding)
    for row, length in enumerate(lengths):
        wide[row, :length] = ids[row, :length]
    assert (read_rewards(model, wide, lengths) - expected).abs().max() < 1e-5


@torch.no_grad()
def test_the_pad_id_inside_a_sequence_is_a_token(model) -> None:
    pad = model.config.pad_token_id
    one, other = [7, pad, 9, pad], [7, pad, 9]
    rewards = read_rewards(model, *pad_right([one, other]))
    assert rewards[0] == pytest.approx(float(read_rewards(model, *pad_right([one]))), abs=1e-5)
    assert abs(float(rewards[0] - rewards[1])) > 1e-6


@torch.no_grad()
def test_score_is_the_dot_product_less_the_offset(model) -> None:
    ids = torch.tensor([sequences()[1]])
    hidden = hidden_states(model, ids)[0]
    weight = score_weight(model)[0].tolist()
    slow = [sum(h * w for h, w in zip(row, weight, strict=True)) - 0.5 for row in hidden.tolist()]
    assert scores_of(model, hidden).tolist() == pytest.approx(slow, abs=1e-5)
    assert float(read_rewards(model, ids, torch.tensor([9]))) == pytest.approx(slow[-1], abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_in_float32(policy_folder, tmp_path, dtype: str) -> None:
    tokenizer = load_tokenizer(policy_folder)
    made = reward_model_from_policy(policy_folder, tokenizer=tokenizer, seed=3, dtype=dtype)
    set_reward_bias(made, 0.5)
    save_model(made, tokenizer, tmp_path / "reward")
    model = load_reward_model(tmp_path / "reward", dtype=dtype)
    ids, lengths = pad_right(sequences())
    rewards = read_rewards(model, ids, lengths)
    hidden = hidden_states(model, ids)
    assert rewards.dtype == torch.float32 and hidden.dtype == model.dtype
    last = hidden[torch.arange(len(lengths)), lengths - 1].double()
    exact = (last * score_weight(model)[0].double()).sum(-1) - 0.5
    assert (rewards - exact).abs().max() < 1e-5  # one product or sum rounded to the model's dtype is 1e-3 off
    assert torch.equal(rewards, read_rewards(made, ids, lengths))
    values = completion_values(model, ids[1:4], torch.tensor([3, 1, 12]), torch.tensor([6, 3, 5]))
    assert values.dtype == torch.float32


@torch.no_grad()
def test_values_are_read_before_each_completion_token(model) -> None:
    ids, lengths = pad_right(sequences()[1:4])  # 9, 4, 17 tokens
    prompts, completions = torch.tensor([3, 1, 12]), torch.tensor([6, 3, 5])
    found = completion_values(model, ids, prompts, completions)
    everywhere = scores_of(model, hidden_states(model, ids))
    assert found.dtype == torch.float32 and found.shape == (3, 6)
    for i in range(3):
        p, n = int(prompts[i]), int(completions[i])
        assert torch.allclose(found[i, :n], everywhere[i, p - 1 : p - 1 + n], atol=1e-6)
        assert not found[i, n:].any()
    whole = read_rewards(model, ids, lengths)
    before_last = read_rewards(model, ids, lengths - 1)
    assert torch.allclose(found[torch.arange(3), completions - 1], before_last, atol=1e-5)
    assert not torch.allclose(found[torch.arange(3), completions - 1], whole, atol=1e-5)


@torch.no_grad()
def test_values_before_pad_and_eos_ids_are_read_too(model) -> None:
    ids = torch.tensor([[7, 0, 1, 9, 0, 1, 0, 1]])
    found = completion_values(model, ids, torch.tensor([3]), torch.tensor([5]))
    everywhere = scores_of(model, hidden_states(model, ids))
    assert torch.allclose(found[0], everywhere[0, 2:7], atol=1e-6)


def test_values_carry_gradient_to_real_tokens_only(model) -> None:
    ids, _ = pad_right(sequences()[1:3])
    values = completion_values(model, ids, torch.tensor([3, 1]), torch.tensor([6, 3]))
    values.sum().backward()
    assert torch.isfinite(score_weight(model).grad).all() and score_weight(model).grad.abs().sum() > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite(reward_folder, bad: float) -> None:
    model = load_reward_model(reward_folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[9] = bad
        with pytest.raises(InternalError, match=r"items\[1\]: the score is nan") as caught:
            read_rewards(model, *pad_right([[7, 8], [9], [7]]))
    assert caught.value.reason is Reason.NOT_FINITE and caught.value.field == "items[1]"
    with pytest.raises(InternalError):
        check_finite(torch.tensor([0.0, bad]))
    assert check_finite(torch.tensor([0.0])).tolist() == [0.0]
