"""What a server says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from trimtab.types.shared import ServedModel

__all__ = [
    "Limits",
    "Load",
    "ModelInfo",
    "ServiceInfo",
    "ServiceState",
]


class ServiceState(StrEnum):
    """Where a server is in its life."""

    LOADING = "LOADING"
    WAITING_FOR_VERSION = "WAITING_FOR_VERSION"
    SERVING = "SERVING"
    DRAINING = "DRAINING"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model of a server; see `trimtab.v1.ModelInfo` for each field."""

    served: ServedModel
    channel: str = ""
    architecture: str = ""
    parameter_count: int = 0
    dtype: str = ""
    vocab_size: int = 0
    max_sequence_tokens: int = 0
    eos_token_ids: tuple[int, ...] = ()
    channel_version: int = 0
    last_swap_error: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a server; 0 means that the limit does not apply."""

    max_items_per_request: int = 0
    max_batch_tokens: int = 0
    max_queue_tokens: int = 0
    max_request_bytes: int = 0
    default_deadline_ms: int = 0
    max_concurrent_sequences: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """A moment's look at the work in a server."""

    waiting_items: int = 0
    waiting_tokens: int = 0
    running_items: int = 0
    tokens_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """What a server is and what it takes; see `trimtab.v1.GetInfoResponse` for each field."""

    service: str
    replica: str
    state: ServiceState
    state_reason: str = ""
    models: tuple[ModelInfo, ...] = ()
    limits: Limits = field(default_factory=Limits)
    device: str = ""
    build_version: str = ""
    deterministic: bool = False
    threads: int = 0
    http_url: str = ""
    engine: str = ""
    load: Load = field(default_factory=Load)
