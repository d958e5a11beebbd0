"""TGI reads text only: the text that it reads as given token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from trimtab.errors import Mismatch, Unsupported
from trimtab_models.tokenizer import encode_document

__all__ = ["PromptTexts", "probe_text"]

_PROBE = "The quick brown fox's 1234567890 tails;\n\n\tdéjà vu, \u6771\u4eac \U0001f642 "


def probe_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """A text that two tokenizers are compared by: words, digits, white space, other scripts, every control token."""
    return _PROBE + " ".join(tokenizer.all_special_tokens)


class PromptTexts:
    """Finds texts for a remote server that reads like the local tokenizer.

    A server either recognises control tokens inside a text, as TGI does, or takes them for text, as our own TGI front
    does; which one it is decides what can be sent to it.

    Attributes:
        tokenizer: of the remote model.

    Args:
        tokenizer: of the remote model.
        probe_ids: how the remote server reads `probe_text`.

    Raises:
        Mismatch: as the local tokenizer never would.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probe_ids: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        probe, found = probe_text(tokenizer), tuple(probe_ids)
        readings: tuple[Callable[[str], tuple[int, ...]], ...] = (self._with_control_tokens, self._as_plain_text)
        reading = next((reading for reading in readings if reading(probe) == found), None)
        if reading is None:
            expected = self._with_control_tokens(probe)
            pairs = enumerate(zip(found, expected, strict=False))
            first = next((i for i, (one, other) in pairs if one != other), min(len(found), len(expected)))
            raise Mismatch(
                f"tgi.tokenizer_folder: its tokenizer is not the remote server's: {probe!r} is {len(expected)} tokens "
                f"here and {len(found)} there, different from token {first} on",
                field="tgi.tokenizer_folder",
                value=tokenizer.name_or_path,
            )
        self._read = reading

    def text_of(self, token_ids: Sequence[int]) -> str:
        """The text that the remote server reads as exactly these token ids.

        Raises:
            Unsupported: none is known.
        """
        leading = self._read("")
        body = token_ids[len(leading) :] if tuple(token_ids[: len(leading)]) == leading else token_ids
        text = self.tokenizer.decode(list(body), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if isinstance(text, str) and text and self._read(text) == tuple(token_ids):
            return text
        raise Unsupported(
            "prompt: the remote server takes text only, and none is known that it would read as these "
            f"{len(token_ids)} token ids",
            field="prompt",
        )

    def _with_control_tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text)["input_ids"])

    def _as_plain_text(self, text: str) -> tuple[int, ...]:
        return tuple(encode_document(self.tokenizer, text)[:-1])
