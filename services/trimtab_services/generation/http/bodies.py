"""JSON bodies of requests, and the types of their fields.

A field that is null is one that is not set. Fields that a front does not know are refused, since they might change the
result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from trimtab.errors import Unsupported
from trimtab.types.shared import MAX_STOP_STRINGS, Text, invalid_request
from trimtab_services.runtime.json_body import read_json

__all__ = ["Body", "StopStrings", "neutral", "parse", "read_body"]

BodyT = TypeVar("BodyT", bound=BaseModel)


class Body(BaseModel):
    """A body or a part of one. Types are taken as they are: neither a string that spells a number nor true is one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _as_list(value: Any) -> Any:
    """A single string as a list of it, for fields that take either."""
    return [value] if isinstance(value, str) else value


StopStrings = Annotated[
    list[Annotated[Text, Field(min_length=1)]], BeforeValidator(_as_list), Field(max_length=MAX_STOP_STRINGS)
]


def parse(kind: type[BodyT], values: dict[str, Any]) -> BodyT:
    """A body, its types checked.

    Raises:
        InvalidRequest: names the first wrong field by its path, such as `messages[3].role`.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise invalid_request(error, "body") from None


async def read_body(request: web.Request) -> dict[str, Any]:
    """The request's body without its nulls, at every depth; errors as `json_body.read_json`."""
    return _without_nulls(await read_json(request))


def neutral(values: dict[str, Any], fields: Mapping[str, tuple[Any, ...]], where: str = "") -> dict[str, Any]:
    """The values without the fields that change nothing at the values listed; at any other value they are refused.

    Args:
        values: of a request.
        fields: for each field the values at which it changes nothing.
        where: what stands in front of a field's name, such as `parameters.`.

    Raises:
        Unsupported: names the field, its value and what is allowed.
    """
    for field, allowed in fields.items():
        if field in values and values[field] not in allowed:
            names = ", ".join(json.dumps(value) for value in allowed)
            raise Unsupported(
                f"{where}{field}: not supported; it may be left out{f' or be {names}' if names else ''}",
                field=f"{where}{field}",
                value=values[field],
                limit=names or "unset",
            )
    return {field: value for field, value in values.items() if field not in fields}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
