"""The Open Inference Protocol over gRPC, on the service's own port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from trimtab.errors import InvalidRequest
from trimtab_services.reward.fronts.inference import open_inference_pb2 as pb
from trimtab_services.reward.fronts.inference import open_inference_pb2_grpc
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
from trimtab_services.reward.fronts.tensors import OUTPUT_TYPES, Tensor, decode_raw, decode_values, encode_raw
from trimtab_services.runtime.info import build_version

__all__ = ["InferenceServicer"]

_CONTENTS = {"BYTES": "bytes_contents", "INT32": "int_contents", "INT64": "int64_contents", "FP32": "fp32_contents"}


class InferenceServicer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Carries the protocol.

    Args:
        protocol: answers.
    """

    def __init__(self, protocol: InferenceProtocol) -> None:
        self._protocol = protocol

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerLiveResponse:
        """Tells that the process answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerReadyResponse:
        """Tells whether every model can be asked."""
        return pb.ServerReadyResponse(ready=self._protocol.ready)

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelReadyResponse:
        """Tells whether one model can be asked."""
        self._protocol.model(request.name, request.version)
        return pb.ModelReadyResponse(ready=self._protocol.ready)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerMetadataResponse:
        """Names the server."""
        return pb.ServerMetadataResponse(name="trimtab", version=build_version(), extensions=EXTENSIONS)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelMetadataResponse:
        """Tells which tensors a model takes and gives."""
        model = self._protocol.model(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=model.served.name,
            versions=[str(model.served.version)],
            platform=model.architecture,
            inputs=_metadata(INPUTS),
            outputs=_metadata(OUTPUTS),
        )

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelInferResponse:
        """Scores the rows."""
        _check_at_most("inputs", len(request.inputs))
        _check_at_most("outputs", len(request.outputs))
        for index, output in enumerate(request.outputs):
            _check_parameters(f"outputs[{index}].parameters", output.parameters, ("binary_data",))
        parameters = _values(request.parameters)
        parameters.pop("binary_data_output", None)  # speaks of JSON; here the answer comes as the question came
        question = Question(
            model=request.model_name,
            version=request.model_version,
            id=request.id,
            inputs=_tensors(request, self._protocol.max_rows),
            outputs=[output.name for output in request.outputs],
            parameters=parameters,
        )
        return _response(await self._protocol.infer(question), request)


def _check_at_most(field: str, count: int) -> None:
    if count > MAX_TENSORS:
        raise InvalidRequest(
            f"{field}: {count} are in the request; allowed: {MAX_TENSORS}", field=field, value=count, limit=MAX_TENSORS
        )


def _tensors(request: pb.ModelInferRequest, max_rows: int) -> list[Tensor]:
    for index, tensor in enumerate(request.inputs):
        _check_parameters(f"inputs[{index}].parameters", tensor.parameters, ("binary_data_size",))
    if not request.raw_input_contents:
        return [
            decode_values(one.name, one.datatype, one.shape, _contents(one), max_rows=max_rows)
            for one in request.inputs
        ]
    if len(request.raw_input_contents) != len(request.inputs):
        raise InvalidRequest(
            f"raw_input_contents: {len(request.raw_input_contents)} for {len(request.inputs)} inputs",
            field="raw_input_contents",
            value=len(request.raw_input_contents),
            limit=len(request.inputs),
        )
    both = next((index for index, one in enumerate(request.inputs) if one.HasField("contents")), None)
    if both is not None:
        raise InvalidRequest(
            f"inputs[{both}].contents: must not be set beside raw_input_contents", field=f"inputs[{both}].contents"
        )
    return [
        decode_raw(one.name, one.datatype, one.shape, raw, max_rows=max_rows)
        for one, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    ]


def _contents(tensor: pb.ModelInferRequest.InferInputTensor) -> Sequence[Any]:
    """The elements in the field of the tensor's type; a type that is not ours is refused by who decodes them."""
    return getattr(tensor.contents, _CONTENTS.get(tensor.datatype, "bytes_contents"))


def _values(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, parameter in parameters.items():
        form = parameter.WhichOneof("parameter_choice")
        values[name] = getattr(parameter, form) if form is not None else None
    return values


def _check_parameters(field: str, parameters: Mapping[str, object], known: Sequence[str]) -> None:
    unknown = next((name for name in parameters if name not in known), None)
    if unknown is not None:
        raise InvalidRequest(
            f"{field}.{unknown}: is not known", field=f"{field}.{unknown}", limit=", ".join(known) or "none"
        )


def _response(found: Inferred, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(
        model_name=found.served.name, model_version=str(found.served.version), id=request.id
    )
    response.parameters["weights_digest"].string_param = found.served.weights_digest
    for name, values in found.outputs.items():
        datatype = OUTPUT_TYPES[values.dtype]
        output = response.outputs.add(name=name, datatype=datatype, shape=values.shape)
        if request.raw_input_contents:
            response.raw_output_contents.append(encode_raw(values))
        else:
            getattr(output.contents, _CONTENTS[datatype]).extend(values.tolist())
    return response


def _metadata(tensors: Sequence[TensorShape]) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    return [
        pb.ModelMetadataResponse.TensorMetadata(name=one.name, datatype=one.datatype, shape=one.shape)
        for one in tensors
    ]
