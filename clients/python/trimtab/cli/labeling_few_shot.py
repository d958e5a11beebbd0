"""Few-shot baselines: a prefix that makes a base model answer, as the paper's few-shot GPT-3 (InstructGPT 3.5).

Only the model sees the prefix. Labelers see the plain prompt, and the source of the answer names the prefix.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import ConfigError, DataError

__all__ = ["FewShot", "read_few_shot"]

_PLACE = "{prompt}"


@dataclass(frozen=True, slots=True)
class FewShot:
    """What stands around a prompt.

    Attributes:
        name: such as `few-shot-examples-1a2b3c4d`: the file's name without its ending, and the digest of its text.
        before, after: the text in front of the prompt and behind it.
        stops: texts that end an answer, such as the beginning of a next example; they are no part of it.
    """

    name: str
    before: str
    after: str
    stops: tuple[str, ...] = ()

    def around(self, prompt: str) -> str:
        """What the model completes."""
        return f"{self.before}{prompt}{self.after}"

    def cut(self, completion: str) -> str:
        """The answer: what comes before the first stop."""
        ends = [end for stop in self.stops if (end := completion.find(stop)) >= 0]
        return completion[: min(ends, default=len(completion))]


def read_few_shot(file: Path, stops: tuple[str, ...] = ()) -> FewShot:
    """Reads a prefix: the prompt takes the place of `{prompt}`, or follows the text where it has none.

    Raises:
        ConfigError: the file is empty, or has `{prompt}` twice.
        DataError: it is no UTF-8.
        OSError: it cannot be read.
    """
    content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}", field="few_shot", value=file) from None
    if not text.strip():
        raise ConfigError(f"--few-shot {file}: must not be empty", field="few_shot", value=file)
    if (places := text.count(_PLACE)) > 1:
        raise ConfigError(
            f"--few-shot {file}: {_PLACE} is there {places} times; allowed: once, or not at all",
            field="few_shot",
            value=places,
            limit=1,
        )
    before, _, after = text.partition(_PLACE)
    return FewShot(f"few-shot-{file.stem}-{hashlib.sha256(content).hexdigest()[:8]}", before, after, stops)
