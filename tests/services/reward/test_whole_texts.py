"""Whole texts are read beside the event loop, by one tokenizer from the first to the last, or not at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from trimtab.errors import VersionUnavailable
from trimtab.types import ScoreItem
from trimtab.v1 import info_pb2
from trimtab_services.reward.base import Asked, Found
from trimtab_services.reward.fronts.whole_texts import WholeTexts


class Letters:
    """A model that reads letters; another version comes while it reads, if it is told so."""

    name = "letters"

    def __init__(self, *, changes: bool) -> None:
        self.digest = "first"
        self.threads: set[int] = set()
        self._changes = changes

    def token_ids(self, text: str, *, control_tokens: bool) -> tuple[int, ...]:
        self.threads.add(threading.get_ident())
        if self._changes:
            self.digest = "second"
        return tuple(map(ord, text))

    def describe(self, response: info_pb2.GetInfoResponse) -> None:
        response.models.add().served.tokenizer_digest = self.digest

    async def score(self, items: Sequence[ScoreItem], asked: Asked) -> Found:
        raise NotImplementedError


def read(model: Letters) -> tuple[ScoreItem, ...]:
    async def main() -> tuple[ScoreItem, ...]:
        return await WholeTexts(model.describe).items(model, "query", ["ab", "c"], control_tokens=False)

    return asyncio.run(main())


def test_they_are_read_in_a_thread() -> None:
    model = Letters(changes=False)
    assert [item.token_ids for item in read(model)] == [(97, 98), (99,)]
    assert threading.get_ident() not in model.threads


def test_another_tokenizer_that_comes_meanwhile_refuses_them() -> None:
    with pytest.raises(VersionUnavailable, match="query: a version with another tokenizer came"):
        read(Letters(changes=True))
