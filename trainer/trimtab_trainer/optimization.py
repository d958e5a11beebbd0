"""Optimizer steps that every stage shares: float32 AdamW, its schedule, clipping, accumulation, and the checks for NaN.

`Learner` holds one model under training. A step is `backward` for each micro-batch and one `update`:

    for micro_batch in micro_batches:
        with learner.autocast():
            loss = ... / whole_batch_token_count       # never a mean of micro-batch means
        total += learner.backward(loss)
    figures = learner.update()

Weights and moments are float32 always; bfloat16 is autocast around the forward. Nothing here knows losses or data. The
learner of a sharded model is one on all ranks, whose `backward` and `update` they call together (`distributed`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from trimtab.errors import TrainingDiverged, Unsupported
from trimtab_models.loading import enable_gradient_checkpointing
from trimtab_trainer.checkpoint import capture_model, capture_optimizer, restore_model, restore_optimizer
from trimtab_trainer.checkpoint_tensors import TensorFiles
from trimtab_trainer.config import OptimizerConfig
from trimtab_trainer.distributed import on_every_rank, rank_seed, sums
from trimtab_trainer.world import Mirrored

__all__ = [
    "Learner",
    "Update",
    "compute_environment",
    "gradient_norm",
    "in_evaluation",
    "learning_rate_at",
    "make_learner",
    "prepare_for_training",
    "seed_step",
    "shuffled",
    "token_micro_batches",
]


@dataclass(frozen=True)
class Update:
    """Figures of one optimizer step.

    Attributes:
        learning_rate: that the step was made with.
        gradient_norm: global L2 norm before clipping.
        clipped: whether it was scaled down.
    """

    learning_rate: float
    gradient_norm: float
    clipped: bool


class Learner(Mirrored):
    """One model under training with its optimizer; `make_learner` makes it on every rank.

    Args:
        model: float32 on its device.
        config: optimizer and schedule.
        total_steps: of the whole schedule.
        precision: bfloat16 makes `autocast` one.
        name: what its tensors' names begin with in a checkpoint.

    Attributes:
        step: optimizer steps done.
        device: where the model is, on this rank.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: OptimizerConfig,
        *,
        total_steps: int,
        precision: Literal["float32", "bfloat16"] = "float32",
        name: str = "learner",
    ) -> None:
        self.model = model
        self.config = config
        self.total_steps = total_steps
        self.step = 0
        self._precision, self._name = precision, name
        self.device = next(model.parameters()).device
        self._optimizers = _optimizers(model, config)
        self._aside: list[Tensor | None] = []

    def autocast(self) -> AbstractContextManager[object]:
        """What a forward runs in: bfloat16 autocast, or nothing at float32."""
        if self._precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def backward(self, loss: Tensor, *, scale: float = 1.0) -> float:
        """Adds the gradient of a scalar loss, already divided by the count of the *whole* batch.

        Args:
            loss: of this rank's micro-batch.
            scale: of the gradient.

        Returns:
            The loss, summed over the ranks' micro-batches.

        Raises:
            TrainingDiverged: the loss is not finite; no gradient was added.
        """
        (total,) = sums(float(loss.detach()))
        if not math.isfinite(total):
            raise TrainingDiverged(f"loss is {total}", field="loss", value=total, limit="finite")
        (loss * scale).backward()
        return total

    @on_every_rank
    def update(self) -> Update:
        """Clips the sum of gradients, makes one optimizer step, clears the gradients.

        Raises:
            TrainingDiverged: the gradient is not finite; weights and moments are untouched.
        """
        total = gradient_norm(self.model.parameters())
        norm = float(total)
        if not math.isfinite(norm):
            raise TrainingDiverged(f"gradient norm is {norm}", field="gradient_norm", value=norm, limit="finite")
        most = self.config.max_gradient_norm
        clipped = most is not None and norm > most
        if most is not None and clipped:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), most, total)
        rate = learning_rate_at(self.config, self.step, self.total_steps)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * (rate / self.config.learning_rate)
            optimizer.step()
        self._clear_gradients()
        self.step += 1
        return Update(learning_rate=rate, gradient_norm=norm, clipped=clipped)

    @on_every_rank
    def put_gradient_aside(self) -> float:
        """Takes the gradient out of the way of the next one; returns its norm."""
        parameters = list(self.model.parameters())
        norm = float(gradient_norm(parameters))
        self._aside = [parameter.grad for parameter in parameters]
        self._clear_gradients()
        return norm

    @on_every_rank
    def add_gradient_put_aside(self) -> float:
        """Adds it to the one that was made since; returns the norm of that one alone."""
        parameters = list(self.model.parameters())
        norm = float(gradient_norm(parameters))
        for parameter, gradient in zip(parameters, self._aside, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
        self._aside = []
        return norm

    def capture(self) -> dict[str, Tensor]:
        """This rank's parts of weights and moments, and the step, for a checkpoint between two updates."""
        moments = [
            capture_optimizer(optimizer, self.model, f"{self._name}/optimizer") for optimizer in self._optimizers
        ]
        return {
            **capture_model(self.model, f"{self._name}/model"),
            **{name: tensor for captured in moments for name, tensor in captured.items()},
            f"{self._name}/step": torch.tensor(self.step),
        }

    @on_every_rank
    def restore(self, tensors: TensorFiles) -> None:
        """Reads back what `capture` took, on however many ranks.

        Raises:
            Mismatch: the checkpoint is of another model.
        """
        restore_model(self.model, tensors, f"{self._name}/model")
        for optimizer in self._optimizers:
            restore_optimizer(optimizer, self.model, tensors, f"{self._name}/optimizer")
        self.step = int(tensors[f"{self._name}/step"])
        self._clear_gradients()

    def _clear_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None


@on_every_rank
def make_learner(
    model: PreTrainedModel,
    config: OptimizerConfig,
    *,
    total_steps: int,
    precision: Literal["float32", "bfloat16"] = "float32",
    name: str = "learner",
) -> Learner:
    """A `Learner`, of a sharded model on every rank."""
    return Learner(model, config, total_steps=total_steps, precision=precision, name=name)


def learning_rate_at(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Learning rate of a step.

    Linear from `warmup_from` to 1 over `warmup_steps`; then with progress t in 0..1 over the rest, and f the
    `final_fraction`: constant 1; linear 1 + (f - 1) t; cosine f + (1 - f)(1 + cos(pi t)) / 2 (InstructGPT App. C:
    cosine to 10 %). The last step is made at t = 1.

    Args:
        config: peak and shape.
        step: steps done before this one, from 0.
        total_steps: of the whole schedule.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (config.warmup_from + (1 - config.warmup_from) * step / config.warmup_steps)
    t = min(1.0, (step - config.warmup_steps) / max(1, total_steps - 1 - config.warmup_steps))
    f = config.final_fraction
    match config.schedule:
        case "constant":
            factor = 1.0
        case "linear":
            factor = 1 + (f - 1) * t
        case "cosine":
            factor = f + (1 - f) * (1 + math.cos(math.pi * t)) / 2
    return config.learning_rate * factor


def gradient_norm(parameters: Iterator[nn.Parameter] | Sequence[nn.Parameter]) -> Tensor:
    """Global L2 norm of the gradients that are there, float32 scalar; 0 when none is."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@on_every_rank
def prepare_for_training(model: PreTrainedModel, *, dropout: float = 0.0, gradient_checkpointing: bool = False) -> None:
    """Puts a transformers model into training mode with exactly the dropout asked for.

    The model's own dropouts are all set to 0; `dropout` goes onto the output of each attention and MLP block, before it
    is added to the residual stream, which is where GPT-3's residual dropout acts. It acts in training mode only.

    Raises:
        Unsupported: dropout was asked for and the blocks of this architecture were not found.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            vars(module)["attention_dropout"] = 0.0  # a plain attribute, which typed modules do not admit to
    if dropout > 0:
        blocks = list(_residual_blocks(model))
        if not blocks:
            raise Unsupported(
                f"dropout is {dropout}, but {type(model).__name__} has no attention and MLP blocks; allowed: 0",
                field="dropout",
                value=dropout,
                limit=0,
            )
        for block in blocks:
            block.register_forward_hook(_dropout_hook(dropout))
    if gradient_checkpointing:
        enable_gradient_checkpointing(model)
    model.train()


@on_every_rank
def in_evaluation(model: PreTrainedModel) -> PreTrainedModel:
    """The model, without dropout."""
    return model.eval()


def token_micro_batches(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Cuts a batch into micro-batches whose padded size stays within a token budget.

    Sorted by length, longest first, so that padding is small; the cut depends on lengths and positions alone, never on
    arrival. A sequence longer than the budget gets a micro-batch of its own.

    Args:
        lengths: tokens of each sequence.
        most_tokens: bound on rows times longest row.

    Returns:
        Positions into `lengths`, each exactly once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for position in order:
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= most_tokens:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


@lru_cache(maxsize=8)
def shuffled(count: int, *, seed: int, epoch: int, name: str) -> tuple[int, ...]:
    """A permutation of range(count) that depends on its arguments alone, so a data position is just a step number."""
    words = np.frombuffer(name.encode().ljust(-(-len(name) // 4) * 4, b"\0"), dtype=np.uint32)
    generator = np.random.default_rng([seed, epoch, *words.tolist()])
    return tuple(generator.permutation(count).tolist())


@on_every_rank
def seed_step(seed: int, step: int) -> None:
    """Seeds torch's generators for one step, so that dropout depends on (seed, step) and not on what ran before.

    Ranks draw differently: each drops entries of other tokens.
    """
    words = np.random.SeedSequence([seed, step, *rank_seed()]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0] >> 1))


@contextmanager
def compute_environment(*, threads: int, deterministic: bool) -> Iterator[None]:
    """Sets torch's thread count (0: left as it is) and deterministic algorithms for the body, and puts them back."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if threads:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # torch refuses cuBLAS without it; read at its start
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def _optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """AdamW over every parameter, or Muon over the matrices of the blocks and AdamW over the rest."""
    matrices = _block_matrices(model) if config.muon_learning_rate is not None else []
    adamw = torch.optim.AdamW(
        _parameter_groups(model, config.weight_decay, without=matrices),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
    )
    if not matrices or config.muon_learning_rate is None:
        return [adamw]
    muon = torch.optim.Muon(matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay)
    return [adamw, muon]


def _block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Weights of the linear maps inside the layers; not embeddings, and not a head, which is no layer's."""
    layers = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    found = {id(p): p for stack in layers for p in stack.parameters() if p.ndim == 2}
    return list(found.values())


def _parameter_groups(
    model: nn.Module, weight_decay: float, *, without: Sequence[nn.Parameter]
) -> list[dict[str, object]]:
    """Decayed and not decayed parameters, in the model's order. Matrices outside embeddings are decayed."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    left = {id(p) for p in without}
    parameters = [p for p in model.parameters() if id(p) not in left]
    decayed = [p for p in parameters if p.ndim >= 2 and id(p) not in embeddings]
    chosen = {id(p) for p in decayed}
    rest = [p for p in parameters if id(p) not in chosen]
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _residual_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Attention and MLP modules of each layer, by the names that transformers' architectures give them."""
    for layer in model.modules():
        attention = next((getattr(layer, n) for n in ("self_attn", "attn", "attention") if hasattr(layer, n)), None)
        mlp = getattr(layer, "mlp", None)
        if isinstance(attention, nn.Module) and isinstance(mlp, nn.Module):
            yield attention
            yield mlp


def _dropout_hook(probability: float) -> Callable[[nn.Module, Any, Any], Any]:
    """A forward hook that drops entries of a block's output, the first item of a tuple, in training mode only."""

    def drop(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not module.training:
            return output
        if isinstance(output, Tensor):
            return F.dropout(output, probability)
        return (F.dropout(output[0], probability), *output[1:])

    return drop
