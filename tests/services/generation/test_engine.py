"""The engine: log-probs, seeds, determinism, cancellation, weight swaps, on three architectures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from trimtab.errors import CorruptData, Mismatch, Reason, SequenceTooLong
from trimtab.types import FinishReason, SamplingParams
from trimtab_models.loading import load_policy, named_parameter_tensors
from trimtab_models.tokenizer import load_tokenizer
from trimtab_services.generation.engines.base import FinishedSequence, SequenceRequest
from trimtab_services.generation.engines.transformers import TransformersEngine
from trimtab_services.generation.sampling import philox4x32

PROMPTS = [(5, 6, 7), (9,) * 17, (11, 12), tuple(range(20, 60)), (70, 71, 72, 73, 74)]


def run(engine: TransformersEngine, requests: list[SequenceRequest]) -> dict[int, FinishedSequence]:
    for request in requests:
        engine.submit(request)
    done: dict[int, FinishedSequence] = {}
    while engine.has_work:
        done |= {one.sequence_id: one for one in engine.step()}
    return done


def requests(tokens: int = 12, **sampling: object) -> list[SequenceRequest]:
    parameters = SamplingParams(max_new_tokens=tokens, ignore_eos=True, **sampling)  # type: ignore[arg-type]
    return [SequenceRequest(i, prompt, parameters, seed=100 + i) for i, prompt in enumerate(PROMPTS)]


def test_philox_known_answers() -> None:
    """Random123's known-answer vectors of philox4x32-10."""
    ones = 0xFFFFFFFF
    vectors = [
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ones] * 4, [ones] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    for counter, key, expected in vectors:
        found = philox4x32(np.array(counter, dtype=np.uint64), np.array(key, dtype=np.uint64))
        assert found.tolist() == expected


def test_logprobs_are_those_of_a_full_forward(policy_folder: Path) -> None:
    model = load_policy(policy_folder)
    done = run(TransformersEngine(load_policy(policy_folder), slots=3), requests(temperature=0.7, top_p=0.9))
    for i, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt + done[i].token_ids])
        with torch.no_grad():
            full = torch.log_softmax(model(ids).logits[0].float() / 0.7, dim=-1)
        expected = [full[len(prompt) - 1 + t, token].item() for t, token in enumerate(done[i].token_ids)]
        assert np.allclose(done[i].logprobs, expected, atol=1e-4)
        assert done[i].finish_reason is FinishReason.LENGTH


def test_greedy_equals_hugging_face(policy_folder: Path) -> None:
    model = load_policy(policy_folder)
    done = run(TransformersEngine(load_policy(policy_folder), slots=8), requests(temperature=0.0))
    for i, prompt in enumerate(PROMPTS):
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=None
        )
        assert done[i].token_ids == tuple(out[0, len(prompt) :].tolist())


def test_draws_follow_the_distribution(llama_folder: Path) -> None:
    """Chi-square of the first token of 3,000 samples against the model's own probabilities."""
    model = load_policy(llama_folder)
    with torch.no_grad():
        probabilities = torch.softmax(model(torch.tensor([PROMPTS[0]])).logits[0, -1].double(), dim=-1).numpy()
    parameters = SamplingParams(max_new_tokens=1, ignore_eos=True)
    work = [SequenceRequest(i, PROMPTS[0], parameters, seed=3, sample_index=i) for i in range(3000)]
    done = run(TransformersEngine(model, slots=64), work)
    counts = np.bincount([done[i].token_ids[0] for i in range(3000)], minlength=len(probabilities))
    rare = probabilities * 3000 < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(probabilities[~rare], probabilities[rare].sum()) * 3000
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


def test_deterministic_is_bit_equal_whatever_the_neighbours(policy_folder: Path) -> None:
    alone = {}
    for request in requests():
        alone |= run(TransformersEngine(load_policy(policy_folder), slots=8, deterministic=True), [request])
    extra = [SequenceRequest(50 + i, (3 + i,) * (1 + i), SamplingParams(max_new_tokens=5), seed=i) for i in range(9)]
    crowd = run(
        TransformersEngine(load_policy(policy_folder), slots=8, deterministic=True), [*extra, *reversed(requests())]
    )
    for i in alone:
        assert crowd[i].token_ids == alone[i].token_ids
        assert np.array_equal(crowd[i].logprobs, alone[i].logprobs)


def test_cancel_frees_the_slot_at_once(llama_folder: Path) -> None:
    engine = TransformersEngine(load_policy(llama_folder), slots=1)
    parameters = SamplingParams(max_new_tokens=100, ignore_eos=True)
    engine.submit(SequenceRequest(1, (5, 6), parameters))
    engine.submit(SequenceRequest(2, (7, 8), parameters))
    engine.step()
    assert engine.load().waiting_sequences == 1
    left = engine.cancel(1)
    assert left is not None and left.finish_reason is FinishReason.CANCELLED
    assert engine.load().busy_slots == 0
    engine.step()
    assert engine.load().busy_slots == 1 and engine.load().waiting_sequences == 0
    engine.cancel(2)
    before = engine.load().computed_decode_tokens
    assert not engine.has_work and engine.step() == []
    assert engine.load().computed_decode_tokens == before


def test_who_waits_for_the_prefill_of_a_cancelled_one_goes_on_from_it(llama_folder: Path) -> None:
    engine = TransformersEngine(load_policy(llama_folder), slots=4, prefill_tokens_per_step=4, prefill_chunk_tokens=4)
    prompt, parameters = tuple(range(5, 25)), SamplingParams(max_new_tokens=4, ignore_eos=True)
    alone = run(
        TransformersEngine(load_policy(llama_folder), slots=4), [SequenceRequest(2, prompt, parameters, seed=2)]
    )
    engine.submit(SequenceRequest(1, prompt, parameters, seed=1))
    engine.submit(SequenceRequest(2, prompt, parameters, seed=2))
    engine.step()  # a piece of the first one's prompt, which the second waits for
    engine.cancel(1)
    done = []
    while engine.has_work:
        done += engine.step()
    assert [one.token_ids for one in done] == [alone[2].token_ids]


def test_stops(llama_folder: Path) -> None:
    tokenizer = load_tokenizer(llama_folder)
    engine = TransformersEngine(load_policy(llama_folder), slots=4, tokenizer=tokenizer)
    free = run(engine, [SequenceRequest(0, (5, 6), SamplingParams(max_new_tokens=30, ignore_eos=True), seed=4)])[0]
    stop_id = free.token_ids[7]
    first = free.token_ids.index(stop_id)
    stopped = run(
        engine,
        [
            SequenceRequest(
                1, (5, 6), SamplingParams(max_new_tokens=30, ignore_eos=True, stop_token_ids=(stop_id,)), seed=4
            )
        ],
    )[1]
    assert stopped.token_ids == free.token_ids[: first + 1] and stopped.finish_reason is FinishReason.STOP
    text = tokenizer.decode(free.token_ids[:12])
    wanted = text[3:6]
    by_text = run(
        engine,
        [
            SequenceRequest(
                2, (5, 6), SamplingParams(max_new_tokens=30, ignore_eos=True, stop_strings=(wanted,)), seed=4
            )
        ],
    )[2]
    assert wanted in tokenizer.decode(by_text.token_ids)
    assert wanted not in tokenizer.decode(by_text.token_ids[:-1])


def test_swap_is_transactional(llama_folder: Path) -> None:
    engine = TransformersEngine(load_policy(llama_folder), version=1, slots=4, deterministic=True)
    before = run(engine, requests())
    good = {name: tensor.clone() for name, tensor in named_parameter_tensors(load_policy(llama_folder)).items()}
    name = next(iter(good))
    with pytest.raises(CorruptData) as caught:
        engine.stage(2, {**good, name: torch.full_like(good[name], float("nan"))})
    assert caught.value.reason is Reason.NOT_FINITE
    with pytest.raises(Mismatch, match=name):
        engine.stage(2, {key: value for key, value in good.items() if key != name})
    with pytest.raises(Mismatch, match="stranger"):
        engine.stage(2, {**good, "stranger": torch.zeros(1)})
    after = run(engine, requests())
    assert all(after[i].token_ids == before[i].token_ids for i in before) and engine.version == 1

    other = {key: value + 0.05 * torch.randn_like(value) for key, value in good.items()}
    engine.stage(2, other)
    assert engine.swap() == 2
    changed = run(engine, requests())
    cold_model = load_policy(llama_folder)
    cold_model.load_state_dict(other, strict=False)
    cold = run(TransformersEngine(cold_model, version=2, slots=4, deterministic=True), requests())
    assert any(changed[i].token_ids != before[i].token_ids for i in before)
    for i in cold:  # nothing computed under the old weights is used again
        assert changed[i].token_ids == cold[i].token_ids and np.array_equal(changed[i].logprobs, cold[i].logprobs)
        assert [span.version for span in changed[i].version_spans] == [2]


def test_pinned_sequences_finish_on_their_weights(llama_folder: Path) -> None:
    engine = TransformersEngine(load_policy(llama_folder), version=1, slots=4)
    parameters = SamplingParams(max_new_tokens=20, ignore_eos=True)
    engine.submit(SequenceRequest(1, (5, 6, 7), parameters, finish_on_version=True))
    engine.submit(SequenceRequest(2, (5, 6, 7), parameters))
    for _ in range(6):
        engine.step()
    tensors = {k: v + 0.05 for k, v in named_parameter_tensors(load_policy(llama_folder)).items()}
    engine.stage(2, tensors)
    engine.swap()
    done = {}
    while engine.has_work:
        done |= {one.sequence_id: one for one in engine.step()}
    assert [span.version for span in done[1].version_spans] == [1]
    assert [span.version for span in done[2].version_spans] == [1, 2]
    assert done[2].version_spans[0].end_token == done[2].version_spans[1].start_token
    assert done[2].version_spans[1].end_token == 20


def test_too_long_is_refused_with_both_numbers(llama_folder: Path) -> None:
    engine = TransformersEngine(load_policy(llama_folder), slots=2)
    with pytest.raises(SequenceTooLong) as caught:
        engine.submit(SequenceRequest(1, (5,) * 200, SamplingParams(max_new_tokens=100)))
    assert (caught.value.value, caught.value.limit) == ("300", "256")
