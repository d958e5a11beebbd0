"""The paper's rules on prompts: none twice, none by long common prefix, at most 200 per user, sides of a split by user.

Source: InstructGPT (Ouyang et al. 2022, arXiv 2203.02155), section 3.2: "We heuristically deduplicate prompts by
checking for prompts that share a long common prefix, and we limit the number of prompts to 200 per user ID. We also
create our train, validation, and test splits based on user ID", with more in appendix A. It prints no length of the
prefix; ours is a choice.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

from trimtab.errors import ConfigError, DataError
from trimtab_trainer.data.on_disk import DiskCounts, digest
from trimtab_trainer.data.records import PromptText, prompt_key

__all__ = [
    "PREFIX_CHARACTERS",
    "PROMPTS_PER_USER",
    "SIDES",
    "PromptRules",
    "Verdict",
    "WithoutUser",
    "side_of",
    "user_of",
]

PREFIX_CHARACTERS = 100
PROMPTS_PER_USER = 200
SIDES = ("train", "valid", "test")

WithoutUser = Literal["refuse", "by-prompt"]
"""A row without a user: refused, or each prompt a user of its own."""


class Verdict(StrEnum):
    """What the rules say of a row."""

    KEPT = "kept"
    DUPLICATE = "duplicates"
    OVER_USER_LIMIT = "over_user_limit"


class PromptRules:
    """Judges rows one after another, each against those that were kept before it.

    Two prompts are duplicates when their first `prefix_characters` characters are equal, or, where either is shorter,
    when they are equal as a whole. Compared are the texts of the turns but the system's, with a line end between them,
    in NFKC, without case, each run of white space as one space. The relation is transitive, so what is kept depends on
    the order of the rows only through which of several duplicates is the first; rows added at the end change nothing
    above them.

    Args:
        prefix_characters: length of the prefix; 0 keeps duplicates.
        prompts_per_user: the first so many of each user are kept; 0 sets no limit.
        prompts_repeat: rows with just the prompt of a kept one are kept too, and count once: rankings of one prompt.

    Raises:
        ConfigError: a number below 0.
    """

    def __init__(self, *, prefix_characters: int, prompts_per_user: int, prompts_repeat: bool) -> None:
        for field, value in (("prefix_characters", prefix_characters), ("per_user", prompts_per_user)):
            if value < 0:
                raise ConfigError(
                    f"{field} is {value}; allowed: at least 0", field=field, value=value, limit="at least 0"
                )
        self._prefix, self._limit, self._repeat = prefix_characters, prompts_per_user, prompts_repeat
        self._of_users, self._prefixes, self._prompts = DiskCounts(), DiskCounts(), DiskCounts()

    def judge(self, prompt: PromptText, user: str) -> Verdict:
        """What becomes of a row with that prompt by that user; a kept one counts from then on."""
        key = prompt_key(prompt).encode()
        if self._repeat and self._prompts[key]:
            return Verdict.KEPT
        prefix = self._prefix_key(prompt)
        if prefix is not None and self._prefixes[prefix]:
            return Verdict.DUPLICATE
        if self._limit and self._of_users[digest(user)] >= self._limit:
            return Verdict.OVER_USER_LIMIT
        if self._limit:
            self._of_users.add(digest(user))
        if prefix is not None:
            self._prefixes.add(prefix)
        if self._repeat:
            self._prompts.add(key)
        return Verdict.KEPT

    def _prefix_key(self, prompt: PromptText) -> bytes | None:
        if not self._prefix:
            return None
        text = _compared(prompt)
        return digest(f"prefix {text[: self._prefix]}" if len(text) >= self._prefix else f"whole {text}")


def user_of(row: Mapping[str, Any], prompt: PromptText, *, field: str, without_user: WithoutUser) -> str:
    """Who wrote the prompt of a row: a name that no other user has.

    Args:
        row: as it stands in the file.
        prompt: of it.
        field: whose value names the user or organisation, a text or a whole number.
        without_user: what to do where it is not there.

    Raises:
        DataError: there is none and that is refused, or it is neither text nor number.
    """
    user = row.get(field)
    if user is None or user == "":
        if without_user == "by-prompt":
            return f"prompt {prompt_key(prompt)}"
        raise DataError(
            f"{field} is missing: the rules per user need one; --user-field names another field, --without-user "
            "by-prompt takes each prompt for a user of its own",
            field=field,
        )
    if not isinstance(user, str | int) or isinstance(user, bool):
        raise DataError(f"{field} must be a text or a number, found {type(user).__name__}", field=field)
    return f"user {user}"


def side_of(user: str, *, valid: float, test: float, seed: int) -> str:
    """The side of the split that all of a user's rows are on: "train", "valid" or "test".

    It is the SHA-256 of seed and user as a fraction: below `test`, then below `test + valid`, else training. It depends
    on nothing else, so it is the same in every file, and rows added later move nobody.

    Args:
        user: see `user_of`.
        valid, test: shares of users, each at least 0, below 1 together.
        seed: of the split.
    """
    fraction = int.from_bytes(hashlib.sha256(f"{seed}/{user}".encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
    if fraction < test:
        return "test"
    return "valid" if fraction < test + valid else "train"


def _compared(prompt: PromptText) -> str:
    # A system turn stands before every prompt of an application and would make all of them duplicates.
    turns = [prompt] if isinstance(prompt, str) else [turn.content for turn in prompt if turn.role != "system"]
    return " ".join(unicodedata.normalize("NFKC", "\n".join(turns)).casefold().split())
