"""Keys and values computed under old weights are never read under new ones, whoever computed them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.types import SamplingParams
from trimtab_models.loading import load_policy, named_parameter_tensors
from trimtab_services.generation.engines.base import FinishedSequence, SequenceRequest
from trimtab_services.generation.engines.transformers import TransformersEngine

PROMPT = tuple(range(20, 44))


def new_weights(folder: Path) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    tensors = named_parameter_tensors(load_policy(folder))
    return {name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}


@pytest.fixture
def models(policy_folder: Path) -> dict[int, PreTrainedModel]:
    """By version: 1 the folder's weights, 2 the new ones."""
    found = {1: load_policy(policy_folder), 2: load_policy(policy_folder)}
    found[2].load_state_dict(new_weights(policy_folder), strict=False)
    return found


def swap(engine: TransformersEngine, folder: Path) -> None:
    engine.stage(2, new_weights(folder))
    engine.swap()


def sequence(number: int, tokens: int = 12, *, pinned: bool = False) -> SequenceRequest:
    sampling = SamplingParams(max_new_tokens=tokens, ignore_eos=True)
    return SequenceRequest(number, PROMPT, sampling, seed=number, finish_on_version=pinned)


def finish(engine: TransformersEngine) -> dict[int, FinishedSequence]:
    done: dict[int, FinishedSequence] = {}
    while engine.has_work:
        done |= {one.sequence_id: one for one in engine.step()}
    return done


@torch.no_grad()
def held_to_full_forwards(done: FinishedSequence, models: dict[int, PreTrainedModel]) -> list[int]:
    """Each span's log-probs against a forward of its version over all that came before; returns the versions."""
    ids = torch.tensor([PROMPT + done.token_ids])
    for span in done.version_spans:
        full = torch.log_softmax(models[span.version](ids).logits[0].float(), dim=-1)
        at = range(span.start_token, span.end_token)
        expected = [full[len(PROMPT) - 1 + t, done.token_ids[t]].item() for t in at]
        assert np.allclose(done.logprobs[span.start_token : span.end_token], expected, atol=1e-4), span
    return [span.version for span in done.version_spans]


def test_a_running_sequence_is_computed_anew(policy_folder: Path, models: dict[int, PreTrainedModel]) -> None:
    engine = TransformersEngine(load_policy(policy_folder), version=1, slots=2)
    engine.submit(sequence(0))
    for _ in range(5):
        engine.step()
    swap(engine, policy_folder)
    assert held_to_full_forwards(finish(engine)[0], models) == [1, 2]


@pytest.mark.parametrize("pinned", [False, True])
def test_a_sequence_that_leaves_a_pinned_one_behind_takes_nothing_along(
    policy_folder: Path, models: dict[int, PreTrainedModel], pinned: bool
) -> None:
    engine = TransformersEngine(load_policy(policy_folder), version=1, slots=3)
    engine.submit(sequence(0, pinned=True))
    engine.submit(sequence(1, pinned=pinned))
    for _ in range(5):
        engine.step()
    swap(engine, policy_folder)
    done = finish(engine)
    assert held_to_full_forwards(done[0], models) == [1]
    assert held_to_full_forwards(done[1], models) == ([1] if pinned else [1, 2])


def test_one_that_waited_for_a_prefill_of_the_old_weights_waits_no_longer(
    policy_folder: Path, models: dict[int, PreTrainedModel]
) -> None:
    """Two sequences share a prompt; the first stays on the old weights while its prompt is half computed."""
    engine = TransformersEngine(load_policy(policy_folder), version=1, slots=3, prefill_tokens_per_step=8)
    engine.submit(sequence(0, pinned=True))
    engine.submit(sequence(1))
    engine.step()
    swap(engine, policy_folder)
    done = finish(engine)
    assert held_to_full_forwards(done[0], models) == [1]
    assert held_to_full_forwards(done[1], models) == [2]


def test_a_newcomer_shares_no_prompt_with_a_sequence_that_kept_its_cache(
    policy_folder: Path, models: dict[int, PreTrainedModel]
) -> None:
    engine = TransformersEngine(load_policy(policy_folder), version=1, slots=3, kv_on_swap="keep")
    engine.submit(sequence(0, 24))
    for _ in range(5):
        engine.step()
    swap(engine, policy_folder)
    engine.submit(sequence(1))
    done = finish(engine)
    assert [span.kv_kept for span in done[0].version_spans] == [False, True]
    assert held_to_full_forwards(done[1], models) == [2]
