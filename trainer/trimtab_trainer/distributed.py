"""Training that spans processes: rank 0 runs the stages, the others do with it whatever touches a model.

Rank 0 is the run as it is in one process: it alone reads files, talks to services, reports and saves. The other ranks
hold their part of every model and follow: a function marked `on_every_rank` that rank 0 calls is called by all of them,
with the same arguments, each rank doing its share of the batch. So stages read as they do for one process, and only
rank 0 needs the datasets and the addresses and tokens of services; the run's folder, where each rank has its part of a
checkpoint, must be seen by all:

    model = shard(load_policy(folder), device)       # each rank holds its part of every tensor (FSDP2)
    learner = make_learner(model, ...)               # on every rank, as what is made of a sharded model always is
    loss = train_on(learner, batch, ...)             # each rank its share; the loss is that of the batch

Without other ranks every function here does nothing but call what it is given, and there is no process group. Losses
are divided by counts of the *whole* batch before they are added over ranks, so losses and updates are those of one
process but for the order of additions.

`world` carries the calls; `ranks` starts the processes, lets them find one another, and ends them together.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from trimtab.weights import TensorData
from trimtab_models.loading import named_parameter_tensors, save_model
from trimtab_models.versions import ModelPublisher, tensor_to_data
from trimtab_trainer.world import Mirrored, World

__all__ = [
    "FromRank0",
    "added",
    "apply",
    "at_one_call",
    "balanced",
    "even_rounds",
    "full_tensors",
    "is_sharded",
    "joined",
    "local_part",
    "model_tensors",
    "on_every_rank",
    "own_items",
    "own_rank",
    "own_share",
    "rank_seed",
    "ranks",
    "save_whole",
    "shard",
    "snapshot",
    "sums",
]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
M = TypeVar("M", bound=PreTrainedModel)


def on_every_rank(function: Callable[P, R]) -> Callable[P, R]:
    """A function that rank 0 calls on all ranks, with equal arguments. Tensors among them must lie on the CPU.

    What it raises on what only one rank knows ends the run; a `TrimtabError` must be raised by all ranks alike. Called
    with a model or learner that rank 0 has for itself, it runs there alone.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        world = World.current
        if world is None or world.inside or any(_is_rank_0s_own(world, value) for value in args):
            return function(*args, **kwargs)
        return world.call(call, args, kwargs)

    return call


def _is_rank_0s_own(world: World, value: object) -> bool:
    return isinstance(value, Mirrored | PreTrainedModel) and not world.knows(value)


def ranks() -> int:
    """Processes that the run spans."""
    return World.current.size if World.current else 1


def own_rank() -> int:
    """This process among them; 0 runs the stages."""
    return World.current.rank if World.current else 0


def rank_seed() -> list[int]:
    """What a seed is mixed with so that ranks draw differently; nothing on rank 0, which draws as one process does."""
    return [own_rank()] if own_rank() else []


def at_one_call() -> bool:
    """Whether several ranks are at the present call, all of them."""
    return _together() is not None


def _together() -> World | None:
    """The world when all ranks are at the present call."""
    return World.current if World.current is not None and World.current.inside else None


# ---- shares of a batch


def balanced(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Cuts work into parts of nearly equal size: the largest piece goes to the least loaded part (Graham 1969, LPT).

    Args:
        sizes: of each piece, such as its tokens.
        parts: how many.

    Returns:
        Positions of each part's pieces, ascending; every position once. No part exceeds another by more than a piece.
    """
    found: list[list[int]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for position in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        part = loads.index(min(loads))
        found[part].append(position)
        loads[part] += sizes[position]
    return [sorted(part) for part in found]


def own_share(sizes: Sequence[int]) -> list[int]:
    """Positions of the pieces that are this rank's; all of them where no other rank takes part."""
    world = _together()
    return balanced(sizes, world.size)[world.rank] if world else list(range(len(sizes)))


def own_items(items: Sequence[T], rank_of: Callable[[T], int]) -> list[T]:
    """The items that were given to this rank; all of them where no other rank takes part."""
    world = _together()
    return [item for item in items if world is None or rank_of(item) == world.rank]


def even_rounds(items: Sequence[T], *, filler: T) -> Iterator[tuple[T, float]]:
    """This rank's items with weight 1, then `filler` with weight 0 until every rank has had as many.

    A forward or backward of a sharded model needs all ranks, each as often as the others. Losses and counts are
    multiplied by the weight.
    """
    missing = _most(len(items)) - len(items)  # asked before the first round: collectives keep one order on all ranks
    for item in items:
        yield item, 1.0
    for _ in range(missing):
        yield filler, 0.0


def _most(count: int) -> int:
    found = torch.tensor([count])
    if _together() is not None:
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def sums(*values: float) -> tuple[float, ...]:
    """Each value added over the ranks, in float64."""
    if _together() is None:
        return values
    found = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(found)
    return tuple(found.tolist())


def added(tensor: Tensor) -> Tensor:
    """A tensor of equal shape on all ranks, added over them in place."""
    if _together() is not None:
        dist.all_reduce(tensor)
    return tensor


def joined(items: list[T]) -> list[T]:
    """The items of all ranks, those of rank 0 first."""
    world = _together()
    if world is None:
        return items
    found: list[list[T]] = [[] for _ in range(world.size)]
    dist.all_gather_object(found, items)
    return [item for part in found for item in part]


# ---- models over ranks


def shard(model: M, device: torch.device) -> M:
    """Spreads a model over the ranks: each holds its part of every tensor (FSDP2), and a layer is whole while it works.

    Args:
        model: float32, in evaluation mode, whole on rank 0's CPU; it is not needed afterwards.
        device: where it goes where there are no other ranks.

    Returns:
        The model on its devices, in evaluation mode. Its functions are called through `apply`.
    """
    if World.current is None:
        moved: Any = model
        return moved.to(device)
    gc.collect()  # what only cycles keep alive gives its memory back on all ranks
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    attention = model.config._attn_implementation or "sdpa"
    return _sharded(type(model), model.config, attention, FromRank0(tensors))


@on_every_rank
def _sharded(kind: type[M], config: PreTrainedConfig, attention: str, tensors: Mapping[str, Tensor]) -> M:
    world = World.current
    assert world is not None
    with torch.device("meta"):
        model: Any = kind._from_config(config, attn_implementation=attention, dtype=torch.float32)
    root = _Root(model)
    for module in (*_layers(model), root):
        fully_shard(module, mesh=world.mesh, reshard_after_forward=True)
    for module in root.modules():
        if isinstance(module, FSDPModule):  # gradients are added: losses are divided by counts of the whole batch
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    root.to_empty(device=world.device)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            tensor.copy_(local_part(tensors[name], tensor))
    vars(model)["sharded_root"] = root  # beside the registered modules: the root holds the model
    return model.eval()


class _Root(nn.Module):
    """Makes any function of a model its forward, so that what lies outside of the layers is whole meanwhile."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        return function(self.model, *args, **kwargs)


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of a transformer: what its outermost lists of modules hold."""
    for child in model.children():
        yield from child if isinstance(child, nn.ModuleList) else _layers(child)


def apply(model: PreTrainedModel, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """`function(model, *args, **kwargs)`, a forward that returns tensors; the weights of a sharded model are there."""
    root: Callable[..., R] | None = vars(model).get("sharded_root")
    return function(model, *args, **kwargs) if root is None else root(function, *args, **kwargs)


def local_part(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor cut as `like` is; itself where that is not cut."""
    if not isinstance(like, DTensor):
        return whole
    whole = whole.detach().to(like.device, like.dtype)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def full_tensors(tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Whole tensors from their parts, one after another, in rank 0's memory; the other ranks get none.

    Where all ranks are at the present call; else tensors are given back as they are.

    Args:
        tensors: the same names on all ranks.
        dtype: that floating-point tensors are rounded to; None keeps each as it is.
    """
    if _together() is None:
        return dict(tensors)
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if own_rank() == 0:
            wanted = dtype if dtype is not None and whole.is_floating_point() else whole.dtype
            found[name] = whole.detach().to("cpu", wanted, copy=True)
    return found


@on_every_rank
def model_tensors(model: PreTrainedModel, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors that a folder of the model holds, whole, as `full_tensors` gives them."""
    return full_tensors(named_parameter_tensors(model), dtype=dtype)


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether it is spread over ranks."""
    return "sharded_root" in vars(model)


def snapshot(publisher: ModelPublisher) -> list[TensorData]:
    """`publisher.snapshot()` of a model that may be sharded."""
    if not is_sharded(publisher.model):
        return publisher.snapshot()
    whole = model_tensors(publisher.model, dtype=publisher.dtype)
    return [tensor_to_data(name, tensor) for name, tensor in whole.items()]


def save_whole(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """`save_model` of a model that may be sharded."""
    save_model(model, tokenizer, folder, tensors=model_tensors(model) if is_sharded(model) else None)


class FromRank0(Mapping[str, Tensor]):
    """An argument of a call: rank 0's tensors on every rank's device, each sent when it is read, in one order."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors: Mapping[str, Tensor] | None = tensors
        self._kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tensors": None}

    def __getitem__(self, name: str) -> Tensor:
        device = World.current.device if World.current else None
        if self._tensors is None:
            shape, dtype = self._kinds[name]
            tensor = torch.empty(shape, dtype=dtype, device=device)
        else:
            tensor = self._tensors[name].detach().to(device).contiguous()
        dist.broadcast(tensor, src=0)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)
