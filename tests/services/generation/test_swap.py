"""New weights while sequences run and wait: who finishes on which version, in which dtype, and who is not held up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from trimtab.errors import CorruptData, Mismatch, Reason
from trimtab.types import SamplingParams
from trimtab_models.loading import load_policy, named_parameter_tensors
from trimtab_services.generation.engines.base import FinishedSequence, SequenceRequest
from trimtab_services.generation.engines.transformers import TransformersEngine


def sequence(number: int, tokens: int = 6, *, pinned: bool = False, priority: int = 1) -> SequenceRequest:
    sampling = SamplingParams(max_new_tokens=tokens, ignore_eos=True)
    return SequenceRequest(
        number, (5 + number, 6, 7), sampling, seed=number, finish_on_version=pinned, priority=priority
    )


def weights(folder: Path, version: int) -> dict[str, Tensor]:
    """Float32 tensors that differ from version to version, as a trainer publishes them."""
    torch.manual_seed(version)
    tensors = named_parameter_tensors(load_policy(folder))
    return {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in tensors.items()}


def swap(engine: TransformersEngine, folder: Path, version: int) -> None:
    engine.stage(version, weights(folder, version))
    engine.swap()


def finish(engine: TransformersEngine) -> dict[int, FinishedSequence]:
    done: dict[int, FinishedSequence] = {}
    while engine.has_work:
        done |= {one.sequence_id: one for one in engine.step()}
    return done


def versions(done: dict[int, FinishedSequence]) -> dict[int, list[int]]:
    return {number: [span.version for span in one.version_spans] for number, one in sorted(done.items())}


@pytest.mark.parametrize("deterministic", [False, True])
def test_what_waits_for_a_slot_keeps_the_version_that_it_came_under(llama_folder: Path, deterministic: bool) -> None:
    engine = TransformersEngine(load_policy(llama_folder), version=1, slots=1, deterministic=deterministic)
    alone = TransformersEngine(load_policy(llama_folder), version=1, slots=1, deterministic=deterministic)
    alone.submit(sequence(1))
    pinned = not deterministic  # the mode pins by itself
    engine.submit(sequence(0, pinned=pinned))
    engine.submit(sequence(1, pinned=pinned))
    engine.step()
    swap(engine, llama_folder, 2)
    engine.submit(sequence(2, pinned=pinned))
    swap(engine, llama_folder, 3)
    engine.submit(sequence(3, pinned=pinned))
    done = finish(engine)
    assert versions(done) == {0: [1], 1: [1], 2: [2], 3: [3]}
    expected = finish(alone)[1]
    assert done[1].token_ids == expected.token_ids
    assert np.allclose(done[1].logprobs, expected.logprobs, atol=0 if deterministic else 1e-5)


def test_old_weights_go_as_soon_as_nobody_waits_for_them(llama_folder: Path) -> None:
    engine = TransformersEngine(load_policy(llama_folder), version=1, slots=1)
    engine.submit(sequence(0, 2))
    engine.submit(sequence(1, pinned=True))
    engine.step()
    swap(engine, llama_folder, 2)
    assert len(engine._lanes) == 2
    engine.cancel(1)
    assert len(engine._lanes) == 1
    assert versions(finish(engine)) == {0: [1, 2]}


def test_a_number_that_moves_alone_does_not_move_what_was_promised(llama_folder: Path) -> None:
    engine = TransformersEngine(load_policy(llama_folder), version=1, slots=1)
    engine.submit(sequence(0, pinned=True))
    engine.submit(sequence(1, pinned=True))
    engine.step()
    engine.renumber(2)
    engine.submit(sequence(2, pinned=True))
    assert versions(finish(engine)) == {0: [1], 1: [1], 2: [2]}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_float32_versions_are_served_in_the_dtype_of_the_first(llama_folder: Path, tmp_path: Path, dtype: str) -> None:
    engine = TransformersEngine(load_policy(llama_folder, dtype=dtype), version=1, slots=2, deterministic=True)
    for version in (2, 3, 4):
        swap(engine, llama_folder, version)
        assert engine.model.dtype == getattr(torch, dtype)
    engine.submit(sequence(0))
    done = finish(engine)[0]
    saved = load_policy(llama_folder)
    saved.load_state_dict(weights(llama_folder, 4), strict=False)
    saved.save_pretrained(tmp_path)
    cold = TransformersEngine(load_policy(tmp_path, dtype=dtype), version=4, slots=2, deterministic=True)
    cold.submit(sequence(0))
    expected = finish(cold)[0]
    assert done.token_ids == expected.token_ids and np.array_equal(done.logprobs, expected.logprobs)


def test_what_a_dtype_cannot_hold_is_refused(llama_folder: Path) -> None:
    engine = TransformersEngine(load_policy(llama_folder, dtype="float16"), version=1, slots=2)
    tensors = weights(llama_folder, 2)
    name = next(iter(tensors))
    with pytest.raises(CorruptData, match=f"{name} .* as torch.float16") as caught:
        engine.stage(2, {**tensors, name: torch.full_like(tensors[name], 1e6)})
    assert caught.value.reason is Reason.NOT_FINITE
    with pytest.raises(Mismatch, match=f"{name} .* dtype torch.int64"):
        engine.stage(2, {**tensors, name: tensors[name].long()})
    with pytest.raises(Mismatch, match=f"{name} .* shape"):
        engine.stage(2, {**tensors, name: tensors[name][:1]})


@pytest.mark.parametrize("deterministic", [False, True])
def test_long_prompts_that_arrive_never_stall_a_running_sequence(llama_folder: Path, deterministic: bool) -> None:
    """One token a step for the running one, and at most the budget of prompt tokens, on both sides of a swap."""
    budget = 24
    engine = TransformersEngine(
        load_policy(llama_folder), version=1, slots=6, prefill_tokens_per_step=budget, deterministic=deterministic
    )
    engine.submit(sequence(0, 60, pinned=True))
    engine.step()
    sampling = SamplingParams(max_new_tokens=4, ignore_eos=True)
    for number in range(1, 4):
        prompt = tuple(range(number, 200 + number))
        engine.submit(SequenceRequest(number, prompt, sampling, finish_on_version=True))
    swap(engine, llama_folder, 2)
    for number in range(4, 6):
        engine.submit(SequenceRequest(number, tuple(range(number, 150 + number)), sampling))
    running = next(engine._lanes[0].running())
    before = engine.load().computed_prefill_tokens
    while any(not s.ready for lane in engine._lanes for s in lane.running()) or engine.load().waiting_sequences:
        length = len(running.generated)
        engine.step()
        now = engine.load().computed_prefill_tokens
        assert len(running.generated) == length + 1 and now - before <= budget
        before = now
    assert engine.load().computed_prefill_tokens > 3 * 199
