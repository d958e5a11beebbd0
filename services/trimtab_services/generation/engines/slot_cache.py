"""A key-value cache of slots: each row of the batch writes at its own position.

Hugging Face's dynamic cache appends to all rows at once and concatenates, so a batch must start and end together and
each step copies the whole cache. Here a slot is a row of one preallocated tensor per layer, a sequence lives in one
slot from its first to its last token, and a step writes one position per row and reads views.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import Cache

__all__ = ["DecodeWrite", "PrefillWrite", "SlotCache"]

_GROWTH = 256
"""The capacity of every slot is a multiple of this many tokens."""


@dataclass(frozen=True, slots=True)
class DecodeWrite:
    """One query token in each of the first rows.

    Attributes:
        rows: [rows] int64, 0, 1, 2, ...
        positions: [rows] int64, where each row's token goes.
        length: keys that attention reads, from position 0.
    """

    rows: Tensor
    positions: Tensor
    length: int


@dataclass(frozen=True, slots=True)
class PrefillWrite:
    """A piece of prompt in each of some slots.

    Attributes:
        rows: [rows] int64, slots.
        positions: [rows, seq] int64, where each token goes; the padding on the right goes behind the prompt and is
            overwritten before it is ever read.
        length: keys that attention reads, or None when every piece starts at position 0 and reads only itself.
    """

    rows: Tensor
    positions: Tensor
    length: int | None


class SlotCache(Cache):
    """Keys and values, per layer [slots, key-value heads, capacity, head dim], allocated at the first use.

    Every token lies at its absolute position, in sliding layers too: a window is the mask's matter, so such a layer
    keeps (and takes the memory of) all keys and values, not only those that it still sees.

    Set `write` before each forward: it says which rows and positions the new keys and values go to and what attention
    reads back.

    Args:
        slots: sequences that it holds.
        most_tokens: of a sequence; beyond it a slot grows only as far as the padding of a prompt asks for.
    """

    def __init__(self, slots: int, most_tokens: int) -> None:
        super().__init__(layers=[])
        self.slots = slots
        self.most_tokens = most_tokens
        self.capacity = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.write: DecodeWrite | PrefillWrite | None = None

    @property
    def bytes_of_full_slot(self) -> int:
        """Keys and values of the longest sequence, over the layers that have been written."""
        layers = [*self.keys, *self.values]
        of_token = sum(layer.shape[1] * layer.shape[3] * layer.element_size() for layer in layers)
        return _rounded(self.most_tokens) * of_token

    def reserve(self, tokens: int) -> None:
        """Make room for that many tokens in every slot; what is there is kept."""
        if tokens <= self.capacity:
            return
        # At least doubling keeps the copies below the work that filled the cache.
        wanted = _rounded(max(tokens, min(2 * self.capacity, self.most_tokens)))
        for store in (self.keys, self.values):
            for i, old in enumerate(store):
                store[i] = old.new_zeros(old.shape[0], old.shape[1], wanted, old.shape[3])
                store[i][:, :, : self.capacity] = old
        self.capacity = wanted

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of one slot over another."""
        for store in (self.keys, self.values):
            for layer in store:
                layer[target, :, :tokens] = layer[source, :, :tokens]

    def copy_from(self, other: SlotCache, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of another cache's slot; both caches belong to models of one shape."""
        self.reserve(tokens)
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for i, layer in enumerate(theirs):
                if len(mine) <= i:
                    mine.append(layer.new_zeros(self.slots, layer.shape[1], self.capacity, layer.shape[3]))
                mine[i][target, :, :tokens] = layer[source, :, :tokens]

    def clear(self, slot: int) -> None:
        """Zero a slot. Needed only after values that are not finite: a masked NaN would still spread."""
        for store in (self.keys, self.values):
            for layer in store:
                layer[slot].zero_()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values where `write` says and return what attention reads.

        Args:
            key_states: [rows, key-value heads, seq, head dim].
            value_states: the same shape, but for the head dim.
            layer_idx: the layer; layers come in order in the first forward.
            args: nothing that full or sliding attention uses.
            kwargs: likewise.

        Returns:
            Keys and values [rows, key-value heads, keys, head dim].
        """
        write = self.write
        if write is None:
            raise RuntimeError("SlotCache.write must be set before a forward")
        if len(self.keys) <= layer_idx:
            for store, new in ((self.keys, key_states), (self.values, value_states)):
                store.append(new.new_zeros(self.slots, new.shape[1], self.capacity, new.shape[3]))
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if isinstance(write, DecodeWrite):
            keys[write.rows, :, write.positions] = key_states.squeeze(2)
            values[write.rows, :, write.positions] = value_states.squeeze(2)
            n = key_states.shape[0]
            return keys[:n, :, : write.length], values[:n, :, : write.length]
        rows = write.rows[:, None]
        keys[rows, :, write.positions] = key_states.transpose(1, 2)
        values[rows, :, write.positions] = value_states.transpose(1, 2)
        if write.length is None:
            return key_states, value_states
        return keys[write.rows, :, : write.length], values[write.rows, :, : write.length]

    # What Hugging Face asks while it builds masks. Only a prefill from position 0 lets it: the answers below make it a
    # plain causal mask, which it leaves to the attention kernel, and for sliding layers that mask cut by the window.
    # Every other forward brings its own 4D masks.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Always 0: positions are given explicitly."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Always 0, see above."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys and offset of a prefill that reads only itself."""
        return query_length, 0

    def get_max_length(self, layer_idx: int | None = 0) -> int:
        """No maximum: slots grow."""
        return -1


def _rounded(tokens: int) -> int:
    """The capacity of slots for so many tokens."""
    return -(-tokens // _GROWTH) * _GROWTH
