"""Stop strings: found in the decoded text, wherever the tokens that spell them begin and end."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

__all__ = ["ends_with_stop_string"]

_CONTEXT_TOKENS = 8
"""Tokens in front of the window, so that a tokenizer that treats the first token specially does so outside of it."""


def ends_with_stop_string(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stop_strings: Sequence[str]
) -> bool:
    """Whether a stop string has appeared with the last token.

    Called after each token, it decodes only a window that is long enough: a token that is seen as text spells at least
    one byte, so a stop string of n bytes spans at most n tokens. A character whose bytes are not complete yet decodes
    to U+FFFD and matches once its last byte has come.

    Args:
        tokenizer: of the policy.
        token_ids: the completion so far.
        stop_strings: none of them empty.
    """
    window = max(len(stop.encode()) for stop in stop_strings) + _CONTEXT_TOKENS
    text = tokenizer.decode(list(token_ids[-window:]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return any(stop in text for stop in stop_strings)
