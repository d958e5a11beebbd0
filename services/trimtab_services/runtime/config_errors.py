"""What is wrong with a configuration, in one line: the source, the key, what was found and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trimtab.errors import ConfigError

__all__ = ["allowed_keys", "explain"]


def explain(
    config_class: type[BaseModel],
    service: str,
    error: ValidationError,
    layers: Sequence[tuple[str, dict[str, Any]]],
) -> ConfigError:
    """One line for the first wrong key; says how many more there are.

    Args:
        config_class: what was to be made.
        service: its short name.
        error: why it could not be.
        layers: name and values of each source, the strongest last.
    """
    # an unknown key first: it is often the misspelt name of one that is missing
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    first = details[0]
    key = ".".join(str(part) for part in first["loc"])
    source = next((name for name, layer in reversed(layers) if _holds(layer, first["loc"])), layers[0][0])
    more = f" ({len(details) - 1} more wrong keys)" if len(details) > 1 else ""
    allowed = _allowed_for(config_class, first)
    if first["type"] == "extra_forbidden":
        message = f"{service} configuration ({source}): unknown key {key!r}; allowed: {allowed}{more}"
    elif not key:
        message = f"{service} configuration: {first['msg'].removeprefix('Value error, ')}{more}"
    elif first["type"] == "missing":
        message = f"{service} configuration ({source}): key {key!r} is missing{more}"
    else:
        reason = first["msg"][0].lower() + first["msg"][1:]
        message = f"{service} configuration ({source}): key {key!r} has value {first['input']!r}: {reason}{more}"
    value = "" if first["type"] == "missing" or not key else first["input"]
    return ConfigError(message, field=key, value=value, limit=allowed)


def _holds(layer: dict[str, Any], location: tuple[int | str, ...]) -> bool:
    at: Any = layer
    for part in location:
        if not isinstance(at, dict) or part not in at:
            return False
        at = at[part]
    return bool(location)


def _allowed_for(config_class: type[BaseModel], details: ErrorDetails) -> str:
    """The keys allowed beside an unknown one, or what pydantic says about a wrong value."""
    if details["type"] != "extra_forbidden":
        return details["msg"]
    at: Any = config_class
    for part in details["loc"][:-1]:
        at = _inside(at, str(part))
    return ", ".join(sorted({name for section in _sections(at) for name in section.model_fields}))


def _inside(annotation: Any, part: str) -> Any:
    """The type of a part of a value: a key of a section or of a mapping, or the tag of a union."""
    for section in _sections(annotation):
        if part in section.model_fields:
            return section.model_fields[part].annotation
        if part in get_args(getattr(section.model_fields.get("kind"), "annotation", None)):
            return section
    mapping = next((choice for choice in _choices(annotation) if get_origin(choice) is dict), None)
    return annotation if mapping is None else get_args(mapping)[1]


def _choices(annotation: Any) -> list[Any]:
    """What an annotation stands for: the members of a union, else itself."""
    if get_origin(annotation) is Annotated:
        return _choices(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [choice for member in get_args(annotation) for choice in _choices(member)]
    return [annotation]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    return [choice for choice in _choices(annotation) if isinstance(choice, type) and issubclass(choice, BaseModel)]


def allowed_keys(model: type[BaseModel]) -> str:
    """The keys of a section, as a list for people."""
    return ", ".join(sorted(model.model_fields))
