"""Log-probs against an independent slow form; chunks change nothing; no tensor of [tokens, vocab] ever exists."""

import math
import weakref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tiny_models import make_policy
from trimtab_models.heads import hidden_states
from trimtab_models.loading import load_policy
from trimtab_models.logprobs import completion_logprobs, sequence_logprobs, token_logprobs
from trimtab_models.packing import pack_documents

torch.set_num_threads(1)
PROMPTS, COMPLETIONS = torch.tensor([3, 1, 5]), torch.tensor([4, 6, 1])


def rows(seed: int = 0) -> Tensor:
    return torch.randint(5, 200, (3, 9), generator=torch.Generator().manual_seed(seed))


def slow_logprobs(model, ids: list[int], start: int, temperature: float) -> tuple[list[float], list[float]]:
    """The whole model on one row alone, softmax by hand in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double() / temperature
    logprobs, entropies = [], []
    for t in range(start, len(ids)):
        row = logits[t - 1].tolist()
        top = max(row)
        normaliser = top + math.log(sum(math.exp(x - top) for x in row))
        logprobs.append(row[ids[t]] - normaliser)
        entropies.append(-sum(math.exp(x - normaliser) * (x - normaliser) for x in row))
    return logprobs, entropies


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
def test_completion_logprobs_are_the_slow_form(policy_folder, temperature: float) -> None:
    model, ids = load_policy(policy_folder), rows()
    with torch.no_grad():
        found, entropies = completion_logprobs(model, ids, PROMPTS, COMPLETIONS, temperature=temperature, entropy=True)
    assert found.dtype == entropies.dtype == torch.float32 and found.shape == (3, 6)
    for i in range(3):
        start, n = int(PROMPTS[i]), int(COMPLETIONS[i])
        logprobs, slow_entropies = slow_logprobs(model, ids[i, : start + n].tolist(), start, temperature)
        assert found[i, :n].tolist() == pytest.approx(logprobs, abs=1e-4)
        assert entropies[i, :n].tolist() == pytest.approx(slow_entropies, abs=1e-4)
        assert not found[i, n:].any() and not entropies[i, n:].any()


def test_what_lies_on_padding_does_not_matter(policy_folder) -> None:
    model, ids = load_policy(policy_folder), rows()
    other = ids.clone()
    for i in range(3):
        other[i, int(PROMPTS[i] + COMPLETIONS[i]) :] = 1
    with torch.no_grad():
        one, two = (completion_logprobs(model, x, PROMPTS, COMPLETIONS)[0] for x in (ids, other))
    assert torch.equal(one, two)


def test_pad_and_eos_ids_are_targets_like_any_other(policy_folder) -> None:
    model, ids = load_policy(policy_folder), rows() % 2
    with torch.no_grad():
        found, _ = completion_logprobs(model, ids, PROMPTS, COMPLETIONS)
    for i in range(3):
        start, n = int(PROMPTS[i]), int(COMPLETIONS[i])
        slow, _ = slow_logprobs(model, ids[i, : start + n].tolist(), start, 1.0)
        assert found[i, :n].tolist() == pytest.approx(slow, abs=1e-4)


def test_entropy_is_not_asked_for(llama_folder) -> None:
    assert completion_logprobs(load_policy(llama_folder), rows(), PROMPTS, COMPLETIONS)[1] is None


def test_sequence_logprobs_of_packed_rows(policy_folder) -> None:
    model = load_policy(policy_folder)
    documents = [row[:n].tolist() for row, n in zip(rows(), (9, 4, 6), strict=True)]
    packed = pack_documents(documents, 12)
    mask = (packed.document_ids >= 0) & (packed.position_ids > 0)
    with torch.no_grad():
        found = sequence_logprobs(
            model,
            packed.input_ids,
            mask,
            position_ids=packed.position_ids,
            attention_mask=packed.attention_mask,
            temperature=0.7,
        )
    places = {(r, c): n for n, (r, c) in enumerate(mask.nonzero().tolist())}
    for ids, (row, column) in zip(documents, packed.starts, strict=True):
        slow, _ = slow_logprobs(model, ids, 1, 0.7)
        here = [float(found[places[row, column + t]]) for t in range(1, len(ids))]
        assert here == pytest.approx(slow, abs=1e-4)


def states(model, tokens: int = 13) -> tuple[Tensor, Tensor]:
    ids = torch.randint(5, 200, (1, tokens + 1), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return hidden_states(model, ids)[0, :-1], ids[0, 1:]


@pytest.mark.parametrize("chunk_tokens", [1, 4, 5, 13, 100])
@pytest.mark.parametrize("row_multiple", [1, 4])
def test_chunks_change_nothing(policy_folder, chunk_tokens: int, row_multiple: int) -> None:
    model = load_policy(policy_folder, dtype="float64")
    hidden, targets = states(model)
    options = {"entropy": True, "top_n": 3, "temperature": 0.7}

    def run(**cut):
        x = hidden.clone().requires_grad_()
        model.zero_grad()
        found = token_logprobs(model, x, targets, **options, **cut)
        (found.logprobs * torch.arange(len(targets))).sum().backward()
        return found, x.grad, model.get_output_embeddings().weight.grad.clone()

    whole, whole_gradient, whole_weight = run()
    cut, gradient, weight = run(chunk_tokens=chunk_tokens, row_multiple=row_multiple)
    for name in ("logprobs", "entropies", "top_logprobs"):
        assert torch.allclose(getattr(cut, name), getattr(whole, name)), name
    assert torch.equal(cut.top_ids, whole.top_ids)
    assert torch.allclose(gradient, whole_gradient) and torch.allclose(weight, whole_weight)
    assert not cut.entropies.requires_grad and not cut.top_logprobs.requires_grad


def test_top_n_is_sorted_and_agrees_with_the_logprobs(llama_folder) -> None:
    model = load_policy(llama_folder)
    hidden, targets = states(model)
    found = token_logprobs(model, hidden, targets, top_n=20)
    assert found.top_ids.shape == found.top_logprobs.shape == (13, 20)
    assert (found.top_logprobs.diff(dim=-1) <= 0).all()
    again = token_logprobs(model, hidden, found.top_ids[:, 7])
    assert torch.allclose(again.logprobs, found.top_logprobs[:, 7], atol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [2, None])
def test_gradcheck(policy_folder, chunk_tokens) -> None:
    model = load_policy(policy_folder, dtype="float64")
    hidden, targets = states(model, 5)
    hidden.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: token_logprobs(model, x, targets, temperature=0.7, chunk_tokens=chunk_tokens).logprobs, (hidden,)
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_normalised_in_float32(policy_folder, dtype: str) -> None:
    model = load_policy(policy_folder, dtype=dtype)
    hidden, targets = states(model)
    found = token_logprobs(model, hidden, targets, top_n=20)
    assert found.logprobs.dtype == found.top_logprobs.dtype == torch.float32
    logits = (hidden @ model.get_output_embeddings().weight.T).float()
    assert torch.allclose(found.logprobs, logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(policy_folder, dtype: str) -> None:
    whole, half = load_policy(policy_folder), load_policy(policy_folder, dtype=dtype)
    expected, entropies = completion_logprobs(whole, rows(), PROMPTS, COMPLETIONS, temperature=0.7, entropy=True)
    found, half_entropies = completion_logprobs(half, rows(), PROMPTS, COMPLETIONS, temperature=0.7, entropy=True)
    assert found.dtype == half_entropies.dtype == torch.float32
    largest = float(whole(input_ids=rows()).logits.abs().max()) / 0.7
    near = 4 * torch.finfo(half.dtype).eps * largest
    assert (found - expected).abs().max() < near and (half_entropies - entropies).abs().max() < near


def test_no_tokens(llama_folder) -> None:
    model = load_policy(llama_folder)
    found = token_logprobs(model, torch.zeros(0, 32), torch.zeros(0, dtype=torch.long), entropy=True, top_n=2)
    assert found.logprobs.shape == found.entropies.shape == (0,) and found.top_ids.shape == (0, 2)


def test_soft_cap(llama_folder) -> None:
    model = load_policy(llama_folder)
    hidden, targets = states(model)
    model.config.final_logit_softcapping = 2.0
    found = token_logprobs(model, hidden, targets).logprobs
    logits = 2.0 * torch.tanh(hidden @ model.get_output_embeddings().weight.T / 2.0)
    assert torch.allclose(found, logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0], atol=1e-5)


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation makes, and how many of `at_least` elements live at one time."""

    def __init__(self, at_least: int) -> None:
        super().__init__()
        self.at_least, self.elements, self.most_alive = at_least, 0, 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
                storage = tensor.untyped_storage()
                if tensor.numel() >= self.at_least and storage._cdata not in self._alive:
                    self._alive.add(storage._cdata)
                    weakref.finalize(storage, self._alive.discard, storage._cdata)
                    self.most_alive = max(self.most_alive, len(self._alive))
        return result


@pytest.mark.parametrize("backward", [False, True])
def test_no_tensor_of_tokens_times_vocabulary(backward: bool) -> None:
    torch.manual_seed(0)
    vocab, tokens, chunk = 5_000, 64, 4
    model = make_policy("llama", vocab, hidden=8, layers=1).train()
    ids = torch.randint(5, vocab, (1, tokens + 1))
    with Largest(at_least=chunk * vocab) as seen:
        hidden = hidden_states(model, ids)[0, :-1]
        found = token_logprobs(model, hidden, ids[0, 1:], entropy=True, top_n=2, chunk_tokens=chunk, temperature=0.7)
        if backward:
            found.logprobs.sum().backward()
    assert model.get_output_embeddings().weight.grad is not None or not backward
    weight = vocab * 8  # the output layer and its gradient
    assert seen.elements <= max(chunk * vocab, weight) < tokens * vocab / 4


def test_backward_keeps_one_chunk_at_a_time() -> None:
    """Several checkpointed chunks: the recomputed logits of one are gone before those of the next are made."""
    torch.manual_seed(0)
    vocab, chunk = 5_000, 4
    model = make_policy("llama", vocab, hidden=2 * 4, layers=1).train().requires_grad_(False)

    def most_alive(tokens: int) -> int:
        hidden = torch.randn(tokens, 8, requires_grad=True)
        targets = torch.randint(5, vocab, (tokens,))
        with Largest(at_least=chunk * vocab) as seen:
            token_logprobs(model, hidden, targets, chunk_tokens=chunk, entropy=True).logprobs.sum().backward()
        return seen.most_alive

    assert most_alive(16 * chunk) <= most_alive(2 * chunk) + 1
