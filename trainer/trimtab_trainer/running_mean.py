"""The running mean of a policy's weights: what PPO exports, and never samples from (InstructGPT C.4)."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab_models.loading import named_parameter_tensors
from trimtab_trainer.checkpoint_tensors import TensorFiles
from trimtab_trainer.distributed import on_every_rank
from trimtab_trainer.world import Mirrored

__all__ = ["RunningMean", "running_mean_of"]


class RunningMean(Mirrored):
    """An exponential mean, float32, that starts at the weights as they are; of a sharded model in the same parts."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._mean = {name: tensor.detach().float().clone() for name, tensor in named_parameter_tensors(model).items()}

    @on_every_rank
    @torch.no_grad()
    def move(self, weight: float) -> None:
        """Moves the mean towards the model's present weights by a share of the way."""
        for name, tensor in named_parameter_tensors(self._model).items():
            self._mean[name].lerp_(tensor.to(self._mean[name].dtype), weight)

    def capture(self) -> dict[str, Tensor]:
        """This rank's parts of the mean for a checkpoint, as `average/name`."""
        return {f"average/{name}": mean for name, mean in self._mean.items()}

    @on_every_rank
    def restore(self, tensors: TensorFiles) -> None:
        """Reads back what `capture` took."""
        tensors.read_into(self.capture())

    @on_every_rank
    @torch.no_grad()
    def put_into_model(self) -> None:
        """Makes the mean the model's weights."""
        for name, tensor in named_parameter_tensors(self._model).items():
            tensor.copy_(self._mean[name])


@on_every_rank
def running_mean_of(model: PreTrainedModel) -> RunningMean:
    """A mean that starts now, of a sharded model on every rank."""
    return RunningMean(model)
