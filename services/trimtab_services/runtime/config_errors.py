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
    location = _as_written(config_class, first["loc"])
    key = ".".join(location)
    source = next((name for name, layer in reversed(layers) if _holds(layer, location)), layers[0][0])
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


def _as_written(config_class: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """A location without the tags of unions, which pydantic puts in and no configuration has."""
    at: Any = config_class
    kept = []
    for part in map(str, location):
        if not _tagged(at, part):
            kept.append(part)
        at = _inside(at, part)
    return kept


def _holds(layer: dict[str, Any], location: Sequence[str]) -> bool:
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
    if tagged := _tagged(annotation, part):
        return tagged
    for section in _sections(annotation):
        if part in section.model_fields:
            return section.model_fields[part].annotation
    mapping = next((choice for choice in _choices(annotation) if get_origin(choice) is dict), None)
    return annotation if mapping is None else get_args(mapping)[1]


def _tagged(annotation: Any, tag: str) -> type[BaseModel] | None:
    """The member of a union by its tag, which is the first thing that a location has inside one; None outside."""
    sections = _sections(annotation)
    kinds = [section.model_fields.get("kind") for section in sections]
    if len(sections) < 2 or None in kinds:
        return None
    return next(
        (one for one, kind in zip(sections, kinds, strict=True) if kind and tag in get_args(kind.annotation)), None
    )


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
