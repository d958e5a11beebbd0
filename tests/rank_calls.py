"""What tests have every rank of a run do; the other ranks import this module too."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from trimtab_trainer.checkpoint_tensors import Part
from trimtab_trainer.distributed import full_tensors, is_sharded, joined, local_part, on_every_rank, own_rank
from trimtab_trainer.optimization import Learner
from trimtab_trainer.world import World


class TooLarge(RuntimeError):
    """Stands for whatever only one rank meets, such as memory that is full."""


@on_every_rank
def fail_on(rank: int) -> None:
    if own_rank() == rank:
        raise TooLarge("tried to allocate 9.00 GiB")
    _wait_for_others()


@on_every_rank
def kill(rank: int) -> None:
    if own_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    _wait_for_others()


@on_every_rank
def freeze(rank: int) -> None:
    if own_rank() == rank:
        os.kill(os.getpid(), signal.SIGSTOP)
    _wait_for_others()


@on_every_rank
def interrupt(rank: int) -> None:
    if own_rank() == rank:
        os.kill(os.getpid(), signal.SIGTERM)


@on_every_rank
def whole(*parts: Part) -> dict[str, torch.Tensor]:
    """What the parts capture, whole, on rank 0."""
    return full_tensors({name: tensor for part in parts for name, tensor in part.capture().items()})


@on_every_rank
def die_after_writing(rank: int) -> None:
    """Has a rank killed as soon as its files of a checkpoint are on disk, and nothing else is."""
    if own_rank() != rank:
        return
    write = HuggingFaceStorageWriter.write_data

    def write_and_die(*arguments: Any) -> None:
        write(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    HuggingFaceStorageWriter.write_data = write_and_die  # type: ignore[method-assign, assignment]


@on_every_rank
def limit_files(rank: int, size: int) -> None:
    """Lets a rank write no file of more bytes, as if its disk were full."""
    if own_rank() == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@on_every_rank
def limit_memory(rank: int, more: int) -> None:
    """Lets a rank ask for no more than so many bytes beyond what it has now."""
    if own_rank() == rank:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


@on_every_rank
@torch.no_grad()
def poison(learner: Learner, *, token_id: int) -> None:
    """Makes the embedding of a token NaN, on the rank that has it."""
    embedding = learner.model.get_input_embeddings().weight
    whole = embedding.full_tensor()
    whole[token_id] = float("nan")
    embedding.copy_(local_part(whole, embedding))


@on_every_rank
def bytes_held(learner: Learner) -> list[tuple[int, int]]:
    """Of each rank: bytes of its parts of the weights, and of the optimizer's moments."""
    assert is_sharded(learner.model)
    weights = sum(_bytes(parameter) for parameter in learner.model.parameters())
    states = [state for optimizer in learner._optimizers for state in optimizer.state.values()]
    moments = sum(_bytes(value) for state in states for key, value in state.items() if key != "step")
    return joined([(weights, moments)])


@on_every_rank
def models_held() -> list[int]:
    """Of each rank but 0: models that it holds."""
    world = World.current
    assert world is not None
    return joined([sum(isinstance(one, nn.Module) for one in world._objects.values())])[1:]


def _bytes(tensor: torch.Tensor) -> int:
    local = tensor.to_local()  # type: ignore[attr-defined]
    return local.numel() * local.element_size()


def _wait_for_others() -> None:
    joined([time.monotonic()])
