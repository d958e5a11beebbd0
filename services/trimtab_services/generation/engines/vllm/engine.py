"""The engine over vLLM: queues, ends and swaps; `core` computes.

What differs from the transformers engine, whose tests it passes:

- vLLM's kernels add up in an order that depends on the neighbours, so `deterministic` is refused. The random numbers
  are the same, so tokens are the same but for rounding.
- There is one set of weights. A sequence that must finish on its weights holds a swap up until it has ended; the host
  lets nothing new in meanwhile, so the wait is bounded by what the sequences there may still sample.
- `kv_on_swap: recompute` computes the prefixes of all running sequences anew; `keep` shares no prompts between
  sequences, since nobody else may read keys and values of other weights.
- The model stays in host memory as transformers has it: new weights are checked and tried on it, and a failure while
  they are applied starts vLLM again with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.errors import FailedPrecondition, InternalError, TrimtabError, Unsupported
from trimtab.types import FinishReason
from trimtab_models.devices import give_back_memory
from trimtab_models.loading import vocab_size
from trimtab_services.generation.engines.base import EngineLoad, FinishedSequence, SequenceRequest
from trimtab_services.generation.engines.checks import check_request, model_eos_token_ids, sequence_limit
from trimtab_services.generation.engines.completion import Completion
from trimtab_services.generation.engines.staging import staged_copy
from trimtab_services.generation.engines.vllm.installed import prepare_vllm

prepare_vllm()  # before the first import of vLLM

from trimtab_services.generation.engines.vllm.core import CoreLimits, Step, VLLMCore  # noqa: E402

__all__ = ["VLLMEngine"]

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False, kw_only=True)
class _Held(Completion):
    """A sequence of the engine.

    Attributes:
        arrival: its place among those of its priority.
        promised: the version that it must finish on; None: any.
        number: its name in the core; another one each time that it comes in anew.
        prefilled: whether its prompt is computed since it came in last.
    """

    arrival: int
    promised: int | None
    number: int = -1
    prefilled: bool = False

    @property
    def outstanding(self) -> int:
        """Tokens still to be read or sampled."""
        read = 0 if self.prefilled else len(self.request.prompt_token_ids) + len(self.generated)
        return read + self.left


class VLLMEngine:
    """Continuous batching by vLLM; implements `engines.base.Engine`.

    Args:
        model: a causal language model in host memory; the engine owns it from now on.
        version: of its weights.
        tokenizer: needed for stop strings only.
        eos_token_ids: ids that end a completion; None takes them from the model's generation config.
        device: `cpu` or a GPU: what the installed vLLM was built for.
        slots: sequences that run at once.
        max_sequence_tokens: most tokens of prompt plus completion; None takes the model's context length.
        prefill_tokens_per_step: most prompt tokens computed in one step.
        prefill_chunk_tokens: longest piece of one prompt in a step; never longer than `prefill_tokens_per_step`.
        kv_cache_bytes: for keys and values; None: what all slots need on a CPU, what vLLM finds free on a GPU.
        deterministic: must be False.
        kv_on_swap: what becomes of the keys and values of a sequence that goes on under new weights.

    Raises:
        ConfigError: an argument is out of bounds, vLLM runs on another device, or keys and values do not fit.
        Unsupported: `deterministic`, or an architecture that vLLM cannot run.
        Mismatch: the model's tensors do not reach all of vLLM's parameters.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        version: int = 0,
        tokenizer: PreTrainedTokenizerBase | None = None,
        eos_token_ids: tuple[int, ...] | None = None,
        device: str = "cpu",
        slots: int = 32,
        max_sequence_tokens: int | None = None,
        prefill_tokens_per_step: int = 512,
        prefill_chunk_tokens: int = 256,
        kv_cache_bytes: int | None = None,
        deterministic: bool = False,
        kv_on_swap: Literal["recompute", "keep"] = "recompute",
    ) -> None:
        if deterministic:
            raise Unsupported(
                "deterministic: true is not possible with engine 'vllm', whose kernels add up in an order that depends "
                "on the neighbours; allowed: false, or engine transformers",
                field="deterministic",
                value=True,
                limit=False,
            )
        self._keep_kv = kv_on_swap == "keep"
        self._limits = CoreLimits(
            device=device,
            slots=slots,
            max_sequence_tokens=sequence_limit(model, max_sequence_tokens),
            prefill_tokens_per_step=prefill_tokens_per_step,
            prefill_chunk_tokens=min(prefill_chunk_tokens, prefill_tokens_per_step),
            kv_cache_bytes=kv_cache_bytes,
            share_prefixes=not self._keep_kv,
        )
        self._model = model.eval()
        self._version = version
        self._core: VLLMCore | None = VLLMCore(self._model, self._limits)
        self._tokenizer = tokenizer
        self._eos = frozenset(model_eos_token_ids(model) if eos_token_ids is None else eos_token_ids)
        self._vocab = vocab_size(model)
        self._staged: tuple[int, PreTrainedModel] | None = None
        self._held: dict[int, _Held] = {}
        self._numbered: dict[int, _Held] = {}
        self._next_number = 0
        self._arrivals = 0
        self._finished: list[FinishedSequence] = []
        self._prefilled_tokens = 0
        self._decoded_tokens = 0

    @property
    def model(self) -> PreTrainedModel | None:
        """The model that serves, as transformers has it; None on a GPU, since it is in host memory."""
        return self._model if self._limits.device == "cpu" else None

    @property
    def version(self) -> int:
        """The version that new sequences start on."""
        return self._version

    @property
    def staged_version(self) -> int | None:
        """The version that the next `swap` brings in, or None."""
        return self._staged[0] if self._staged else None

    @property
    def deterministic(self) -> bool:
        """False: bits depend on the neighbours."""
        return False

    @property
    def max_sequence_tokens(self) -> int:
        """Most tokens of prompt plus completion."""
        return self._limits.max_sequence_tokens

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do, such as to say that vLLM is gone."""
        return bool(self._held or self._finished) or self._core is None

    def load(self) -> EngineLoad:
        """Slots, queue and counters now."""
        busy = 0 if self._core is None else self._core.busy
        return EngineLoad(
            slots=self._limits.slots,
            busy_slots=busy,
            waiting_sequences=len(self._held) - busy,
            outstanding_tokens=sum(held.outstanding for held in self._held.values()),
            computed_prefill_tokens=self._prefilled_tokens,
            computed_decode_tokens=self._decoded_tokens,
        )

    def new_tokens_before(self, priority: int) -> int:
        """New tokens still allowed to what goes before a newcomer; see `Engine.new_tokens_before`."""
        running = self._working.running
        return sum(
            held.left for held in self._held.values() if held.number in running or held.request.priority <= priority
        )

    def submit(self, request: SequenceRequest) -> None:
        """Queue a sequence; see `Engine.submit`."""
        check_request(
            request,
            held=self._held,
            vocab=self._vocab,
            max_sequence_tokens=self.max_sequence_tokens,
            has_tokenizer=self._tokenizer is not None,
        )
        promised = self._version if request.finish_on_version else None
        held = _Held(request=request, eos=self._eos, arrival=self._arrivals, promised=promised)
        self._arrivals += 1
        self._held[request.sequence_id] = held
        self._bring_in([held])

    def cancel(self, sequence_id: int) -> FinishedSequence | None:
        """Drop a waiting or running sequence; see `Engine.cancel`."""
        held = self._held.pop(sequence_id, None)
        if held is None:
            return None
        self._take_out([held])
        return held.finished(FinishReason.CANCELLED)

    def step(self) -> list[FinishedSequence]:
        """One bounded piece of prefill and one token for every running sequence; see `Engine.step`."""
        if self._held or self._core is None:
            self._advance()
        finished, self._finished = self._finished, []
        return finished

    def stage(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Check new weights on a second copy in host memory; see `Engine.stage`. Replaces what was staged before."""
        self._staged = None
        self._staged = (version, staged_copy(self._model, version, tensors))

    @property
    def can_swap(self) -> bool:
        """False while sequences are here that must finish on their weights."""
        return all(held.promised is None for held in self._held.values())

    def swap(self) -> int:
        """Serve the staged weights from the next step on; see `Engine.swap`.

        Raises:
            FailedPrecondition: nothing is staged, or sequences must finish on the weights that serve.
            InternalError: the weights could not be applied; the ones before serve again, or vLLM has ended for good.
        """
        if self._staged is None:
            raise FailedPrecondition("nothing is staged to swap to", field="staged_version", limit="a staged version")
        if not self.can_swap:
            raise FailedPrecondition(
                f"sequences must finish on version {self._version}, and vLLM has one set of weights",
                field="finish_on_version",
                limit="no such sequence",
            )
        (version, model), self._staged = self._staged, None
        stay = [held for held in self._held.values() if self._keep_kv and held.generated]
        moved = [held for held in self._held.values() if held not in stay]
        self._take_out(moved)
        failure = self._failure_of_applying(version, model)
        if failure:
            self._restart(failure)
            raise InternalError(
                f"{failure}; vLLM was started again with version {self._version}", field="version", value=version
            )
        self._model, self._version = model, version
        self._bring_in(moved)
        for held in self._held.values():
            if held.generated:
                held.continue_under(version, kv_kept=held in stay)
        return version

    def renumber(self, version: int) -> None:
        """Give the served weights another version number; see `Engine.renumber`."""
        self._version = version

    @property
    def _working(self) -> VLLMCore:
        """The core; InternalError where it could not be started again."""
        if self._core is None:
            raise InternalError("vLLM could not be started again after weights that could not be applied")
        return self._core

    def _failure_of_applying(self, version: int, model: PreTrainedModel) -> str:
        """What went wrong while a version was applied; empty where nothing did. No exception: it would hold the core's
        memory, which a new core needs."""
        try:
            self._working.apply(model)
        except Exception as error:
            _log.exception("a version could not be applied", extra={"version": version})
            return f"version {version} could not be applied: {error}"
        return ""

    def _restart(self, failure: str) -> None:
        """vLLM anew, with the last good weights; sequences go on where they were, their prefixes computed again.

        Raises:
            InternalError: it did not start; nothing is sampled any more.
        """
        self._working.close()
        self._core = None
        self._numbered.clear()
        give_back_memory()
        try:
            self._core = VLLMCore(self._model, self._limits)
        except Exception as error:
            raise InternalError(f"{failure}; vLLM could not be started again: {error}", field="version") from error
        self._bring_in(list(self._held.values()))

    def _bring_in(self, sequences: list[_Held]) -> None:
        for held in sequences:
            held.number, held.prefilled = self._next_number, False
            self._next_number += 1
            self._numbered[held.number] = held
            self._working.add(held.request, held.number, held.generated, held.suppressed, held.arrival)

    def _take_out(self, sequences: list[_Held]) -> None:
        for held in sequences:
            del self._numbered[held.number]
        if sequences:
            self._working.drop([held.number for held in sequences])

    def _advance(self) -> None:
        began = time.monotonic()
        for one in self._working.step():
            self._accept(self._numbered[one.number], one, began)

    def _accept(self, held: _Held, one: Step, began: float) -> None:
        """Append a token and end the sequence where it must end."""
        token, logprob, finite = one.drawn
        held.slot_time = held.slot_time or began
        if not held.prefilled:
            held.prefilled = True
            self._prefilled_tokens += len(held.request.prompt_token_ids) + len(held.generated) - one.cached_tokens
        if not finite:
            self._end(held, FinishReason.CANCELLED, held.not_finite(self._version))
            return
        if not held.spans:
            held.spans.append((0, self._version if held.promised is None else held.promised, False))
        self._decoded_tokens += 1
        reason = held.add(token, logprob, self._tokenizer)
        if reason is not None:
            self._end(held, reason)

    def _end(self, held: _Held, reason: FinishReason, error: TrimtabError | None = None) -> None:
        del self._held[held.request.sequence_id]
        self._take_out([held])
        self._finished.append(held.finished(reason, error))
