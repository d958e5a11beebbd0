"""Texts that are prompt and completion in one."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.convert.shared import each
from trimtab.errors import InvalidRequest, Reason
from trimtab.types import ScoreItem
from trimtab_services.reward.base import RewardModel

__all__ = ["whole_texts"]


def whole_texts(model: RewardModel, field: str, texts: Sequence[str], *, control_tokens: bool) -> tuple[ScoreItem, ...]:
    """Items of texts, as the version of the model that is served now cuts them into tokens.

    Who scores them must not await anything before: then it is the same version that scores them.

    Args:
        model: reads them.
        field: that the texts stand in, for errors.
        texts: any.
        control_tokens: whether a control token that a text spells is one. If not, a text is read as a document: behind
            the beginning-of-sequence token, where the tokenizer has one, and ended by the end-of-sequence token.

    Raises:
        InvalidRequest: the model reads no whole texts, or one is empty or has no tokens; names it, such as `query[3]`.
    """

    def item(text: str) -> ScoreItem:
        if not text:
            raise InvalidRequest("must not be empty", reason=Reason.EMPTY_PROMPT)
        return ScoreItem(token_ids=model.token_ids(text, control_tokens=control_tokens))

    return each(field, texts, item)
