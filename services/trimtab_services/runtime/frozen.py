"""What the services with a frozen model share: the wiring of slot, follower and scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from trimtab.v1 import info_pb2
from trimtab_services.runtime.config import FrozenModelConfig, ModelServiceConfig
from trimtab_services.runtime.replica import Follower
from trimtab_services.runtime.scheduler import Scheduler
from trimtab_services.runtime.slots import ModelSlot
from trimtab_services.runtime.state import Runtime

__all__ = ["FrozenModelService", "row_multiple"]


class FrozenModelService:
    """Slot, follower and scheduler of one server.

    Args:
        runtime: of the server.
        slot: holds the model.
        compute: computes a batch in the compute thread.
    """

    def __init__(
        self,
        runtime: Runtime[Any],
        slot: ModelSlot,
        compute: Callable[[Any, list[Any]], Sequence[Any]],
    ) -> None:
        self._config: FrozenModelConfig = runtime.config
        self.slot = slot
        self.follower = Follower(runtime, slot.load)
        self.scheduler: Scheduler[Any, Any] = Scheduler(
            compute,
            max_batch_tokens=self._config.max_batch_tokens,
            max_queue_tokens=self._config.max_queue_tokens,
            metrics=runtime.metrics,
            prepare=self._set_threads,
        )

    def describe(self, response: info_pb2.GetInfoResponse) -> None:
        """The service's part of GetInfo."""
        config = self._config
        response.device = config.device
        response.limits.max_items_per_request = config.max_items_per_request
        response.limits.max_batch_tokens = config.max_batch_tokens
        response.limits.max_queue_tokens = config.max_queue_tokens
        response.load.CopyFrom(self.scheduler.load())
        model = response.models.add()
        self.slot.describe(model, config.dtype)
        model.channel = self.follower.channel
        model.channel_version = self.follower.channel_version
        model.last_swap_error = self.follower.last_swap_error

    def _set_threads(self) -> None:
        if self._config.threads:
            torch.set_num_threads(self._config.threads)


def row_multiple(config: ModelServiceConfig) -> int:
    """Rows of a matrix product are padded to a multiple of this, so that a row does not depend on its neighbours.

    With T threads on a CPU, results change with the row count unless it is a multiple of 4 T (measured); only
    deterministic mode pays for that.
    """
    if not config.deterministic:
        return 1
    return 4 * torch.get_num_threads() if config.device == "cpu" else 16
