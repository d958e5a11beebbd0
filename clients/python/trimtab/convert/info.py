"""Info: what a server is."""

from __future__ import annotations

from trimtab.convert.shared import enum_from_reply, served_from_message
from trimtab.types import Limits, Load, ModelInfo, ServiceInfo, ServiceState
from trimtab.v1 import info_pb2


def info_from_message(message: info_pb2.GetInfoResponse) -> ServiceInfo:
    """What a server is."""
    limits, load = message.limits, message.load
    return ServiceInfo(
        service=message.service,
        replica=message.replica,
        state=enum_from_reply(ServiceState, info_pb2.ServiceState, "SERVICE_STATE_", "state", message.state),
        state_reason=message.state_reason,
        models=tuple(
            ModelInfo(
                served=served_from_message(model.served),
                channel=model.channel,
                architecture=model.architecture,
                parameter_count=model.parameter_count,
                dtype=model.dtype,
                vocab_size=model.vocab_size,
                max_sequence_tokens=model.max_sequence_tokens,
                eos_token_ids=tuple(model.eos_token_ids),
                channel_version=model.channel_version,
                last_swap_error=model.last_swap_error,
            )
            for model in message.models
        ),
        limits=Limits(
            limits.max_items_per_request,
            limits.max_batch_tokens,
            limits.max_queue_tokens,
            limits.max_request_bytes,
            limits.default_deadline_ms,
            limits.max_concurrent_sequences,
        ),
        device=message.device,
        build_version=message.build_version,
        deterministic=message.deterministic,
        threads=message.threads,
        http_url=message.http_url,
        engine=message.engine,
        load=Load(load.waiting_items, load.waiting_tokens, load.running_items, load.tokens_per_second),
    )
