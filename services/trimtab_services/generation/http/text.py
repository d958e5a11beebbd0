"""Tokens to text as they come: whole characters only, and never a stop string or what may become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

__all__ = ["TextPiece", "TextStream", "token_text"]

_UNDECODED = "\ufffd"
_MOST_UNDECODED = 3
"""Bytes that a character can lack and still be completed: of four, at least one has come."""


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """What a token spells by itself, special or not; U+FFFD where it is no whole character."""
    text = tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text if isinstance(text, str) else "".join(text)


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The text that a token adds.

    Attributes:
        token_id: of the token.
        text: empty for a special token, for the first tokens of a character that several spell (the last one has it),
            and for what belongs to a stop string or comes after it.
        offset: characters of the completion in front of it.
    """

    token_id: int
    text: str
    offset: int


class TextStream:
    """The text of one completion; the pieces joined are the same however they are fed.

    A token is handed out once its text is settled: its characters are complete, and no stop string can begin in them.
    What a stop string would need special tokens for is left to the engine, which ends the completion there.

    Args:
        tokenizer: of the policy.
        stop_strings: the text ends in front of the first of them that appears.
        keep_special: special tokens are text too.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str] = (), *, keep_special: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stop_strings)
        self._special = frozenset(() if keep_special else tokenizer.all_special_ids)
        self._skip_special = not keep_special
        self._window: list[int] = []
        self._checkpoint = 0
        self._read = 0
        self._text = ""
        self._released = 0
        self._pending: list[tuple[int, int | None]] = []
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string has appeared."""
        return self._stopped

    def feed(self, token_id: int) -> list[TextPiece]:
        """Takes a token; returns the tokens that are settled now, in order."""
        if self._stopped:
            return [TextPiece(token_id, "", self._released)]
        self._extend(token_id)
        self._look_for_stop()
        return self._release(len(self._text) - (0 if self._stopped else self._held_back()))

    def finish(self) -> list[TextPiece]:
        """Ends the completion; returns the tokens that were still held back."""
        if not self._stopped:
            self._text += self._decoded()[self._read :]
            self._settle_pending()
            self._look_for_stop()
        return self._release(len(self._text))

    def _extend(self, token_id: int) -> None:
        """Appends the text that has become certain with a token."""
        self._window.append(token_id)
        decoded = self._decoded()
        incomplete = len(decoded) - len(decoded.rstrip(_UNDECODED))
        certain = decoded[: len(decoded) - min(incomplete, _MOST_UNDECODED)]
        self._text += certain[self._read :]
        self._read = max(self._read, len(certain))
        self._pending.append((token_id, None))
        if incomplete == 0:
            self._settle_pending()
            self._shorten_window()

    def _settle_pending(self) -> None:
        """Gives the text that has come to the last token that is not special: those before only began its character."""
        end = max((end for _, end in self._pending if end is not None), default=self._released)
        unsettled = [i for i, (_, at) in enumerate(self._pending) if at is None]
        owner = next((i for i in reversed(unsettled) if self._pending[i][0] not in self._special), None)
        for i in unsettled:
            if i == owner:
                end = len(self._text)
            self._pending[i] = (self._pending[i][0], end)

    def _shorten_window(self) -> None:
        """Forgets tokens in front of the last checkpoint; those behind it tell how the next ones are to be decoded."""
        self._window = self._window[self._checkpoint :]
        self._checkpoint = len(self._window)
        self._read = len(self._decoded())

    def _decoded(self) -> str:
        text = self._tokenizer.decode(
            self._window, skip_special_tokens=self._skip_special, clean_up_tokenization_spaces=False
        )
        return text if isinstance(text, str) else "".join(text)

    def _look_for_stop(self) -> None:
        """Cuts the text where a stop string begins; none begins in what was handed out, see `_held_back`."""
        found = [at for stop in self._stops if (at := self._text.find(stop, self._released)) >= 0]
        if found:
            self._text = self._text[: min(found)]
            self._stopped = True
            self._settle_pending()

    def _held_back(self) -> int:
        """Characters at the end of the text with which a stop string may have begun."""
        tail = self._text[self._released :]
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(tail)), 0, -1):
            if any(stop.startswith(tail[-length:]) for stop in self._stops):
                return length
        return 0

    def _release(self, end: int) -> list[TextPiece]:
        """Hands out the first tokens whose text ends by `end`."""
        pieces: list[TextPiece] = []
        while self._pending:
            token_id, ends = self._pending[0]
            if ends is None or (ends > end and not self._stopped):
                break
            until = min(ends, end)
            pieces.append(TextPiece(token_id, self._text[self._released : until], self._released))
            self._released = until
            del self._pending[0]
        return pieces
