"""Policy and value model under PPO: what they say of a batch, and one optimizer step on a minibatch.

The value model is a network of its own, started from the reward model, offset included, with its own optimizer
(InstructGPT C.4). Both run without dropout. Losses are those of `losses`; nothing here talks to a service.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import TrainingDiverged
from trimtab_models.heads import completion_values
from trimtab_models.logprobs import completion_logprobs
from trimtab_trainer.distributed import added, apply, even_rounds, joined, on_every_rank, own_items
from trimtab_trainer.experience import Experience, MicroBatch, Minibatch, Targets
from trimtab_trainer.kl import AdaptiveKLController, ema_decay_at
from trimtab_trainer.language_modeling import Example, read_tokens, train_on
from trimtab_trainer.losses import policy_loss, value_loss
from trimtab_trainer.optimization import Learner
from trimtab_trainer.ppo_config import PPOConfig
from trimtab_trainer.running_mean import RunningMean

__all__ = ["ActorCritic", "UpdateFigures"]

Rows = tuple[MicroBatch, Targets]


@dataclass
class UpdateFigures:
    """Figures of one iteration's updates, summed over its minibatches; `means` divides all but counts."""

    steps: int = 0
    tokens: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    token_sums: dict[str, float] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)

    def add(self, **figures: float) -> None:
        """Adds figures of one step, reported as means over steps."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def add_tokens(self, **figures: float) -> None:
        """Adds sums over tokens, reported as means over tokens."""
        for name, value in figures.items():
            self.token_sums[name] = self.token_sums.get(name, 0.0) + value

    def count(self, **figures: float) -> None:
        """Adds counts of one step, reported as sums."""
        for name, value in figures.items():
            self.totals[name] = self.totals.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Each figure's mean, and each count's sum."""
        return {
            **{name: value / max(1, self.steps) for name, value in self.sums.items()},
            **{name: value / max(1, self.tokens) for name, value in self.token_sums.items()},
            **self.first,
            **self.totals,
        }


@dataclass
class ActorCritic:
    """The two models under training with what steers them.

    Attributes:
        policy: the actor.
        values: the critic.
        kl: the KL coefficient and its controller.
        average: running mean of the policy's weights, the exported model; None when it is off.
    """

    policy: Learner
    values: Learner
    kl: AdaptiveKLController
    average: RunningMean | None

    def logprobs(
        self, minibatches: Iterable[Minibatch], shape: tuple[int, int], temperature: float
    ) -> Float[Tensor, "batch completion"]:
        """Log-probs of every completion token, computed in exactly the micro-batches given; float32, on the CPU."""
        return _all_logprobs(self.policy, _micro_batches(minibatches), shape, temperature)

    def value_estimates(
        self, minibatches: Iterable[Minibatch], shape: tuple[int, int]
    ) -> Float[Tensor, "batch completion"]:
        """Values of the states before every completion token; float32, on the CPU."""
        return _all_values(self.values, _micro_batches(minibatches), shape)

    def update(
        self,
        minibatch: Minibatch,
        experience: Experience,
        ptx: Sequence[Example],
        config: PPOConfig,
        figures: UpdateFigures,
        *,
        policy_moves: bool,
        measure_norms: bool,
    ) -> float:
        """One optimizer step of each model on a minibatch (InstructGPT 3.5, equation 2).

        The policy's gradient is that of the PPO loss (mean over completion tokens) plus ptx_coef times that of the
        language-model loss on pretraining passages (mean over their tokens), in one buffer, clipped after the sum.

        Args:
            minibatch: what to update on.
            experience: the batch it is part of.
            ptx: pretraining passages of this step; empty for plain PPO.
            config: of the stage.
            figures: gets the figures of the step.
            policy_moves: False trains the values only (critic warm-up).
            measure_norms: also measures the norm of each of the two gradients, which holds one more copy of them.

        Returns:
            KL of the policy from the one before the update, as the minibatch met it (k3, nats of a token); 0 where the
            policy does not move.

        Raises:
            TrainingDiverged: a loss or a gradient is not finite, or a loss is beyond `loss_limit`.
        """
        figures.steps += 1
        figures.tokens += minibatch.token_count
        rows = [(micro, experience.targets(micro)) for micro in minibatch.micro_batches]
        read = float(sum(int(micro.lengths.sum()) for micro in minibatch.micro_batches))
        figures.count(value_tokens_trained=read, tokens_trained=read if policy_moves else 0.0)
        total = _value_gradient(self.values, rows, minibatch.token_count, config)
        figures.add(value_loss=_bounded("value loss", total, config.loss_limit))
        figures.add(value_gradient_norm=self.values.update().gradient_norm)
        if not policy_moves:
            return 0.0
        total, found = _policy_gradient(self.policy, rows, minibatch.token_count, config)
        for of_micro_batch in found:
            figures.add_tokens(**of_micro_batch)
        figures.add(policy_loss=_bounded("policy loss", total, config.loss_limit))
        if ptx and config.ptx_coef > 0:
            self._ptx_gradient(ptx, config, figures, measure_norms=measure_norms)
        step = self.policy.update()
        figures.add(policy_gradient_norm=step.gradient_norm, learning_rate=step.learning_rate)
        if self.average is not None:
            self.average.move(1 - ema_decay_at(self.policy.step - 1, config.ema_decay))
        return sum(of_micro_batch["update_kl"] for of_micro_batch in found) / minibatch.token_count

    def _ptx_gradient(
        self, ptx: Sequence[Example], config: PPOConfig, figures: UpdateFigures, *, measure_norms: bool
    ) -> None:
        if measure_norms:
            figures.first["ppo_gradient_norm"] = self.policy.put_gradient_aside()
        loss = train_on(self.policy, ptx, micro_batch_tokens=config.micro_batch_tokens, scale=config.ptx_coef)
        figures.add(ptx_loss=_bounded("pretraining loss", loss, config.loss_limit))
        figures.count(ptx_tokens_trained=float(read_tokens(ptx)), ptx_sequences_trained=float(len(ptx)))
        if measure_norms:
            figures.first["ptx_gradient_norm"] = self.policy.add_gradient_put_aside()


@on_every_rank
def _value_gradient(learner: Learner, rows: Sequence[Rows], token_count: int, config: PPOConfig) -> float:
    """Adds the gradient of the value loss of a minibatch; returns the loss."""
    total = 0.0
    for micro, targets, weight in _own_rounds(rows, learner.device):
        with learner.autocast():
            loss = value_loss(
                _values(learner, micro),
                targets.values,
                targets.returns,
                micro.mask,
                token_count=token_count,
                clip_range=config.value_clip_range,
            )
        total += learner.backward(loss * weight)
    return total


@on_every_rank
def _policy_gradient(
    learner: Learner, rows: Sequence[Rows], token_count: int, config: PPOConfig
) -> tuple[float, list[dict[str, float]]]:
    """Adds the gradient of the policy loss of a minibatch; returns the loss, and sums over micro-batches' tokens."""
    total = 0.0
    figures = []
    for micro, targets, weight in _own_rounds(rows, learner.device):
        with learner.autocast():
            logprobs, entropies = _logprobs(learner, micro, config.sampling.temperature, entropy=True)
            found = policy_loss(
                logprobs,
                targets.old_logprobs,
                targets.advantages,
                micro.mask,
                token_count=token_count,
                clip_range=config.clip_range,
                log_ratio_clamp=config.log_ratio_clamp,
                weights=targets.importance_weights if config.max_lag else None,
            )
        total += learner.backward(found.loss * weight)
        if weight:
            figures.append(
                {
                    "clip_fraction": float(found.clipped_tokens),
                    "clamped_fraction": float(found.clamped_tokens),
                    "update_kl": found.kl_sum,
                    "entropy": float(entropies.sum()) if entropies is not None else 0.0,
                }
            )
    return total, joined(figures)


@on_every_rank
@torch.no_grad()
def _all_logprobs(
    learner: Learner, micro_batches: Sequence[MicroBatch], shape: tuple[int, int], temperature: float
) -> Float[Tensor, "batch completion"]:
    found = torch.zeros(shape)
    for micro, weight in _rounds(micro_batches):
        with learner.autocast():
            rows, _ = _logprobs(learner, micro.to(learner.device), temperature)
        if weight:
            found[micro.rows, : rows.shape[1]] = rows.cpu()
    return added(found)


@on_every_rank
@torch.no_grad()
def _all_values(
    learner: Learner, micro_batches: Sequence[MicroBatch], shape: tuple[int, int]
) -> Float[Tensor, "batch completion"]:
    found = torch.zeros(shape)
    for micro, weight in _rounds(micro_batches):
        rows = _values(learner, micro.to(learner.device))
        if weight:
            found[micro.rows, : rows.shape[1]] = rows.cpu()
    return added(found)


def _bounded(name: str, loss: float, limit: float | None) -> float:
    if limit is not None and abs(loss) > limit:
        raise TrainingDiverged(
            f"{name} of a minibatch is {loss:.3g}; allowed by ppo.loss_limit: at most {limit:g} in size",
            field="ppo.loss_limit",
            value=loss,
            limit=limit,
        )
    return loss


def _logprobs(
    learner: Learner, micro: MicroBatch, temperature: float, *, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    return apply(
        learner.model,
        completion_logprobs,
        micro.input_ids,
        micro.prompt_lengths,
        micro.completion_lengths,
        temperature=temperature,
        entropy=entropy,
    )


def _values(learner: Learner, micro: MicroBatch) -> Float[Tensor, "micro completion"]:
    with learner.autocast():
        return apply(learner.model, completion_values, micro.input_ids, micro.prompt_lengths, micro.completion_lengths)


def _micro_batches(minibatches: Iterable[Minibatch]) -> list[MicroBatch]:
    return [micro for minibatch in minibatches for micro in minibatch.micro_batches]


def _rounds(micro_batches: Sequence[MicroBatch]) -> Iterator[tuple[MicroBatch, float]]:
    """This rank's micro-batches, then the smallest of all with weight 0 as long as another rank has work."""
    own = own_items(micro_batches, lambda micro: micro.rank)
    return even_rounds(own, filler=min(micro_batches, key=lambda micro: micro.input_ids.numel()))


def _own_rounds(rows: Sequence[Rows], device: torch.device) -> Iterator[tuple[MicroBatch, Targets, float]]:
    """As `_rounds`, with their targets, on the device."""
    targets = {id(micro): of_micro for micro, of_micro in rows}
    for micro, weight in _rounds([micro for micro, _ in rows]):
        yield micro.to(device), targets[id(micro)].to(device), weight
