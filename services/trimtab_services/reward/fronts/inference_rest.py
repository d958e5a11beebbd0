"""The Open Inference Protocol over HTTP, with its binary tensor extension.

With the header `Inference-Header-Content-Length: N` the first N bytes of a body are JSON, and the raw bytes of the
tensors follow, in the order of the tensors that have a `binary_data_size`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from trimtab.errors import InvalidRequest
from trimtab.types.shared import INT64_END, MAX_ID_CHARACTERS, Text
from trimtab_services.reward.fronts.bodies import parse
from trimtab_services.reward.fronts.inference_protocol import (
    EXTENSIONS,
    INPUTS,
    MAX_TENSORS,
    OUTPUTS,
    InferenceProtocol,
    Inferred,
    Question,
    TensorShape,
)
from trimtab_services.reward.fronts.tensors import (
    MAX_DIMENSIONS,
    OUTPUT_TYPES,
    Tensor,
    decode_raw,
    decode_values,
    encode_raw,
)
from trimtab_services.runtime.info import build_version
from trimtab_services.runtime.json_body import check_json_type, json_object, read_body

__all__ = ["InferAnswer", "InferBody", "InferenceFront"]

_JSON_LENGTH = "Inference-Header-Content-Length"

_MAX_DIGITS = 12
"""Of a length: no body is that long, and Python reads no number of thousands of digits."""

_BYTES = "application/octet-stream"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class InputParameters(_Body):
    """Parameters of an input."""

    binary_data_size: int | None = Field(default=None, ge=0, description="Bytes of the tensor behind the JSON.")


class InputBody(_Body):
    """One input: `prompt` with `completion`, or `text`, or `token_ids` and, where rows are padded, `lengths`."""

    name: Text
    shape: list[Annotated[int, Field(ge=1, lt=INT64_END)]] = Field(min_length=1, max_length=MAX_DIMENSIONS)
    datatype: Text = Field(description="BYTES, INT32 or INT64.")
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = Field(default=None, description="Elements, flat or nested. None where they are binary.")


class OutputParameters(_Body):
    """Parameters of an output."""

    binary_data: bool | None = Field(default=None, description="Whether its elements come as raw bytes.")


class OutputBody(_Body):
    """One output that is asked for: `reward` or `token_count`."""

    name: Text
    parameters: OutputParameters = OutputParameters()


class InferBody(_Body):
    """Asks for scores of rows of tensors."""

    model_config = ConfigDict(protected_namespaces=())

    id: Text = Field(default="", max_length=MAX_ID_CHARACTERS, description="Comes back.")
    model_name: Text | None = Field(default=None, description="Must be that of the path, if it is set.")
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="truncation (NONE, LEFT, RIGHT), priority (1 INTERACTIVE, 2 ROLLOUT, 3 BULK, or the name), timeout "
        "(microseconds), binary_data_output (whether all outputs come as raw bytes).",
    )
    inputs: list[InputBody] = Field(min_length=1, max_length=MAX_TENSORS)
    outputs: list[OutputBody] = Field(default_factory=list, max_length=MAX_TENSORS)


class OutputAnswer(BaseModel):
    """One output."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float] | list[int] | None = None
    parameters: dict[str, int] | None = None


class InferAnswer(BaseModel):
    """Scores."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str
    parameters: dict[str, str]
    outputs: Sequence[OutputAnswer]


class InferenceFront:
    """Carries the protocol.

    Args:
        protocol: answers.
    """

    def __init__(self, protocol: InferenceProtocol) -> None:
        self._protocol = protocol

    async def server(self, http: web.Request) -> web.Response:
        """Names the server."""
        return web.json_response({"name": "trimtab", "version": build_version(), "extensions": list(EXTENSIONS)})

    async def live(self, http: web.Request) -> web.Response:
        """Tells that the process answers."""
        return web.json_response({"live": True})

    async def ready(self, http: web.Request) -> web.Response:
        """Tells whether every model can be asked; 503 if not."""
        return web.json_response({"ready": self._protocol.ready}, status=200 if self._protocol.ready else 503)

    async def model_ready(self, http: web.Request) -> web.Response:
        """Tells whether one model can be asked; 503 if not."""
        name = self._protocol.model(*_named(http)).served.name
        return web.json_response(
            {"name": name, "ready": self._protocol.ready}, status=200 if self._protocol.ready else 503
        )

    async def model(self, http: web.Request) -> web.Response:
        """Tells which tensors a model takes and gives."""
        model = self._protocol.model(*_named(http))
        return web.json_response(
            {
                "name": model.served.name,
                "versions": [str(model.served.version)],
                "platform": model.architecture,
                "inputs": _metadata(INPUTS),
                "outputs": _metadata(OUTPUTS),
            }
        )

    async def infer(self, http: web.Request) -> web.Response:
        """Scores the rows."""
        name, version = _named(http)
        _check_content_type(http)
        header, tail = _split(http.headers.get(_JSON_LENGTH), await read_body(http))
        body = parse(InferBody, json_object(bytes(header)))
        if body.model_name not in (None, name):
            raise InvalidRequest(
                f"model_name: {body.model_name!r}; the path asks {name!r}",
                field="model_name",
                value=body.model_name,
                limit=name,
            )
        parameters = dict(body.parameters)
        binary = _flag("parameters.binary_data_output", parameters.pop("binary_data_output", False))
        question = Question(
            model=name,
            version=version,
            id=body.id,
            inputs=_tensors(body.inputs, tail, self._protocol.max_rows),
            outputs=[output.name for output in body.outputs],
            parameters=parameters,
        )
        as_bytes = {one.name for one in body.outputs if one.parameters.binary_data}
        as_json = {one.name for one in body.outputs if one.parameters.binary_data is False}
        found = await self._protocol.infer(question)
        return _answer(found, body.id, as_bytes | (set(found.outputs) - as_json if binary else set()))


def _named(http: web.Request) -> tuple[str, str]:
    """Model and version of the path."""
    return http.match_info["model"], http.match_info.get("version", "")


def _check_content_type(http: web.Request) -> None:
    """Lets through JSON, raw bytes, as Triton's asyncio client calls both, and what names no type, as its other does.

    A web page of another origin may make a browser send a body without a type, but never without naming its `Origin`;
    raw bytes it may not send at all without this server's consent.

    Raises:
        InvalidRequest: any other type.
    """
    named = "Content-Type" in http.headers
    if (named and http.content_type == _BYTES) or not (named or "Origin" in http.headers):
        return
    check_json_type(http)


def _split(length: str | None, body: bytes) -> tuple[memoryview, memoryview]:
    """The JSON in front, and the raw tensors behind it."""
    view = memoryview(body)
    if length is None:
        return view, view[len(body) :]
    is_number = len(length) <= _MAX_DIGITS and length.isascii() and length.isdecimal()
    if not is_number or int(length) > len(body):
        raise InvalidRequest(
            f"{_JSON_LENGTH}: {length[:100]!r}; must be bytes of the body, which has {len(body)}",
            field=_JSON_LENGTH,
            value=length[:100],
            limit=len(body),
        )
    return view[: int(length)], view[int(length) :]


def _tensors(inputs: Sequence[InputBody], tail: memoryview, max_rows: int) -> list[Tensor]:
    tensors, at = [], 0
    for index, one in enumerate(inputs):
        size = one.parameters.binary_data_size
        if (size is None) == (one.data is None):
            raise InvalidRequest(
                f"inputs[{index}].data: set either data or parameters.binary_data_size", field=f"inputs[{index}].data"
            )
        if size is None:
            flat = _flat(one.data or [])
            tensors.append(decode_values(one.name, one.datatype, one.shape, flat, max_rows=max_rows))
            continue
        if at + size > len(tail):
            raise InvalidRequest(
                f"inputs[{index}].parameters.binary_data_size: {size}; {len(tail) - at} bytes are left of the body",
                field=f"inputs[{index}].parameters.binary_data_size",
                value=size,
                limit=len(tail) - at,
            )
        tensors.append(decode_raw(one.name, one.datatype, one.shape, tail[at : at + size], max_rows=max_rows))
        at += size
    if at != len(tail):
        raise InvalidRequest(
            f"body: {len(tail) - at} bytes behind the last tensor", field="body", value=len(tail) - at, limit=0
        )
    return tensors


def _flag(field: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise InvalidRequest(f"{field}: must be true or false", field=field, value=value, limit="true, false")


def _flat(data: Sequence[Any]) -> list[Any]:
    """Elements of nested lists, row-major."""
    flat: list[Any] = []
    stack = [iter(data)]
    while stack:
        for value in stack[-1]:
            if isinstance(value, list):
                stack.append(iter(value))
                break
            flat.append(value)
        else:
            stack.pop()
    return flat


def _answer(found: Inferred, request_id: str, as_bytes: set[str]) -> web.Response:
    outputs: list[OutputAnswer] = []
    tail = b""
    for name, values in found.outputs.items():
        output = OutputAnswer(name=name, datatype=OUTPUT_TYPES[values.dtype], shape=list(values.shape))
        if name in as_bytes:
            raw = encode_raw(values)
            output.parameters = {"binary_data_size": len(raw)}
            tail += raw
        else:
            output.data = values.tolist()
        outputs.append(output)
    answer = InferAnswer(
        model_name=found.served.name,
        model_version=str(found.served.version),
        id=request_id,
        parameters={"weights_digest": found.served.weights_digest},
        outputs=outputs,
    )
    header = answer.model_dump_json(exclude_none=True).encode()
    if not tail:
        return web.Response(body=header, content_type="application/json")
    return web.Response(
        body=header + tail,
        content_type=_BYTES,
        headers={_JSON_LENGTH: str(len(header))},
    )


def _metadata(tensors: Sequence[TensorShape]) -> list[dict[str, object]]:
    return [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in tensors]
