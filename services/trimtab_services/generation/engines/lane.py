"""A lane: slots that run on one set of weights. Prefill, decode, and who sits where.

An engine has one lane, and for a while a second one when sequences finish on the weights before a swap. The engine
decides who enters (`TransformersEngine`); the lane computes. Two ideas carry it:

- **Prefill never samples.** It computes keys and values of all tokens but the last; the last one is the query of the
  next decode step. So a first token, a later one and one after a weight swap come from the same code and, in
  deterministic mode, the same shapes.
- **Rows are dense.** Without determinism the running sequences sit in slots 0..n-1 (a freed slot is refilled or the
  last one moves into it), and a step computes n rows. In deterministic mode every slot is computed in every step, since
  a kernel's rounding may depend on the number of rows.

On a GPU steps come in few shapes, since each is recorded once and then replayed (`decode_graphs`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from trimtab_models.attention import layer_masks, sliding_window
from trimtab_services.generation.engines.decode_graphs import DecodeGraphs, NotRecordable
from trimtab_services.generation.engines.running import Running
from trimtab_services.generation.engines.slot_cache import DecodeWrite, PrefillWrite, SlotCache
from trimtab_services.generation.sampling import SampledTokens, SamplingRow, sample_tokens

__all__ = ["Lane", "LaneLimits"]

_log = logging.getLogger(__name__)

_IDLE = SamplingRow(uniform=0.0)
_GPU_KEYS = 256
"""On a GPU a decode step reads a multiple of so many keys: few shapes to record."""
_GPU_PREFILL = 2048
"""Padded tokens of a prefill that take a GPU no longer than starting its kernels does."""
_GPU_PREFILL_STEPS = 4
"""Decode steps between two prefills on a GPU, each of which takes as long as several of them: newcomers gather."""


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """Shapes that every lane of an engine shares.

    Attributes:
        slots: sequences at once.
        max_sequence_tokens: positions that the model has.
        prefill_chunk_tokens: longest piece of a prompt in one forward.
        deterministic: fixed shapes, see the module docstring.
        row_multiple: in deterministic mode, rows of a decode step and tokens of a padded prompt piece are multiples
            of it.
    """

    slots: int
    max_sequence_tokens: int
    prefill_chunk_tokens: int
    deterministic: bool
    row_multiple: int

    @property
    def rows(self) -> int:
        """Rows that the cache holds: the slots, in deterministic mode rounded up."""
        return -(-self.slots // self.row_multiple) * self.row_multiple if self.deterministic else self.slots


class Lane:
    """Slots over one model.

    Args:
        model: a causal language model in eval mode.
        version: of its weights.
        limits: shapes.
        cache: a cache to take over; None makes a new one.
    """

    def __init__(
        self, model: PreTrainedModel, version: int, limits: LaneLimits, cache: SlotCache | None = None
    ) -> None:
        self.model = model
        self.version = version
        self.limits = limits
        self.cache = cache or SlotCache(limits.rows, limits.max_sequence_tokens)
        self.seats: list[Running | None] = [None] * limits.slots
        self.computed_prefill_tokens = 0
        self._admitted = 0
        self.device = model.device
        self._on_gpu = self.device.type == "cuda"
        self._window = sliding_window(model)
        # On a GPU as long as it can ever be needed, padding included: what is recorded reads it where it lies.
        padding = _GPU_KEYS + limits.prefill_chunk_tokens + limits.row_multiple
        longest = max(limits.rows, limits.max_sequence_tokens + padding)
        self._columns = torch.arange(longest if self._on_gpu else 0, device=self.device)
        self._seen = torch.zeros((), dtype=model.dtype, device=self.device)
        self._unseen = torch.full_like(self._seen, -math.inf)
        self._steps_since_prefill = _GPU_PREFILL_STEPS
        self._graphs: DecodeGraphs | None = None
        self._recorded_capacity = 0
        self._recordable = self._on_gpu

    def change_model(self, model: PreTrainedModel, version: int) -> None:
        """Compute with other weights from now on; what becomes of the running sequences is for the caller to say."""
        self.model, self.version, self._graphs = model, version, None

    def running(self) -> Iterator[Running]:
        """The sequences that hold a slot, by slot."""
        return (seat for seat in self.seats if seat is not None)

    @property
    def busy(self) -> int:
        """Slots taken."""
        return sum(seat is not None for seat in self.seats)

    def admit(self, sequence: Running) -> None:
        """Give a sequence the first free slot; samples of one prompt share one prefill of it."""
        sequence.slot = self.seats.index(None)
        self.seats[sequence.slot] = sequence
        if not sequence.spans:
            sequence.spans.append((0, self.version, False))
        self._admitted += 1
        sequence.order = self._admitted
        self.cache.reserve(sequence.target + 1)
        if sequence.ready or sequence.generated:
            return
        for other in self.running():
            same = other.request.prompt_token_ids == sequence.request.prompt_token_ids
            if other is sequence or not same or not other.pure or other.leader is not None:
                continue
            if other.filled >= sequence.target:
                self.cache.copy(other.slot, sequence.slot, sequence.target)
                sequence.filled = sequence.target
            elif not other.generated:
                sequence.leader = other
            else:
                continue
            return

    def release(self, sequence: Running) -> None:
        """Free a slot; those who waited for its prefill go on from where it stopped."""
        self.seats[sequence.slot] = None
        heir: Running | None = None
        for other in self.running():
            if other.leader is not sequence:
                continue
            other.leader = heir
            if heir is None:
                heir = other
                self.cache.copy(sequence.slot, other.slot, sequence.filled)
                other.filled = sequence.filled

    def restart_prefill(self, sequence: Running) -> None:
        """Throw a sequence's keys and values away, to compute them again under the lane's weights."""
        sequence.filled, sequence.pure = 0, True

    def prefill(self, budget: int) -> int:
        """Compute at most `budget` prompt tokens, first come first served; returns how many."""
        self._steps_since_prefill += 1
        if self._on_gpu and self._steps_since_prefill <= _GPU_PREFILL_STEPS and any(s.ready for s in self.running()):
            return 0
        left = budget
        chosen: list[tuple[Running, int]] = []
        pending = [s for s in self.running() if not s.ready and s.leader is None]
        for sequence in sorted(pending, key=lambda s: s.order):
            piece = min(sequence.target - sequence.filled, self.limits.prefill_chunk_tokens)
            if piece > left:
                break
            left -= piece
            chosen.append((sequence, piece))
        for batch in self._prefill_batches(chosen):
            self._prefill_batch(batch)
            self._steps_since_prefill = 0
        for sequence in self.running():
            if sequence.leader is not None and sequence.leader.ready:
                self.cache.copy(sequence.leader.slot, sequence.slot, sequence.target)
                sequence.filled, sequence.leader = sequence.target, None
        return budget - left

    def _padded(self, tokens: int) -> int:
        """Length of a prompt piece in a forward."""
        unit = self.limits.row_multiple if self.limits.deterministic else 1
        return -(-tokens // unit) * unit

    def _prefill_batches(self, chosen: list[tuple[Running, int]]) -> Iterator[list[tuple[Running, int]]]:
        """Split pieces into forwards: of one shape in deterministic mode, else with little padding."""
        by_shape = sorted(chosen, key=lambda c: (self._padded(c[1]), c[0].filled))
        batch: list[tuple[Running, int]] = []
        for sequence, piece in by_shape:
            if batch:
                first, first_piece = batch[0]
                if self.limits.deterministic and self._on_gpu:
                    fits = False  # there the rounding of a row changes with the number of rows, whatever that is
                elif self.limits.deterministic:
                    fits = self._padded(piece) == self._padded(first_piece) and sequence.filled == first.filled
                else:
                    is_small = self._on_gpu and (len(batch) + 1) * piece <= _GPU_PREFILL
                    fits = is_small or piece <= 2 * first_piece + 8
                if not fits:
                    yield batch
                    batch = []
            batch.append((sequence, piece))
        if batch:
            yield batch

    def _prefill_batch(self, batch: list[tuple[Running, int]]) -> None:
        """One forward over pieces of prompts, right-padded; the base model only, since nothing is sampled."""
        width = self._padded(max(piece for _, piece in batch))
        starts = torch.tensor([s.filled for s, _ in batch], device=self.device)
        tokens = []
        for sequence, piece in batch:
            ids = sequence.tokens(sequence.filled, sequence.filled + piece)
            tokens.append(ids + ids[-1:] * (width - piece))
        positions = starts[:, None] + torch.arange(width, device=self.device)
        longest = max(s.filled for s, _ in batch) + width
        self.cache.reserve(longest)
        fresh = all(s.filled == 0 for s, _ in batch)
        mask = None if fresh else self._mask(positions, longest)
        rows = torch.tensor([s.slot for s, _ in batch], device=self.device)
        self.cache.write = PrefillWrite(rows, positions, None if fresh else longest)
        self.model.base_model(
            input_ids=torch.tensor(tokens, device=self.device),
            attention_mask=mask,
            # Padding may lie behind the last position that the model has an embedding for.
            position_ids=positions.clamp_max(self.limits.max_sequence_tokens - 1),
            past_key_values=self.cache,
            use_cache=True,
        )
        for sequence, piece in batch:
            sequence.filled += piece
            self.computed_prefill_tokens += piece

    def decode(self, accept: Callable[[Running, int, float, bool], None]) -> None:
        """Sample one token for every sequence whose prompt is computed.

        Args:
            accept: called for each of them with (sequence, token id, logprob, whether the logits were finite); it may
                release the sequence.
        """
        ready = [s for s in self.running() if s.ready]
        if not ready:
            return
        if not self.limits.deterministic and self._rows(self.busy) < self._rows(self._top):
            self._close_gaps()
        rows = self._rows(self._top)
        tokens, positions, sampling = [0] * rows, [0] * rows, [_IDLE] * rows
        for s in self.running():
            # A row in prefill is computed too and thrown away; what it writes is overwritten by its next piece.
            positions[s.slot] = s.filled
            if s.ready:
                tokens[s.slot], sampling[s.slot] = s.last_token, s.sampling_row()
        unit = _GPU_KEYS if self._on_gpu else 64 if self.limits.deterministic else 8
        length = -(-(max(s.filled for s in ready) + 1) // unit) * unit
        self.cache.reserve(max(length, max(positions) + 1))
        sampled = self._replayed(tokens, positions, length, sampling)
        index: Sequence[int] = [s.slot for s in ready]
        if sampled is None:
            logits = self._logits(
                torch.tensor(tokens, device=self.device), torch.tensor(positions, device=self.device), length
            )
            if not self.limits.deterministic and len(ready) < rows:
                logits, sampling, index = logits[index], [sampling[i] for i in index], range(len(ready))
            sampled = sample_tokens(logits, sampling)
        for sequence, i in zip(ready, index, strict=True):
            sequence.filled += 1
            accept(sequence, sampled.token_ids[i], sampled.logprobs[i], sampled.finite[i])

    @property
    def _top(self) -> int:
        """Slots up to the last one that is taken."""
        return 1 + max(s.slot for s in self.running())

    def _rows(self, slots: int) -> int:
        """Rows of a decode step of the first so many slots; what has no sequence is thrown away."""
        if self.limits.deterministic:
            return self.limits.rows
        return min(self.limits.slots, 1 << (slots - 1).bit_length()) if self._on_gpu else slots

    def _logits(self, tokens: Tensor, positions: Tensor, length: int) -> Tensor:
        """One token more in each of the first rows.

        Args:
            tokens: int64 [rows], the queries.
            positions: int64 [rows], where they go.
            length: keys that attention reads.

        Returns:
            [rows, vocab].
        """
        self.cache.write = DecodeWrite(self._arange(len(tokens)), positions, length)
        with self._attention():
            logits: Tensor = self.model(
                input_ids=tokens[:, None],
                attention_mask=self._mask(positions[:, None], length),
                position_ids=positions[:, None].clamp_max(self.limits.max_sequence_tokens - 1),
                past_key_values=self.cache,
                use_cache=True,
            ).logits[:, -1]
        return logits

    def _replayed(
        self, tokens: Sequence[int], positions: Sequence[int], length: int, sampling: Sequence[SamplingRow]
    ) -> SampledTokens | None:
        """A decode step as recorded; None where none can be, which a model shows at the first attempt."""
        if not self._recordable:
            return None
        if self._graphs is None or self._recorded_capacity != self.cache.capacity:
            self._graphs, self._recorded_capacity = DecodeGraphs(self.device), self.cache.capacity
        try:
            return self._graphs.sample(self._logits, tokens, positions, length, sampling)
        except NotRecordable as error:
            _log.warning("decode steps are not recorded, which costs speed alone", extra={"error": str(error)})
            self._recordable, self._graphs = False, None
            return None

    def _attention(self) -> AbstractContextManager[object]:
        """What a decode step's attention runs on in deterministic mode: what rounds alike whatever is masked out.

        The fused CPU kernel gives each thread a scratch buffer whose alignment differs, and with it the rounding: equal
        rows came out unequal by one unit in the last place when different threads computed them. On a GPU it is the
        plain matrix products that round otherwise when there are more keys, and one fused kernel that does not.
        """
        if not self.limits.deterministic:
            return nullcontext()
        return sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION if self._on_gpu else SDPBackend.MATH)

    def _close_gaps(self) -> None:
        """Move the last sequences into free slots in front of them."""
        while self.seats[: self.busy].count(None):
            hole = self.seats.index(None)
            source = max(s.slot for s in self.running())
            moved = self.seats[source]
            if moved is not None:
                self.cache.copy(source, hole, moved.filled)
                self.seats[source], self.seats[hole], moved.slot = None, moved, hole

    def _arange(self, n: int) -> Tensor:
        """0..n-1 on the device, kept between steps."""
        if len(self._columns) < n:
            self._columns = torch.arange(max(n, 2 * len(self._columns)), device=self.device)
        return self._columns[:n]

    def _mask(self, queries: Tensor, length: int) -> Tensor | dict[str, Tensor]:
        """What a forward adds to the attention scores; one mask, or one for each kind of layer.

        Args:
            queries: [rows, seq] int64, positions.
            length: keys, from position 0.

        Returns:
            [rows, 1, seq, length] in the model's dtype: 0 for keys that the query sees, minus infinity for others.
        """
        keys = self._arange(length)
        if self._window is not None:
            # A row in prefill may be farther than a window ahead of the keys of a decode step. What it computes is
            # thrown away, but without any key it would be NaN, and so would what it leaves in its slot.
            queries = queries.clamp_max(length - 1)
        allowed = keys <= queries[:, None, :, None]
        masks = layer_masks(self._window, allowed, queries, keys[None])
        if isinstance(masks, dict):
            return {kind: self._additive(mask) for kind, mask in masks.items()}
        return self._additive(masks)

    def _additive(self, allowed: Tensor) -> Tensor:
        """0 where a boolean mask is true, minus infinity elsewhere."""
        return torch.where(allowed, self._seen, self._unseen)
