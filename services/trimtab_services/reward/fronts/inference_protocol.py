"""The Open Inference Protocol over reward models: which tensors they take and give, whatever carries them.

Inputs are one of three forms, n rows each, all of one shape [n] or [n, 1] unless said otherwise:

    prompt BYTES, completion BYTES      as in `/v1/score`
    text BYTES                          a whole text, read as a document: a control token that it spells is text
    token_ids INT32 or INT64 [n, seq]   whole sequences, used as they are; `lengths` tells how much of each row counts

Outputs: `reward` FP32 [n] and `token_count` INT32 [n]. Errors name a row as `items[3]`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.convert.shared import each
from trimtab.errors import InvalidRequest, NotFound, Reason
from trimtab.types import (
    Priority,
    ScoreItem,
    ScoreRequest,
    ServedModel,
    TruncationSide,
    VersionRequirement,
)
from trimtab.types.shared import INT64_END
from trimtab.v1 import info_pb2
from trimtab_services.reward.fronts.tensors import Tensor
from trimtab_services.reward.fronts.whole_texts import WholeTexts
from trimtab_services.reward.models import RewardModels
from trimtab_services.runtime.calls import begin_call, current_call, rename_call
from trimtab_services.runtime.state import Runtime, State

__all__ = [
    "EXTENSIONS",
    "INPUTS",
    "MAX_TENSORS",
    "OUTPUTS",
    "InferenceProtocol",
    "Inferred",
    "Question",
    "TensorShape",
]

EXTENSIONS = ("binary_tensor_data",)

MAX_TENSORS = 8
"""Most inputs, and most outputs, of a request."""

_MAX_DIGITS = len(str(INT64_END))
"""Refused before they are read: Python reads no number of thousands of digits."""

_PRIORITIES = {0: Priority.ROLLOUT, 1: Priority.INTERACTIVE, 2: Priority.ROLLOUT, 3: Priority.BULK}
"""By number, as in `trimtab.v1.Priority`: 0 is the default, and less is sooner, as clients of the protocol expect."""


@dataclass(frozen=True, slots=True)
class TensorShape:
    """One tensor as metadata has it; -1 is any number."""

    name: str
    datatype: str
    shape: tuple[int, ...]


INPUTS = (
    TensorShape("prompt", "BYTES", (-1,)),
    TensorShape("completion", "BYTES", (-1,)),
    TensorShape("text", "BYTES", (-1,)),
    TensorShape("token_ids", "INT32", (-1, -1)),
    TensorShape("lengths", "INT32", (-1,)),
)
OUTPUTS = (TensorShape("reward", "FP32", (-1,)), TensorShape("token_count", "INT32", (-1,)))


@dataclass(frozen=True, slots=True)
class Question:
    """What a request asks.

    Attributes:
        model: by name; empty is the default one.
        version: a whole number; empty is any.
        id: name of the request.
        inputs: tensors, decoded.
        outputs: names of the outputs that are asked for; none is all.
        parameters: of the request.
    """

    model: str
    version: str
    id: str
    inputs: Sequence[Tensor]
    outputs: Sequence[str]
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Inferred:
    """The answer: the model, and the outputs in the order asked for."""

    served: ServedModel
    outputs: Mapping[str, npt.NDArray[Any]]


class InferenceProtocol:
    """What both carriers of the protocol ask.

    Args:
        runtime: of the server.
        models: by name.
        describe: fills in the service's part of GetInfo.
        whole_texts: reads the `text` input.
    """

    def __init__(
        self,
        runtime: Runtime[Any],
        models: RewardModels,
        describe: Callable[[info_pb2.GetInfoResponse], None],
        whole_texts: WholeTexts,
    ) -> None:
        self._runtime = runtime
        self._models = models
        self._describe = describe
        self._whole_texts = whole_texts

    @property
    def ready(self) -> bool:
        """Whether every model can be asked."""
        return self._runtime.state == State.SERVICE_STATE_SERVING

    @property
    def max_rows(self) -> int:
        """Most rows of a request."""
        return self._models.max_items

    def model(self, name: str, version: str) -> info_pb2.ModelInfo:
        """What GetInfo tells of a model.

        Raises:
            NotFound: no such model, or another version of it is served.
            InvalidRequest: the version is no whole number.
        """
        found = self._models.named(name).name
        info = info_pb2.GetInfoResponse()
        self._describe(info)
        model = next(model for model in info.models if model.served.name == found)
        requirement = _version(version)
        if not requirement.allows(model.served.version):
            raise NotFound(
                f"version: {found!r} is served in version {model.served.version}, not {version}",
                field="version",
                value=version,
                limit=model.served.version,
            )
        return model

    async def infer(self, question: Question) -> Inferred:
        """Scores the rows.

        Raises:
            TrimtabError: as `RewardModels.score`; or a tensor, a parameter or an output is not one of ours.
        """
        rename_call(question.id)
        wanted = _outputs(question.outputs)
        request = await self._request(question)
        found = await self._models.score(request)
        every = {
            "reward": np.array([score.reward for score in found.scores], dtype=np.float32),
            "token_count": np.array([score.token_count for score in found.scores], dtype=np.int32),
        }
        return Inferred(found.served, {name: every[name] for name in wanted})

    async def _request(self, question: Question) -> ScoreRequest:
        parameters = dict(question.parameters)
        truncation = _truncation(parameters.pop("truncation", "NONE"))
        priority = _priority(parameters.pop("priority", 0))
        _limit_time(parameters.pop("timeout", None))
        for name in parameters:
            raise InvalidRequest(
                f"parameters.{name}: is not known; known are truncation, priority, timeout",
                field=f"parameters.{name}",
                limit="truncation, priority, timeout",
            )
        version = _version(question.version)
        return ScoreRequest(
            items=await self._items(question),
            model=question.model,
            truncation=truncation,
            priority=priority,
            version=version,
        )

    async def _items(self, question: Question) -> tuple[ScoreItem, ...]:
        tensors = {tensor.name: tensor for tensor in question.inputs}
        if len(tensors) != len(question.inputs):
            raise InvalidRequest("inputs: a name stands twice", reason=Reason.DUPLICATE_ID, field="inputs")
        match sorted(tensors):
            case ["completion", "prompt"]:
                return _pairs(_column(tensors["prompt"]).texts, _column(tensors["completion"]).texts)
            case ["text"]:
                model, texts = self._models.named(question.model), _column(tensors["text"]).texts
                return await self._whole_texts.items(model, "text", texts, control_tokens=False)
            case ["token_ids"] | ["lengths", "token_ids"]:
                return _sequences(tensors["token_ids"], tensors.get("lengths"))
            case names:
                raise InvalidRequest(
                    f"inputs: {', '.join(names) or 'none'}; send prompt with completion, or text, or token_ids, with "
                    "lengths where rows are padded",
                    reason=Reason.FIELD_MISSING,
                    field="inputs",
                    value=", ".join(names),
                    limit="prompt with completion; text; token_ids, lengths",
                )


def _pairs(prompts: Sequence[str], completions: Sequence[str]) -> tuple[ScoreItem, ...]:
    _check_rows("completion", len(completions), len(prompts))
    pairs = zip(prompts, completions, strict=True)
    return each("items", pairs, lambda pair: ScoreItem(prompt=pair[0], completion=pair[1]))


def _sequences(token_ids: Tensor, lengths: Tensor | None) -> tuple[ScoreItem, ...]:
    if token_ids.numbers is None or len(token_ids.shape) != 2:
        raise InvalidRequest(
            f"token_ids: shape {list(token_ids.shape)}; must be whole numbers [rows, tokens]",
            field="token_ids",
            value=list(token_ids.shape),
            limit="[rows, tokens]",
        )
    rows, width = token_ids.shape
    table = token_ids.numbers.reshape(rows, width).tolist()
    counts = [width] * rows if lengths is None else _lengths(lengths, rows, width)
    return each("items", zip(table, counts, strict=True), lambda row: ScoreItem(token_ids=tuple(row[0][: row[1]])))


def _lengths(lengths: Tensor, rows: int, width: int) -> list[int]:
    counts = _column(lengths).numbers
    if counts is None:
        raise InvalidRequest("lengths: must be whole numbers", field="lengths", limit="INT32, INT64")
    _check_rows("lengths", len(counts), rows)
    for row, count in enumerate(counts.tolist()):
        if not 1 <= count <= width:
            raise InvalidRequest(
                f"lengths[{row}]: {count}; allowed: 1..{width}", field=f"lengths[{row}]", value=count, limit=width
            )
    return counts.tolist()


def _column(tensor: Tensor) -> Tensor:
    """A tensor of one element a row."""
    if len(tensor.shape) == 1 or (len(tensor.shape) == 2 and tensor.shape[1] == 1):
        return tensor
    raise InvalidRequest(
        f"{tensor.name}: shape {list(tensor.shape)}; must be [rows]",
        field=tensor.name,
        value=list(tensor.shape),
        limit="[rows]",
    )


def _check_rows(name: str, count: int, rows: int) -> None:
    if count != rows:
        raise InvalidRequest(f"{name}: {count} rows beside {rows}", field=name, value=count, limit=rows)


def _outputs(names: Sequence[str]) -> Sequence[str]:
    known = [output.name for output in OUTPUTS]
    for index, name in enumerate(names):
        if name not in known:
            raise InvalidRequest(
                f"outputs[{index}].name: {name!r} is not known; known are {', '.join(known)}",
                field=f"outputs[{index}].name",
                value=name,
                limit=", ".join(known),
            )
    return names or known


def _truncation(value: object) -> TruncationSide:
    if isinstance(value, str) and value in TruncationSide.__members__:
        return TruncationSide(value)
    raise _wrong_parameter("truncation", value, ", ".join(TruncationSide.__members__))


def _priority(value: object) -> Priority:
    if isinstance(value, str) and value in Priority.__members__:
        return Priority(value)
    if type(value) is int and value in _PRIORITIES:
        return _PRIORITIES[value]
    raise _wrong_parameter("priority", value, f"0..{max(_PRIORITIES)}, {', '.join(Priority.__members__)}")


def _limit_time(microseconds: object) -> None:
    """Gives the call that much time from now, if it has more."""
    if microseconds is None:
        return
    if type(microseconds) is not int or not 0 < microseconds < INT64_END:
        raise _wrong_parameter("timeout", microseconds, "microseconds, a whole number above 0")
    deadline = time.monotonic() + microseconds / 1e6
    call = current_call()
    if call is not None and (call.deadline is None or deadline < call.deadline):
        begin_call(replace(call, deadline=deadline))


def _wrong_parameter(name: str, value: object, limit: str) -> InvalidRequest:
    field = f"parameters.{name}"
    return InvalidRequest(f"{field}: {str(value)[:100]!r}; allowed: {limit}", field=field, value=value, limit=limit)


def _version(version: str) -> VersionRequirement:
    if not version:
        return VersionRequirement()
    is_number = len(version) <= _MAX_DIGITS and version.isascii() and version.isdecimal()
    if not is_number or int(version) >= INT64_END:
        raise InvalidRequest(
            f"version: {version[:100]!r}; must be a whole number of at most {_MAX_DIGITS} digits",
            field="version",
            value=version[:100],
            limit=INT64_END - 1,
        )
    return VersionRequirement(exactly=int(version))
