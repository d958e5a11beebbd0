"""The order of waiting work: priorities with aging, fair between callers, cut into batches of similar length.

Three levels are served in strict order (INTERACTIVE, ROLLOUT, BULK). Work that has waited `aging_s` at its level moves
one up, so nothing starves. Within a level callers share by start-time fair queueing (Goyal, Vin and Cheng 1996,
equations 4-5): an item's start tag is max(virtual time, finish tag of its caller's last item), its finish tag is the
start tag plus its tokens, and the smallest start tag goes first. A caller with little work is served at once, however
much another one has queued; one alone gets everything. Nothing here knows threads: the scheduler holds its lock.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.v1 import types_pb2

__all__ = ["Item", "WorkQueue", "cut_batch", "level_of"]

_LEVELS = 3


@dataclass(eq=False, slots=True)
class Item:
    """One waiting item.

    Attributes:
        payload: what is computed.
        tokens: its length.
        group: only items of one group may share a batch.
        level: 0 is the most urgent.
        caller: who is charged for it.
        enqueued: `time.monotonic()` of its admission.
        deadline: `time.monotonic()` after which it is not computed; None: never.
        owner: what the scheduler answers through, with `index` in it.
        waiting: False once it was taken or has gone.
    """

    payload: Any
    tokens: int
    group: Hashable
    level: int
    caller: str
    enqueued: float
    deadline: float | None
    owner: Any
    index: int
    waiting: bool = True
    start_tag: float = 0.0
    aged_at: float = field(default=0.0)


def level_of(priority: int) -> int:
    """Level of a `trimtab.v1.Priority`; unspecified means ROLLOUT."""
    if priority == types_pb2.PRIORITY_INTERACTIVE:
        return 0
    return 2 if priority == types_pb2.PRIORITY_BULK else 1


_SPLIT_COST = 16
"""One more batch costs about as much as this fraction of a full one: 4 of 80 ms for 1,024 tokens on two cores."""


def cut_batch(window: Sequence[Item], max_batch_tokens: int) -> list[Item]:
    """The batch of `window[0]`: the window sorted by length is cut from its longest item on.

    A batch ends early where what follows is so much shorter that its padding would cost more than one more batch.

    Args:
        window: items in order of urgency, not empty.
        max_batch_tokens: most tokens of a batch, padding included: rows times the longest row. A longer single item
            makes a batch of its own.

    Returns:
        The items that share the batch of the most urgent one, longest first.
    """
    head = window[0]
    ordered = sorted(window, key=lambda item: -item.tokens)
    start = 0
    while True:
        longest = ordered[start].tokens
        end = min(len(ordered), start + max(1, max_batch_tokens // max(1, longest)))
        spared = ((longest - ordered[cut].tokens) * (end - cut) for cut in range(start + 1, end))
        end = next(
            (start + rows for rows, tokens in enumerate(spared, 1) if tokens * _SPLIT_COST > max_batch_tokens), end
        )
        batch = ordered[start:end]
        if any(item is head for item in batch):
            return batch
        start = end


_Entry = tuple[float, int, Item]
"""Start tag, number of arrival, item. No two numbers are equal, so entries compare by urgency."""


class _Level:
    """One priority level: for each group a heap ordered by start tag, and the window that batches are cut from."""

    def __init__(self, number: int, numbers: Iterator[int]) -> None:
        self._number = number
        self._numbers = numbers
        self._heaps: dict[Hashable, list[_Entry]] = {}
        self._windows: dict[Hashable, list[_Entry]] = {}
        self._arrivals: deque[Item] = deque()
        self._virtual_time = 0.0
        self._finish_tags: dict[str, float] = {}
        self.caller_tokens: dict[str, int] = {}

    def add(self, item: Item, aged_at: float) -> None:
        item.aged_at = aged_at
        item.start_tag = max(self._virtual_time, self._finish_tags.get(item.caller, 0.0))
        self._finish_tags[item.caller] = item.start_tag + item.tokens
        self.caller_tokens[item.caller] = self.caller_tokens.get(item.caller, 0) + item.tokens
        if self._number > 0:  # the most urgent level has none above it to move to
            self._arrivals.append(item)
        heapq.heappush(self._heaps.setdefault(item.group, []), (item.start_tag, next(self._numbers), item))

    def forget(self, item: Item) -> None:
        """Takes an item that was computed, moved or dropped off its caller's account."""
        left = self.caller_tokens[item.caller] - item.tokens
        if left:
            self.caller_tokens[item.caller] = left
        else:
            del self.caller_tokens[item.caller]
        if not self.caller_tokens:  # nobody waits: history no longer matters, and nothing grows for ever
            self._heaps.clear()
            self._windows.clear()
            self._arrivals.clear()
            self._finish_tags.clear()
            self._virtual_time = 0.0

    def take_aged(self, before: float) -> Iterator[Item]:
        """Items that came to this level before a time; each still has to be forgotten here and added elsewhere."""
        while self._arrivals:
            item = self._arrivals[0]
            if self._is_here(item) and item.aged_at > before:
                return
            self._arrivals.popleft()
            if self._is_here(item):
                yield item

    def window(self, tokens: int, least: int) -> list[Item]:
        """The window of the most urgent item, that item first.

        A window is used up before the next one is filled. Else newcomers of common lengths would fill every batch and
        an odd length would wait until it is the oldest of all. What is more urgent than all of it joins it.

        Args:
            tokens: to which it is filled, at least one item.
            least: it is filled again when it has fewer tokens left.
        """
        head = self._head_group()
        if head is None:
            return []
        (group,) = head
        heap, window = self._heaps.get(group, []), self._windows.setdefault(group, [])
        total = sum(item.tokens for _, _, item in window)
        first = window[0] if total >= least else None
        joining: list[_Entry] = []
        while heap:
            item = heap[0][2]
            joins = heap[0] < first if first else total == 0 or total + item.tokens <= tokens
            if self._is_here(item) and not joins:
                break
            entry = heapq.heappop(heap)
            if self._is_here(item):
                joining.append(entry)
                total += item.tokens
        self._windows[group] = list(heapq.merge(joining, window))
        return [item for _, _, item in self._windows[group]]

    def advance(self, start_tag: float) -> None:
        self._virtual_time = max(self._virtual_time, start_tag)

    def _is_here(self, item: Item) -> bool:
        """Whether it still waits at this level: what was taken, dropped or moved up leaves its old entry behind."""
        return item.waiting and item.level == self._number

    def _head_group(self) -> tuple[Hashable] | None:
        """The group of the most urgent item, in a tuple, since None is a group too; None when nothing waits."""
        best: _Entry | None = None
        found: tuple[Hashable] | None = None
        for group in [*self._windows, *(group for group in self._heaps if group not in self._windows)]:
            heap = self._heaps.get(group, [])
            while heap and not self._is_here(heap[0][2]):
                heapq.heappop(heap)
            if not heap:
                self._heaps.pop(group, None)
            window = [entry for entry in self._windows.pop(group, []) if self._is_here(entry[2])]
            if window:
                self._windows[group] = window
            heads = [entries[0] for entries in (heap, window) if entries]
            if heads and (best is None or min(heads) < best):
                best, found = min(heads), (group,)
        return found


class WorkQueue:
    """All waiting items of a scheduler. Not thread-safe.

    Args:
        max_batch_tokens: as in `cut_batch`.
        window_batches: batches are cut from this many batches' worth of the most urgent items: padding shrinks with
            it, and what comes later waits so long at most.
        aging_s: seconds after which an item moves one level up.

    Attributes:
        items, tokens: waiting now.
    """

    def __init__(self, *, max_batch_tokens: int, window_batches: int = 32, aging_s: float = 20.0) -> None:
        numbers = itertools.count()
        self._levels = [_Level(number, numbers) for number in range(_LEVELS)]
        self._max_batch_tokens = max_batch_tokens
        self._window_tokens = window_batches * max_batch_tokens
        self._aging_s = aging_s
        self.items = 0
        self.tokens = 0

    def add(self, item: Item) -> None:
        """Adds an admitted item."""
        self._levels[item.level].add(item, item.enqueued)
        self.items += 1
        self.tokens += item.tokens

    def remove(self, item: Item) -> None:
        """Drops an item that waits; it will never be returned by `take`."""
        item.waiting = False
        self.items -= 1
        self.tokens -= item.tokens
        self._levels[item.level].forget(item)

    def take(self, now: float) -> tuple[list[Item], list[Item]]:
        """The next batch (empty when nothing waits), and the items found to be past their deadline, now removed."""
        self._age(now)
        expired: list[Item] = []
        for level in self._levels:
            while window := level.window(self._window_tokens, self._max_batch_tokens):
                late = [item for item in window if item.deadline is not None and item.deadline <= now]
                live = [item for item in window if item.deadline is None or item.deadline > now]
                for item in late:
                    self.remove(item)
                expired += late
                if live:
                    return self._cut(level, live), expired
        return [], expired

    def ahead_of(self, caller: str, level: int, tokens: int) -> int:
        """Most tokens computed before the last of `tokens` more tokens of a caller, these included.

        More urgent levels go first as a whole; at the same level each other caller gets, by fair queueing, no more
        than this caller.
        """
        urgent = sum(sum(other.caller_tokens.values()) for other in self._levels[:level])
        same = self._levels[level].caller_tokens
        own = same.get(caller, 0) + tokens
        return urgent + own + sum(min(count, own) for name, count in same.items() if name != caller)

    def _cut(self, level: _Level, window: list[Item]) -> list[Item]:
        batch = cut_batch(window, self._max_batch_tokens)
        level.advance(window[0].start_tag)
        for item in batch:
            self.remove(item)
        return batch

    def _age(self, now: float) -> None:
        for number in range(1, _LEVELS):
            for item in self._levels[number].take_aged(now - self._aging_s):
                # Only this copy in the upper level counts from here on: the old heap entry has another level.
                item.level = number - 1
                self._levels[number - 1].add(item, now)
                self._levels[number].forget(item)
