"""Models with sliding windows in the engine: every token is the bare model's own, several windows into a sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.models.architectures import SLIDING, WINDOW, make_architecture
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from trimtab.errors import Unsupported
from trimtab.types import SamplingParams
from trimtab_models.loading import named_parameter_tensors
from trimtab_services.generation.engines.base import FinishedSequence, SequenceRequest
from trimtab_services.generation.engines.transformers import TransformersEngine

torch.set_num_threads(1)
PROMPTS = {i: tuple(3 + (7 * i + k * k) % 190 for k in range(n)) for i, n in enumerate((3, 17, 70, 9, 41, 25))}
TOKENS = 3 * WINDOW


def requests(*ids: int, **sampling: object) -> list[SequenceRequest]:
    parameters = SamplingParams(max_new_tokens=TOKENS, ignore_eos=True, **sampling)  # type: ignore[arg-type]
    return [SequenceRequest(i, PROMPTS[i], parameters, seed=100 + i) for i in ids or PROMPTS]


def finish(engine: TransformersEngine, work: list[SequenceRequest]) -> dict[int, FinishedSequence]:
    for request in work:
        engine.submit(request)
    done: dict[int, FinishedSequence] = {}
    while engine.has_work:
        done |= {one.sequence_id: one for one in engine.step()}
    assert all(one.error is None for one in done.values())
    return done


@torch.no_grad()
def full_forward(model: PreTrainedModel, one: FinishedSequence) -> Tensor:
    """[tokens, vocab] log-probs at each token of a completion, from one forward without cache or mask."""
    prompt = PROMPTS[one.sequence_id]
    logits = model(torch.tensor([prompt + one.token_ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1)


def gather(logprobs: Tensor, token_ids: tuple[int, ...]) -> np.ndarray:
    return logprobs.gather(-1, torch.tensor(token_ids)[:, None])[:, 0].numpy()


@pytest.mark.parametrize("case", SLIDING)
@pytest.mark.parametrize("chunk", [256, 5])
def test_logprobs_and_greedy_tokens_are_those_of_a_full_forward(case: str, chunk: int) -> None:
    model = make_architecture(case)
    engine = TransformersEngine(make_architecture(case), slots=4, prefill_chunk_tokens=chunk)
    for one in finish(engine, requests()).values():
        assert np.allclose(one.logprobs, gather(full_forward(model, one), one.token_ids), atol=1e-4)
    for one in finish(engine, requests(temperature=0.0)).values():
        assert one.token_ids == tuple(full_forward(model, one).argmax(-1).tolist())


@pytest.mark.parametrize("case", SLIDING)
@pytest.mark.parametrize("chunk", [256, 5])
def test_deterministic_is_exact_and_bit_equal_whatever_the_neighbours(case: str, chunk: int) -> None:
    def engine() -> TransformersEngine:
        return TransformersEngine(make_architecture(case), slots=4, prefill_chunk_tokens=chunk, deterministic=True)

    model, crowd = make_architecture(case), finish(engine(), requests(5, 4, 3, 2, 1, 0))
    for i in (0, 2, 4):
        alone = finish(engine(), requests(i))[i]
        assert np.allclose(alone.logprobs, gather(full_forward(model, alone), alone.token_ids), atol=1e-4)
        assert crowd[i].token_ids == alone.token_ids
        assert np.array_equal(crowd[i].logprobs, alone.logprobs)


@pytest.mark.parametrize("case", SLIDING)
@pytest.mark.parametrize("pinned", [False, True])
def test_keys_and_values_computed_again_after_a_swap_respect_the_window(case: str, pinned: bool) -> None:
    """With a pinned neighbour the others move to slots of another cache."""
    old, new = make_architecture(case), make_architecture(case)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    engine = TransformersEngine(make_architecture(case), version=1, slots=6, prefill_chunk_tokens=12)
    for request in requests():
        pin = pinned and request.sequence_id == 2
        engine.submit(SequenceRequest(request.sequence_id, request.prompt_token_ids, request.sampling, 3, 0, pin))
    for _ in range(WINDOW + 2):
        engine.step()
    engine.stage(2, named_parameter_tensors(new))
    engine.swap()
    done = finish(engine, [])
    assert {span.version for span in done[2].version_spans} == ({1} if pinned else {1, 2})
    assert {span.version for span in done[1].version_spans} == {1, 2}
    for one in done.values():
        for span in one.version_spans:
            part = slice(span.start_token, span.end_token)
            expected = gather(full_forward(old if span.version == 1 else new, one), one.token_ids)
            assert np.allclose(one.logprobs[part], expected[part], atol=1e-4)


@pytest.mark.parametrize("case", SLIDING)
def test_a_prompt_far_ahead_of_a_decode_step_leaves_nothing_behind(case: str) -> None:
    """Eager attention has no answer for a query without keys: a NaN in a slot would reach the slot's next sequence."""
    model = make_architecture(case)
    model.set_attn_implementation("eager")
    engine = TransformersEngine(model, slots=2, prefill_tokens_per_step=20)
    running, ahead = requests(5, 2)
    engine.submit(running)
    engine.submit(ahead)
    for _ in range(4):
        engine.step()
    assert [(s.target, s.filled) for s in engine._lanes[0].running()] == [(27, 27), (69, 40)]
    engine.cancel(ahead.sequence_id)  # its slot is read as far as the longest neighbour goes
    for one in finish(engine, requests(1)).values():
        assert np.allclose(one.logprobs, gather(full_forward(model, one), one.token_ids), atol=1e-4)


@pytest.mark.parametrize(
    ("case", "kind"), [("lfm2", "conv"), ("recurrent_gemma", "recurrent"), ("llama4", "chunked_attention")]
)
def test_layers_of_other_kinds_are_refused(case: str, kind: str) -> None:
    with pytest.raises(Unsupported, match=f"layers of kind .*{kind}.*; only full_attention and sliding_att") as caught:
        TransformersEngine(make_architecture(case), slots=2)
    assert caught.value.limit == "full_attention, sliding_attention"


def test_a_model_without_attention_is_refused_for_that_and_not_for_its_missing_context() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=200, hidden_size=32, state_size=4, num_hidden_layers=2))
    with pytest.raises(Unsupported, match="MambaForCausalLM: it has layers of kind linear_attention"):
        TransformersEngine(model, slots=2)
