"""What the services with frozen models share: the wiring of slots, followers and scheduler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from trimtab.v1 import info_pb2
from trimtab_services.runtime.config import FrozenModelConfig, ModelServiceConfig, ModelSource
from trimtab_services.runtime.readiness import Readiness
from trimtab_services.runtime.replica import Follower
from trimtab_services.runtime.scheduler import Scheduler
from trimtab_services.runtime.slots import ModelSlot
from trimtab_services.runtime.state import Runtime

__all__ = ["BatchShapes", "FrozenModelService"]


class FrozenModelService:
    """Slots, followers and the one scheduler of a server.

    Args:
        runtime: of the server.
        models: each slot that holds a model, and where that comes from.
        compute: computes a batch in the compute thread.
        readiness: told when a model is there; None: these are all of the server's.

    Attributes:
        slots: by name of the model.
        scheduler: computes for all of them.
    """

    def __init__(
        self,
        runtime: Runtime[Any],
        models: Sequence[tuple[ModelSlot, ModelSource]],
        compute: Callable[[Any, list[Any]], Sequence[Any]],
        *,
        readiness: Readiness | None = None,
    ) -> None:
        self._config: FrozenModelConfig = runtime.config
        self.slots = {slot.name: slot for slot, _ in models}
        readiness = readiness if readiness is not None else Readiness(runtime, self.slots)
        multiple = BatchShapes.of(self._config).multiple
        self._followers = {
            slot.name: Follower(
                runtime,
                partial(slot.load, multiple=multiple),
                model_name=slot.name,
                source=source,
                readiness=readiness,
            )
            for slot, source in models
        }
        self.scheduler: Scheduler[Any, Any] = Scheduler(
            compute,
            max_batch_tokens=self._config.max_batch_tokens,
            max_queue_tokens=self._config.max_queue_tokens,
            metrics=runtime.metrics,
            prepare=self._set_threads,
            charge=runtime.charge_tokens,
            on_fault=lambda error: runtime.fail(f"the compute thread has ended: {type(error).__name__}: {error}"),
        )

    @property
    def background(self) -> list[Callable[[], Awaitable[None]]]:
        """What brings the models their versions, beside the calls."""
        return [follower.run for follower in self._followers.values()]

    def describe(self, response: info_pb2.GetInfoResponse) -> None:
        """The service's part of GetInfo."""
        config = self._config
        response.device = config.device
        response.limits.max_items_per_request = config.max_items_per_request
        response.limits.max_batch_tokens = config.max_batch_tokens
        response.limits.max_queue_tokens = config.max_queue_tokens
        response.load.CopyFrom(self.scheduler.load())
        for name, slot in self.slots.items():
            model, follower = response.models.add(), self._followers[name]
            slot.describe(model, config.dtype)
            model.channel = follower.channel
            model.channel_version = follower.channel_version
            model.last_swap_error = follower.last_swap_error

    def _set_threads(self) -> None:
        if self._config.threads:
            torch.set_num_threads(self._config.threads)


@dataclass(frozen=True, slots=True)
class BatchShapes:
    """The shapes that batches are computed in.

    With T threads on a CPU, rows of a matrix product change with the row count unless it is a multiple of 4 T, and the
    fused attention kernel rounds by the alignment of each thread's buffer (both measured). Deterministic mode pads to
    such multiples, computes sequences of one padded length together, and uses plain matrix products for attention. On a
    GPU rows change with the row count whatever that is, so there each sequence has a forward of its own.

    Attributes:
        multiple: padded lengths, and rows of the output layer, are multiples of this.
        deterministic: whether results may not depend on neighbours in the last bit.
        one_by_one: whether they may not even have neighbours.
    """

    multiple: int
    deterministic: bool
    one_by_one: bool = False

    @classmethod
    def of(cls, config: ModelServiceConfig) -> BatchShapes:
        """As a service's configuration asks for."""
        if not config.deterministic:
            return cls(1, False)
        threads = config.threads or torch.get_num_threads()  # those of the compute thread, not of who asks
        return cls(4 * threads, True) if config.device == "cpu" else cls(16, True, one_by_one=True)

    def split(self, lengths: Sequence[int]) -> list[list[int]]:
        """Positions of the sequences that are computed in one forward: all, those of one padded length, or one."""
        if not self.deterministic:
            return [list(range(len(lengths)))]
        if self.one_by_one:
            return [[position] for position in range(len(lengths))]
        groups: dict[int, list[int]] = {}
        for position, length in enumerate(lengths):
            groups.setdefault(length + -length % self.multiple, []).append(position)
        return list(groups.values())

    def attention(self) -> AbstractContextManager[object]:
        """What the attention of a forward runs on."""
        return sdpa_kernel(SDPBackend.MATH) if self.deterministic else nullcontext()
