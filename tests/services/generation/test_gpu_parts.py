"""What the engine does differently on a GPU, in parts that a CPU can try; the whole is in `services/test_cuda.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_models import make_policy
from trimtab.types import SamplingParams
from trimtab_models.heads import hidden_states
from trimtab_models.loading import load_policy
from trimtab_services.generation.config import GenerationConfig
from trimtab_services.generation.engines.base import SequenceRequest
from trimtab_services.generation.engines.grouped_attention import use_grouped_attention
from trimtab_services.generation.engines.slot_cache import PrefillWrite, SlotCache
from trimtab_services.generation.engines.transformers import TransformersEngine
from trimtab_services.generation.sampling import SamplingRow, draw, sample_tokens, sampled_tokens
from trimtab_services.runtime.frozen import BatchShapes


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_is_drawn_on_the_device_is_what_is_sampled(temperature: float) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(9, 1000)
    logits[4, 7] = float("nan")
    uniform = torch.rand(9, dtype=torch.float64)
    rows = [SamplingRow(float(u), temperature=temperature) for u in uniform]
    assert all(row.plain for row in rows)
    drawn = sampled_tokens(draw(logits, torch.full((9,), temperature), uniform))
    expected = sample_tokens(logits, rows)
    assert drawn.finite == expected.finite == [i != 4 for i in range(9)]
    for i in (i for i in range(9) if i != 4):
        assert (drawn.token_ids[i], drawn.logprobs[i]) == (expected.token_ids[i], expected.logprobs[i])


@pytest.mark.parametrize(
    "row", [SamplingRow(0.1, temperature=0), SamplingRow(0.1, top_k=3), SamplingRow(0.1, suppressed=(1,))]
)
def test_what_needs_more_than_a_temperature_is_not_drawn_on_the_device(row: SamplingRow) -> None:
    assert not row.plain


def test_grouped_attention_gives_the_librarys_numbers(llama_folder: Path) -> None:
    parameters = SamplingParams(max_new_tokens=12, ignore_eos=True)
    requests = [SequenceRequest(i, tuple(range(5, 8 + 9 * i)), parameters, seed=i) for i in range(4)]
    finished = []
    for grouped in (False, True):
        model = load_policy(llama_folder)
        if grouped:
            use_grouped_attention(model)
            ids = torch.arange(5, 25)[None]
            with torch.no_grad():  # without a mask: causal, as before
                assert torch.equal(hidden_states(model, ids), hidden_states(load_policy(llama_folder), ids))
        engine = TransformersEngine(model, slots=4)
        for request in requests:
            engine.submit(request)
        done = []
        while engine.has_work:
            done += engine.step()
        finished.append(sorted(done, key=lambda one: one.sequence_id))
    for plain, grouped in zip(*finished, strict=True):
        assert plain.token_ids == grouped.token_ids
        assert np.allclose(plain.logprobs, grouped.logprobs, atol=1e-5)


def test_a_cache_grows_no_further_than_its_sequences() -> None:
    model, cache = make_policy("llama", 320), SlotCache(2, 700)
    rows = torch.tensor([0])
    for tokens in (1, 257, 513, 700):
        cache.reserve(tokens)
        cache.write = PrefillWrite(rows, torch.tensor([[tokens - 1]]), None)
        with torch.no_grad():
            model.base_model(input_ids=torch.tensor([[5]]), past_key_values=cache, use_cache=True)
    assert cache.capacity == 768
    held = [*cache.keys, *cache.values]
    assert 2 * cache.bytes_of_full_slot == sum(tensor.numel() * tensor.element_size() for tensor in held)


def test_waiting_tokens_are_counted(llama_folder: Path) -> None:
    engine = TransformersEngine(load_policy(llama_folder), slots=1)
    parameters = SamplingParams(max_new_tokens=10, ignore_eos=True)
    for number in range(3):
        engine.submit(SequenceRequest(number, (5, 6, 7), parameters))
    assert engine.load().outstanding_tokens == 3 * 13
    engine.cancel(2)
    assert engine.load().outstanding_tokens == 2 * 13
    while engine.has_work:
        engine.step()
    assert engine.load().outstanding_tokens == 0


def test_pieces_of_prompts_and_batches_follow_the_device(llama_folder: Path) -> None:
    on_cpu, on_gpu = (GenerationConfig(model_folder=llama_folder, device=device) for device in ("cpu", "cuda"))
    assert (on_cpu.prefill_tokens_per_step, on_cpu.prefill_chunk_tokens) == (512, 256)
    assert (on_gpu.prefill_tokens_per_step, on_gpu.prefill_chunk_tokens) == (4096, 2048)
    shapes = BatchShapes.of(GenerationConfig(model_folder=llama_folder, device="cuda", deterministic=True))
    assert shapes.split([5, 5, 17]) == [[0], [1], [2]]
