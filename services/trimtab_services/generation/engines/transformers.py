"""The embedded engine: continuous batching over any Hugging Face causal language model, on CPU or GPU.

Collaborators: `lane` computes the `running` sequences (slots, prefill, decode; on a GPU by `decode_graphs` and
`grouped_attention`), `slot_cache` holds keys and values, `staging` checks new weights, `checks` refuses what cannot be
held, `stops` finds stop strings, `..sampling` draws tokens. This module queues, admits, ends and swaps.

Why not transformers' own continuous batching (`transformers.generation.continuous_batching`, read in 5.19)? It has
log-probs (`return_logprobs`), but they are those after the logits processors, so top-p and top-k leak into them. It has
one seed for the whole manager and draws with `torch.multinomial`: a sequence's tokens depend on its neighbours. It has
no weight swap that keeps sequences running, no fixed shapes, and a manager thread of its own. It packs all tokens of a
step into one row, so sdpa attention computes every query against every other sequence's keys and masks them: on a CPU
it is slower than slots, and its cache must be sized by hand there.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.errors import ConfigError, FailedPrecondition, TrimtabError
from trimtab.types import FinishReason
from trimtab_models.loading import vocab_size
from trimtab_services.generation.engines.base import EngineLoad, FinishedSequence, SequenceRequest
from trimtab_services.generation.engines.checks import (
    check_request,
    check_slots_fit,
    model_eos_token_ids,
    sequence_limit,
)
from trimtab_services.generation.engines.grouped_attention import use_grouped_attention
from trimtab_services.generation.engines.lane import Lane, LaneLimits
from trimtab_services.generation.engines.running import Running
from trimtab_services.generation.engines.staging import staged_copy
from trimtab_services.generation.sampling import uniforms

__all__ = ["TransformersEngine"]


@dataclass(order=True, slots=True)
class _Waiting:
    """A sequence without a slot; the smallest one gets the next that is free.

    Attributes:
        priority, arrival: its place.
        request: what was asked.
        lane: the weights that it was promised when it came, where it must finish on them; None: those of the day.
        version: of the promised weights.
    """

    priority: int
    arrival: int
    request: SequenceRequest = field(compare=False)
    lane: Lane | None = field(compare=False)
    version: int = field(compare=False)


class TransformersEngine:
    """Continuous batching over slots; implements `engines.base.Engine`.

    Args:
        model: a causal language model with full or sliding attention in every layer; the engine owns it from now on.
        version: of its weights.
        tokenizer: needed for stop strings only.
        eos_token_ids: ids that end a completion; None takes them from the model's generation config.
        slots: sequences that run at once.
        max_sequence_tokens: most tokens of prompt plus completion; None takes the model's context length.
        prefill_tokens_per_step: most prompt tokens computed in one step, so that newcomers delay the running sequences
            by a bounded time.
        prefill_chunk_tokens: longest piece of one prompt in a forward; never longer than `prefill_tokens_per_step`.
        deterministic: tokens and log-probs bit-equal whatever the neighbours, load, order or slot, on the same kind of
            processor, torch build, thread count and slots.
        kv_on_swap: what becomes of the keys and values of a sequence that goes on under new weights: "recompute" or
            "keep".

    Raises:
        ConfigError: an argument is out of bounds, or more slots than keys and values have memory for on a GPU.
        Unsupported: a layer is neither full nor sliding attention (recurrent, convolutional, chunked).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        version: int = 0,
        tokenizer: PreTrainedTokenizerBase | None = None,
        eos_token_ids: tuple[int, ...] | None = None,
        slots: int = 32,
        max_sequence_tokens: int | None = None,
        prefill_tokens_per_step: int = 512,
        prefill_chunk_tokens: int = 256,
        deterministic: bool = False,
        kv_on_swap: Literal["recompute", "keep"] = "recompute",
    ) -> None:
        for name, value in (
            ("slots", slots),
            ("prefill_tokens_per_step", prefill_tokens_per_step),
            ("prefill_chunk_tokens", prefill_chunk_tokens),
        ):
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1", field=name, value=value, limit=">= 1")
        if kv_on_swap not in ("recompute", "keep"):
            raise ConfigError(
                f"kv_on_swap is {kv_on_swap!r}; allowed are 'recompute' and 'keep'",
                field="kv_on_swap",
                value=kv_on_swap,
                limit="recompute, keep",
            )
        self._max_sequence_tokens = sequence_limit(model, max_sequence_tokens)
        # Rows of a matrix product do not depend on their number when it is a multiple of 4 x threads (measured); 8 at
        # least, so that vectorised loops meet no remainder.
        multiple = max(8, 4 * torch.get_num_threads()) if model.device.type == "cpu" else 16
        if model.device.type == "cuda":
            check_slots_fit(model, slots, self._max_sequence_tokens)
            use_grouped_attention(model)
        chunk_tokens = min(prefill_chunk_tokens, prefill_tokens_per_step)
        limits = LaneLimits(slots, self._max_sequence_tokens, chunk_tokens, deterministic, multiple)
        self._lanes = [Lane(model.eval(), version, limits)]
        self._limits = limits
        self._tokenizer = tokenizer
        self._eos = frozenset(model_eos_token_ids(model) if eos_token_ids is None else eos_token_ids)
        self._vocab = vocab_size(model)
        self._prefill_budget = prefill_tokens_per_step
        self._keep_kv = kv_on_swap == "keep"
        self._staged: tuple[int, PreTrainedModel] | None = None
        self._waiting: list[_Waiting] = []
        self._waiting_tokens = 0
        self._arrivals = itertools.count()
        self._held: dict[int, Running | None] = {}
        self._finished: list[FinishedSequence] = []
        self._decoded_tokens = 0
        self._retired_prefill_tokens = 0

    @property
    def model(self) -> PreTrainedModel:
        """The model that new sequences start on."""
        return self._lanes[-1].model

    @property
    def version(self) -> int:
        """The version that new sequences start on."""
        return self._lanes[-1].version

    @property
    def staged_version(self) -> int | None:
        """The version that the next `swap` brings in, or None."""
        return self._staged[0] if self._staged else None

    @property
    def deterministic(self) -> bool:
        """Whether tokens and log-probs are bit-equal whatever the neighbours, the load and the order."""
        return self._limits.deterministic

    @property
    def max_sequence_tokens(self) -> int:
        """Most tokens of prompt plus completion."""
        return self._max_sequence_tokens

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._held)

    def load(self) -> EngineLoad:
        """Slots, queue and counters now."""
        outstanding = self._waiting_tokens
        for running in (sequence for lane in self._lanes for sequence in lane.running()):
            left = running.request.sampling.max_new_tokens - len(running.generated)
            outstanding += left + max(running.target - running.filled, 0)
        busy = sum(lane.busy for lane in self._lanes)
        return EngineLoad(
            slots=self._limits.slots,
            busy_slots=busy,
            waiting_sequences=len(self._held) - busy,
            outstanding_tokens=outstanding,
            computed_prefill_tokens=self._retired_prefill_tokens + sum(x.computed_prefill_tokens for x in self._lanes),
            computed_decode_tokens=self._decoded_tokens,
        )

    def new_tokens_before(self, priority: int) -> int:
        """New tokens still allowed to what goes before a newcomer; see `Engine.new_tokens_before`."""
        running = sum(sequence.left for lane in self._lanes for sequence in lane.running())
        ahead = (waiting.request for waiting in self._waiting if waiting.priority <= priority)
        return running + sum(request.sampling.max_new_tokens for request in ahead)

    def submit(self, request: SequenceRequest) -> None:
        """Queue a sequence; see `Engine.submit`."""
        check_request(
            request,
            held=self._held,
            vocab=self._vocab,
            max_sequence_tokens=self._max_sequence_tokens,
            has_tokenizer=self._tokenizer is not None,
        )
        lane = self._lanes[-1]
        promised = lane if self._stays(request) else None
        heapq.heappush(self._waiting, _Waiting(request.priority, next(self._arrivals), request, promised, lane.version))
        self._waiting_tokens += request.most_tokens
        self._held[request.sequence_id] = None

    @torch.inference_mode()  # a slot that others read from may have to be copied
    def cancel(self, sequence_id: int) -> FinishedSequence | None:
        """Drop a waiting or running sequence; see `Engine.cancel`."""
        if sequence_id not in self._held:
            return None
        running = self._held.pop(sequence_id)
        if running is None:
            gone = next(waiting for waiting in self._waiting if waiting.request.sequence_id == sequence_id)
            self._waiting.remove(gone)
            self._waiting_tokens -= gone.request.most_tokens
            heapq.heapify(self._waiting)
            self._drop_drained_lanes()
            return FinishedSequence(sequence_id, (), np.empty(0, np.float32), FinishReason.CANCELLED, ())
        next(lane for lane in self._lanes if running in lane.seats).release(running)
        self._drop_drained_lanes()
        return running.finished(FinishReason.CANCELLED)

    @torch.inference_mode()
    def step(self) -> list[FinishedSequence]:
        """One bounded piece of prefill and one token for every running sequence; see `Engine.step`."""
        while self._waiting and sum(lane.busy for lane in self._lanes) < self._limits.slots:
            waiting = heapq.heappop(self._waiting)
            self._waiting_tokens -= waiting.request.most_tokens
            running = self._start(waiting)
            self._held[running.request.sequence_id] = running
            (waiting.lane or self._lanes[-1]).admit(running)
        budget = self._prefill_budget
        for lane in self._lanes:
            budget -= lane.prefill(budget)
            lane.decode(lambda *token, lane=lane: self._accept(lane, *token))
        self._drop_drained_lanes()
        finished, self._finished = self._finished, []
        return finished

    def stage(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Check new weights on a second copy; see `Engine.stage`. Replaces what was staged before."""
        self._staged = None
        self._staged = (version, staged_copy(self.model, version, tensors))

    @property
    def can_swap(self) -> bool:
        """True: sequences that stay on their weights do so beside the new ones."""
        return True

    @torch.inference_mode()
    def swap(self) -> int:
        """Serve the staged weights from the next step on; see `Engine.swap`."""
        if self._staged is None:
            raise FailedPrecondition("nothing is staged to swap to", field="staged_version", limit="a staged version")
        (version, model), self._staged = self._staged, None
        old = self._lanes[-1]
        if self._is_promised(old) or any(self._stays(s.request) for s in old.running()):
            new = Lane(model, version, self._limits)
            self._lanes.append(new)
            for sequence in [s for s in old.running() if not self._stays(s.request)]:
                slot = sequence.slot
                old.release(sequence)
                sequence.leader = None
                self._renew(new, sequence)
                new.admit(sequence)
                if sequence.filled:
                    new.cache.copy_from(old.cache, slot, sequence.slot, sequence.filled)
        else:
            old.change_model(model, version)
            for sequence in old.running():
                self._renew(old, sequence)
        return version

    def renumber(self, version: int) -> None:
        """Give the served weights another version number; see `Engine.renumber`."""
        self._lanes[-1].version = version

    def _stays(self, request: SequenceRequest) -> bool:
        """Whether a sequence finishes on the weights that served when it came."""
        return request.finish_on_version or self.deterministic

    def _is_promised(self, lane: Lane) -> bool:
        """Whether a sequence waits for a slot on the lane's weights."""
        return any(waiting.lane is lane for waiting in self._waiting)

    def _renew(self, lane: Lane, sequence: Running) -> None:
        """Put a sequence under the lane's weights; its completion starts a new span there."""
        kept = self._keep_kv and bool(sequence.generated)
        if kept:
            sequence.pure = False
        else:
            lane.restart_prefill(sequence)
        sequence.continue_under(lane.version, kv_kept=kept)

    def _drop_drained_lanes(self) -> None:
        """Let go of old weights as soon as no sequence needs them."""
        for lane in self._lanes[:-1]:
            if not lane.busy and not self._is_promised(lane):
                self._retired_prefill_tokens += lane.computed_prefill_tokens
                self._lanes.remove(lane)

    def _start(self, waiting: _Waiting) -> Running:
        """A sequence about to take a slot."""
        request = waiting.request
        return Running(
            request=request,
            eos=self._eos,
            uniforms=uniforms(request.seed, request.sample_index, np.arange(request.sampling.max_new_tokens)),
            # The number promised, even where the same weights have another one by now.
            spans=[(0, waiting.version, False)] if waiting.lane is not None else [],
        )

    def _accept(self, lane: Lane, sequence: Running, token: int, logprob: float, finite: bool) -> None:
        """Append a token and end the sequence where it must end."""
        if not finite:
            self._end(lane, sequence, FinishReason.CANCELLED, sequence.not_finite(lane.version))
            lane.cache.clear(sequence.slot)
            return
        self._decoded_tokens += 1
        reason = sequence.add(token, logprob, self._tokenizer)
        if reason is not None:
            self._end(lane, sequence, reason)

    def _end(self, lane: Lane, sequence: Running, reason: FinishReason, error: TrimtabError | None = None) -> None:
        lane.release(sequence)
        self._held.pop(sequence.request.sequence_id)
        self._finished.append(sequence.finished(reason, error))
