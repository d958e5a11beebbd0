"""Texts that are prompt and completion in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trimtab.convert.shared import each
from trimtab.errors import InvalidRequest, Reason, VersionUnavailable
from trimtab.types import ScoreItem
from trimtab.v1 import info_pb2
from trimtab_services.reward.base import RewardModel
from trimtab_services.runtime.reading import ReadingThreads

__all__ = ["WholeTexts"]


class WholeTexts:
    """Reads whole texts beside the event loop.

    Args:
        describe: fills in the service's part of GetInfo, which names the tokenizers that are served.
    """

    def __init__(self, describe: Callable[[info_pb2.GetInfoResponse], None]) -> None:
        self._describe = describe
        self._threads = ReadingThreads()

    async def items(
        self, model: RewardModel, field: str, texts: Sequence[str], *, control_tokens: bool
    ) -> tuple[ScoreItem, ...]:
        """Items of texts, as the version of the model that is served now cuts them into tokens.

        Who scores them must not await anything before: then they are scored by a version that cuts them so.

        Args:
            model: reads them.
            field: that the texts stand in, for errors.
            texts: any.
            control_tokens: whether a control token that a text spells is one. If not, a text is read as a document:
                behind the beginning-of-sequence token, where the tokenizer has one, and ended by the end-of-sequence
                token.

        Raises:
            InvalidRequest: the model reads no whole texts, or one is empty, far too long or has no tokens; names it,
                such as `query[3]`.
            VersionUnavailable: a version that may cut texts otherwise came meanwhile.
        """

        def item(text: str) -> ScoreItem:
            if not text:
                raise InvalidRequest("must not be empty", reason=Reason.EMPTY_PROMPT)
            return ScoreItem(token_ids=model.token_ids(text, control_tokens=control_tokens))

        before = self._readers()
        items = await self._threads.run(lambda: each(field, texts, item))
        if self._readers() != before:
            raise VersionUnavailable(
                f"{field}: a version with another tokenizer came while the texts were read; send them again",
                field=field,
            )
        return items

    def _readers(self) -> list[tuple[str, str]]:
        """What decides how each model reads text."""
        info = info_pb2.GetInfoResponse()
        self._describe(info)
        return [(model.architecture, model.served.tokenizer_digest) for model in info.models]
