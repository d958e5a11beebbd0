"""vLLM's engine with one model: built around its configuration, filled with weights, stepped from one thread.

Why the synchronous `LLMEngine` in this process, and not `AsyncLLM`? The host has a thread that steps an engine and runs
commands between two steps; a swap made there needs no pause of a scheduler that goes on elsewhere, and each token's
weights are known exactly. `AsyncLLM` runs ahead of what it has handed out, so its spans would be a guess.

Every set of weights, the first too, comes in through `transfer`: vLLM's model begins with random values. So the first
version proves that the names of this architecture reach every parameter, before anyone samples from it.
"""

# vLLM has an environment of its own.
# pyright: reportMissingImports=false

from __future__ import annotations

import copy
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from vllm import SamplingParams as VLLMSamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from trimtab.errors import ConfigError, InternalError, Reason, Unsupported
from trimtab.types import SamplingParams
from trimtab_services.generation.engines.base import SequenceRequest
from trimtab_services.generation.engines.staging import canary_token_ids, model_tensors
from trimtab_services.generation.engines.vllm.sampling import CounterSampler, Drawn, WorkerExtension, sampling_arguments
from trimtab_services.generation.engines.vllm.transfer import BACKEND, register_backend

__all__ = ["CoreLimits", "Step", "VLLMCore"]

_CANARY = -1
"""Number of the canary's sequence; others count from 0."""

_TOLERANCE = {torch.float32: 2e-3}
"""How far the log-prob of the canary's next token may lie from transformers' own, in nats."""

_COARSE_TOLERANCE = 0.3
"""The same in 16 bits, where the two round in different places."""


@dataclass(frozen=True, slots=True)
class CoreLimits:
    """What vLLM is built for.

    Attributes:
        device: `cpu`, or a GPU.
        slots: sequences that run at once.
        max_sequence_tokens: most tokens of prompt plus completion.
        prefill_tokens_per_step: most prompt tokens computed in one step.
        prefill_chunk_tokens: longest piece of one prompt in a step.
        kv_cache_bytes: for keys and values; None: what all slots need on a CPU, what vLLM finds free on a GPU.
        share_prefixes: whether a prompt's keys and values serve other sequences that begin with it.
    """

    device: str
    slots: int
    max_sequence_tokens: int
    prefill_tokens_per_step: int
    prefill_chunk_tokens: int
    kv_cache_bytes: int | None
    share_prefixes: bool


@dataclass(frozen=True, slots=True)
class Step:
    """A token of a sequence.

    Attributes:
        number: of the sequence.
        drawn: the token, its log-prob, and whether the logits were finite.
        cached_tokens: of its prompt that were not computed anew.
    """

    number: int
    drawn: Drawn
    cached_tokens: int


class VLLMCore:
    """One `LLMEngine`.

    Args:
        model: whose configuration, dtype and weights it takes; it stays the caller's.
        limits: of slots and tokens.

    Raises:
        ConfigError: vLLM was built for another device, or keys and values do not fit into memory.
        Unsupported: vLLM cannot run the architecture.
        Mismatch: its parameters and the model's tensors do not match.
        InternalError: with the weights in place it computes something else than the model.
    """

    def __init__(self, model: PreTrainedModel, limits: CoreLimits) -> None:
        kind = limits.device.split(":")[0]
        if current_platform.device_type != kind:
            raise ConfigError(
                f"device: {limits.device} is not what the installed vLLM runs on; allowed: "
                f"{current_platform.device_type}",
                field="device",
                value=limits.device,
                limit=current_platform.device_type,
            )
        self._limits = limits
        self._names: dict[int, str] = {}
        register_backend()
        with tempfile.TemporaryDirectory(prefix="trimtab-vllm-") as folder:
            _write_config(model, Path(folder))
            try:
                self._engine = LLMEngine.from_engine_args(_arguments(model, limits, folder))
                # vLLM's own finalizer ends the process groups, which another engine of this process may use.
                self._engine.engine_core._finalizer.detach()
                self._closing = weakref.finalize(self, _shut_down, self._engine)
                self._closing.atexit = False
                self.apply(model)
            except (ValueError, RuntimeError) as error:  # as the canary does where a kernel lacks a size of head
                raise _refusal(model, error) from error

    @property
    def busy(self) -> int:
        """Sequences that have a slot."""
        return len(self._scheduler.running)

    @property
    def running(self) -> set[int]:
        """Their numbers."""
        names = {request.request_id for request in self._scheduler.running}
        return {number for number, name in self._names.items() if name in names}

    @property
    def _scheduler(self) -> Any:
        return self._engine.engine_core.engine_core.scheduler

    def add(
        self, request: SequenceRequest, number: int, generated: list[int], suppressed: tuple[int, ...], arrival: int
    ) -> None:
        """Queues a sequence.

        Args:
            request: what was asked.
            number: names it from now on.
            generated: tokens of the completion that it has already.
            suppressed: ids that it cannot sample before `min_new_tokens`.
            arrival: its place among those of its priority.
        """
        parameters = VLLMSamplingParams(
            temperature=0.0,  # the choice is made by `CounterSampler`
            max_tokens=request.sampling.max_new_tokens - len(generated),
            ignore_eos=True,  # ends are decided by whoever steps
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=sampling_arguments(request, number, len(generated), suppressed),
            skip_clone=True,
        )
        prompt: Any = {"type": "token", "prompt_token_ids": [*request.prompt_token_ids, *generated]}
        self._names[number] = self._engine.add_request(
            str(number), prompt, parameters, arrival_time=float(arrival), priority=request.priority
        )

    def drop(self, numbers: list[int]) -> None:
        """Forgets sequences; their slots are free before the next step."""
        names = [self._names.pop(number) for number in numbers if number in self._names]
        self._engine.abort_request(names, internal=True)

    def step(self) -> list[Step]:
        """One step; at most one token for each sequence that runs."""
        outputs = self._engine.step()
        if not outputs:
            return []
        drawn = self._engine.collective_rpc("trimtab_drawn")[0]
        steps = []
        for output in outputs:
            number = int(output.request_id)
            token_ids = list(output.outputs[0].token_ids)
            if token_ids:
                steps.append(Step(number, drawn[number], output.num_cached_tokens or 0))
                if token_ids != [drawn[number][0]]:
                    raise InternalError(
                        f"vLLM has taken tokens {token_ids} where {drawn[number][0]} was drawn", field="token_ids"
                    )
            if output.finished:
                del self._names[number]
        return steps

    def apply(self, model: PreTrainedModel) -> None:
        """Puts the weights of a model in the place of those that serve; nothing may be between two of its steps.

        Raises:
            Mismatch: its tensors and vLLM's parameters do not match; what serves then is undefined.
            InternalError: vLLM computes something else than the model; not tried while sequences keep keys and values.
        """
        rpc = self._engine.collective_rpc
        rpc("start_weight_update")
        rpc("update_weights", args=({"tensors": model_tensors(model)},))
        rpc("finish_weight_update")
        if self._names:
            return  # their keys and values are kept, so that the canary cannot run alone
        self._forget_prefixes()
        self._try_canary(model)

    def close(self) -> None:
        """Gives its memory back."""
        self._closing()

    def _forget_prefixes(self) -> None:
        if not self._engine.reset_prefix_cache():
            raise InternalError("vLLM has not forgotten the keys and values of the weights before", field="weights")

    @torch.inference_mode()
    def _try_canary(self, model: PreTrainedModel) -> None:
        """The next token of a fixed prompt has the log-prob that the model gives it."""
        prompt = tuple(canary_token_ids(model)[: self._limits.max_sequence_tokens - 1])
        sampling = SamplingParams(temperature=0.0, max_new_tokens=1, ignore_eos=True)
        self.add(SequenceRequest(0, prompt, sampling), _CANARY, [], (), 0)
        steps: list[Step] = []
        while not steps:
            steps = self.step()
        token, logprob, finite = steps[0].drawn
        logits = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]
        expected = logits.float().log_softmax(-1)[token].item()
        allowed = _TOLERANCE.get(model.dtype, _COARSE_TOLERANCE)
        if not finite or abs(logprob - expected) > allowed:
            raise InternalError(
                f"vLLM gives the canary's next token a log-prob of {logprob:.4f}, transformers {expected:.4f}; at most "
                f"{allowed} apart are allowed: {type(model).__name__} does not compute the same there",
                reason=Reason.INTERNAL if finite else Reason.NOT_FINITE,
                field="logprobs",
                value=logprob,
                limit=expected,
            )


def _shut_down(engine: LLMEngine) -> None:
    core: Any = engine.engine_core.engine_core
    core.model_executor.shutdown()
    core.scheduler.shutdown()


def _arguments(model: PreTrainedModel, limits: CoreLimits, folder: str) -> EngineArgs:
    on_cpu = limits.device == "cpu"
    kv_cache_bytes = limits.kv_cache_bytes or (_bytes_of_slots(model, limits) if on_cpu else None)
    return EngineArgs(
        model=folder,
        skip_tokenizer_init=True,
        generation_config="vllm",  # what is asked holds, not the folder's own defaults
        load_format="dummy",  # weights come through `apply`
        dtype=str(model.dtype).removeprefix("torch."),
        max_model_len=limits.max_sequence_tokens,
        max_num_seqs=limits.slots,
        max_num_batched_tokens=limits.slots + limits.prefill_tokens_per_step,
        long_prefill_token_threshold=min(limits.prefill_chunk_tokens, limits.max_sequence_tokens),
        enable_prefix_caching=limits.share_prefixes,
        kv_cache_memory_bytes=kv_cache_bytes,
        scheduling_policy="priority",
        async_scheduling=False,  # a step would begin before the tokens of the last one are known
        enforce_eager=on_cpu,  # compiling takes minutes there and wins little
        logits_processors=[CounterSampler],
        worker_extension_cls=f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}",
        weight_transfer_config={"backend": BACKEND},
        disable_log_stats=True,
    )


def _write_config(model: PreTrainedModel, folder: Path) -> None:
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)


def _bytes_of_slots(model: PreTrainedModel, limits: CoreLimits) -> int:
    """Bytes of keys and values of all slots at full length, in blocks of 128 tokens, and of one block that is void."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    blocks = limits.slots * -(-limits.max_sequence_tokens // 128) + 2
    return 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize * 128 * blocks


def _refusal(model: PreTrainedModel, error: Exception) -> ConfigError | Unsupported:
    """What vLLM refused at its start, in one line."""
    text = " ".join(str(error).split())
    if "memory" in text.lower():
        return ConfigError(
            f"slots: vLLM has no memory for their keys and values: {text[:300]}; allowed: fewer slots, a smaller "
            "max_sequence_tokens or kv_cache_gib",
            field="slots",
        )
    return Unsupported(f"vLLM cannot run {type(model).__name__}: {text[:300]}", field="architecture")
