"""Reading text beside the event loop: a tokenizer takes a second and more for a megabyte, and everybody waits for it.

The tokenizers release the interpreter while they read, so a thread is enough. A text that is far longer than the model
takes is not read at all.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from trimtab.errors import SequenceTooLong
from trimtab.types import ChatMessage
from trimtab_services.runtime.threads import in_own_thread

__all__ = ["ReadingThreads", "TextReader", "characters_of", "check_characters"]

_MAX_LOOP_CHARACTERS = 4096
"""Texts that together are no longer are read in the event loop: a thread would take longer to start."""

_MOST_THREADS = 4

_CHARACTERS_PER_TOKEN = {False: 64, True: 1024}
"""Most characters of a text for each token that the model takes, by whether what is too long may be cut.

Longer texts are not even read. Few tokens are longer than 64 characters, so one that long would be refused. Where it
may be cut it is read whole all the same: tokens at a cut in the text would not be those of the text.
"""

T = TypeVar("T")


class ReadingThreads:
    """Threads that read text, a few at once; who comes later waits for a place."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(_MOST_THREADS)

    async def run(self, read: Callable[[], T]) -> T:
        """Runs `read` in a thread and returns what it returns. A caller that goes away does not free its place early.

        Raises:
            Exception: what `read` raises.
        """
        await self._room.acquire()
        reading = asyncio.ensure_future(in_own_thread(read))
        reading.add_done_callback(self._free)
        return await asyncio.shield(reading)

    def _free(self, reading: asyncio.Future[Any]) -> None:
        self._room.release()
        if not reading.cancelled():
            reading.exception()  # asked for, so that nobody logs it where the caller has gone


class TextReader:
    """Reads with one tokenizer: one text at a time, since it is switched to read control tokens or not."""

    def __init__(self) -> None:
        self._threads = ReadingThreads()
        self._reading = threading.Lock()

    async def read(self, characters: int, read: Callable[[], T]) -> T:
        """Runs `read` at once where little is to be read and nobody is at it, else in a thread.

        Args:
            characters: of all that is read.
            read: reads it.

        Raises:
            Exception: what `read` raises.
        """
        if characters == 0:
            return read()
        if characters <= _MAX_LOOP_CHARACTERS and self._reading.acquire(blocking=False):
            try:
                return read()
            finally:
                self._reading.release()

        def read_alone() -> T:
            with self.alone():
                return read()

        return await self._threads.run(read_alone)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For who reads in a thread of its own: nobody else reads meanwhile. Blocks."""
        with self._reading:
            yield


def characters_of(value: object) -> int:
    """Characters of a text or of messages; 0 of token ids and of nothing."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, tuple | list) and value and isinstance(value[0], ChatMessage):
        return sum(len(message.content) for message in value)
    return 0


def check_characters(field: str, characters: int, max_sequence_tokens: int, *, may_be_cut: bool = False) -> None:
    """Refuses a text that is far too long, before it takes seconds to read.

    Args:
        field: where it stands; may be empty.
        characters: its length.
        max_sequence_tokens: that the model takes.
        may_be_cut: whether its tokens may be cut to the model's length afterwards.

    Raises:
        SequenceTooLong: names characters, not tokens.
    """
    most = _CHARACTERS_PER_TOKEN[may_be_cut] * max_sequence_tokens
    if characters > most:
        raise SequenceTooLong(
            f"{field}: {characters} characters; allowed: {most}, {_CHARACTERS_PER_TOKEN[may_be_cut]} for each of "
            f"{max_sequence_tokens} tokens".removeprefix(": "),
            field=field,
            value=characters,
            limit=most,
        )
