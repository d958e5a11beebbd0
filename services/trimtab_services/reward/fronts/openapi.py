"""`GET /openapi.json`: OpenAPI 3.1 of the JSON routes, made from the classes that parse the requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from trimtab_services.reward.fronts.bodies import ErrorAnswer

__all__ = ["Operation", "make_document", "make_handler"]

_REFERENCE = "#/components/schemas/{model}"

_STATUSES = {
    400: "A field is wrong; `field`, `value` and `limit` say which, what was found and what is allowed.",
    401: "No bearer token, or one that is not known.",
    403: "The token lacks the scope `score`.",
    404: "There is no reward model of that name.",
    409: "Another model version is served than the one asked for.",
    429: "The queue is full or a quota is used up; `Retry-After` says when to come back.",
    500: "A fault of the model: a score that is not finite, or reward code that failed.",
    503: "The server drains, or has no model yet.",
    504: "The deadline passed, or could not have been met.",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One route, for the document.

    Attributes:
        method, path: of the route; {name} in the path is a parameter.
        summary: one sentence.
        answer: what comes back.
        body: what is sent; None: nothing.
    """

    method: str
    path: str
    summary: str
    answer: type[BaseModel]
    body: type[BaseModel] | None = None


def make_document(operations: Sequence[Operation], *, version: str) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        operations: all routes that it describes.
        version: of the service.
    """
    inputs = [(one.body, "validation") for one in operations if one.body is not None]
    outputs = [(one.answer, "serialization") for one in operations]
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [*inputs, *outputs, (ErrorAnswer, "serialization")]  # type: ignore[list-item]
    references, definitions = models_json_schema(wanted, ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Trimtab reward service", "version": version, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],  # the first: a server without a tokens file asks for none
    }


def make_handler(document: dict[str, Any]) -> Any:
    """The handler that shows the document."""

    async def show(http: web.Request) -> web.Response:
        return web.json_response(document)

    return show


def _operation(one: Operation, references: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    failure = {"application/json": {"schema": references[ErrorAnswer, "serialization"]}}
    responses = {str(status): {"description": text, "content": failure} for status, text in _STATUSES.items()}
    answer = {"application/json": {"schema": references[one.answer, "serialization"]}}
    described: dict[str, Any] = {
        "summary": one.summary,
        "responses": {"200": {"description": "Done.", "content": answer}, **responses},
    }
    if names := re.findall(r"{(\w+)}", one.path):
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if one.body is not None:
        content = {"application/json": {"schema": references[one.body, "validation"]}}
        described["requestBody"] = {"required": True, "content": content}
    return described
