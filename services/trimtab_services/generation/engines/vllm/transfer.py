"""Our backend of vLLM's weight transfer: a whole version, checked in host memory, goes into the running model.

The replica's follower has pulled the version from the weights service and checked every byte of it before; `staging`
has checked names, shapes and values against the model. So nothing is left to wait for while the engine stands still.
vLLM's own loader maps the tensors of a Hugging Face checkpoint to its fused and renamed parameters, layer by layer, and
repeats what its kernels need (packing, on a CPU). A parameter that no tensor went into is an error here.
"""

# vLLM has an environment of its own.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from trimtab.errors import Mismatch

__all__ = ["BACKEND", "register_backend"]

BACKEND = "trimtab"
"""Its name in `WeightTransferConfig.backend`."""


@dataclass
class NoHandshake(WeightTransferInitInfo):
    """Nothing to agree upon: the tensors are in this process."""


@dataclass
class HostVersion(WeightTransferUpdateInfo):
    """A version, whole.

    Attributes:
        tensors: by the names of a Hugging Face checkpoint, in host memory, in the dtype that is served.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class HostMemoryTransfer(WeightTransferEngine[NoHandshake, HostVersion]):
    """Applies versions that lie in host memory; see the module."""

    init_info_cls = NoHandshake
    update_info_cls = HostVersion
    supports_draft_weight_update = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._expected = {name for name, _ in self.model.named_parameters()}

    def init_transfer_engine(self, init_info: NoHandshake) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Makes every layer ready to be loaded anew."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: HostVersion) -> None:
        """Loads a version.

        Raises:
            Mismatch: a parameter of vLLM's model that no tensor went into, or a tensor that it does not know.
        """
        try:
            loaded = self.model.load_weights(iter(update_info.tensors.items()))
        except (ValueError, KeyError, AttributeError) as error:
            raise Mismatch(f"vLLM has no place for a tensor of the checkpoint: {error}", field="tensors") from error
        missing = sorted(self._expected - set(loaded))
        if missing:
            raise Mismatch(
                f"no tensor of the checkpoint goes into vLLM's parameter {missing[0]}"
                + (f" and {len(missing) - 1} more" if missing[1:] else ""),
                field=missing[0],
                value=len(loaded),
                limit=len(self._expected),
            )

    def finish_weight_update(self) -> None:
        """Puts what was loaded to use."""
        finalize_layerwise_reload(self.model, self.model_config)
        # A head tied to the embedding gets no tensor of its own, so vLLM does not pack it anew.
        embedded = [layer.weight for layer in self.model.modules() if type(layer) is VocabParallelEmbedding]
        for head in self.model.modules():
            if isinstance(head, ParallelLMHead) and any(head.weight is weight for weight in embedded):
                head.quant_method.process_weights_after_loading(head)

    def shutdown(self) -> None:
        """Nothing to release."""


def register_backend() -> None:
    """Makes the backend known to vLLM by its name; once is enough, again does no harm."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, HostMemoryTransfer)
