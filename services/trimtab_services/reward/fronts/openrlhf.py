"""`POST /get_reward`, as OpenRLHF's trainer asks a remote reward model (its `--reward.remote_url`).

The trainer sends whole texts, decoded with their control tokens, and its own server reads those as control tokens and
adds none. So does this one, and here only: everywhere else a control token that a text spells is text. It differs from
OpenRLHF's server in two things. A text that is too long is refused, where that one cuts it without a word, unless
`truncation` says which end may go. And the token ids are scored as they are, where that one ends every text in the
end-of-sequence token whether it was sampled or not.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from trimtab.errors import InvalidRequest, TrimtabError
from trimtab.types import Priority, ScoreRequest, TruncationSide
from trimtab_services.reward.fronts.bodies import OpenRLHFAnswer, OpenRLHFBody, parse_counted
from trimtab_services.reward.fronts.scores import json_answer
from trimtab_services.reward.fronts.whole_texts import WholeTexts
from trimtab_services.reward.models import RewardModels
from trimtab_services.runtime.json_body import read_json

__all__ = ["OpenRLHFFront"]


class OpenRLHFFront:
    """OpenRLHF's remote reward model.

    Args:
        models: by name.
        whole_texts: reads the queries.
    """

    def __init__(self, models: RewardModels, whole_texts: WholeTexts) -> None:
        self._models = models
        self._whole_texts = whole_texts

    async def get_reward(self, http: web.Request) -> web.Response:
        """Scores every query and answers in their order."""
        body = parse_counted(OpenRLHFBody, await read_json(http), "query", self._models.max_items)
        for field, values in (("prompts", body.prompts), ("labels", body.labels)):
            _check_as_many(field, values, len(body.query))
        model = self._models.named(body.model)
        # nothing is awaited between reading the texts and the model's taking them
        items = await self._whole_texts.items(model, "query", body.query, control_tokens=True)
        asked = ScoreRequest(
            items=items,
            model=body.model,
            truncation=TruncationSide(body.truncation),
            priority=Priority(body.priority),
        )
        try:
            found = await self._models.score(asked)
        except TrimtabError as error:
            raise _of_query(error) from None
        rewards = [score.reward for score in found.scores]
        return json_answer(OpenRLHFAnswer(rewards=rewards, scores=rewards, extra_logs={}))


def _check_as_many(field: str, values: Sequence[object] | None, count: int) -> None:
    if values is not None and len(values) != count:
        raise InvalidRequest(f"{field}: {len(values)} for {count} queries", field=field, value=len(values), limit=count)


def _of_query(error: TrimtabError) -> TrimtabError:
    """The same error with `query[3]` for `items[3].token_ids`."""
    field = error.field.replace("items[", "query[", 1).replace("].token_ids", "]", 1)
    return error.at(field) if field != error.field else error
