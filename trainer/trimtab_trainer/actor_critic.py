"""Policy and value model under PPO: what they say of a batch, and one optimizer step on a minibatch.

The value model is a network of its own, started from the reward model, offset included, with its own optimizer
(InstructGPT C.4). Both run without dropout. Losses are those of `losses`; nothing here talks to a service.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import TrainingDiverged
from trimtab_models.heads import completion_values
from trimtab_models.loading import named_parameter_tensors
from trimtab_models.logprobs import completion_logprobs
from trimtab_trainer.experience import Experience, MicroBatch, Minibatch
from trimtab_trainer.kl import AdaptiveKLController, ema_decay_at
from trimtab_trainer.language_modeling import Example, train_on
from trimtab_trainer.losses import policy_loss, value_loss
from trimtab_trainer.optimization import Learner, gradient_norm
from trimtab_trainer.ppo_config import PPOConfig

__all__ = ["ActorCritic", "UpdateFigures"]


@dataclass
class UpdateFigures:
    """Figures of one iteration's updates, summed over its minibatches; `means` divides them."""

    steps: int = 0
    tokens: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    token_sums: dict[str, float] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)

    def add(self, **figures: float) -> None:
        """Adds figures of one step, reported as means over steps."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def add_tokens(self, **figures: float) -> None:
        """Adds sums over tokens, reported as means over tokens."""
        for name, value in figures.items():
            self.token_sums[name] = self.token_sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Each figure's mean."""
        return {
            **{name: value / max(1, self.steps) for name, value in self.sums.items()},
            **{name: value / max(1, self.tokens) for name, value in self.token_sums.items()},
            **self.first,
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
    average: dict[str, Tensor] | None

    @torch.no_grad()
    def logprobs(
        self, minibatches: Iterable[Minibatch], shape: tuple[int, int], temperature: float
    ) -> Float[Tensor, "batch completion"]:
        """Log-probs of every completion token, computed in exactly the micro-batches given; float32, on the CPU."""
        found = torch.zeros(shape)
        for micro in _micro_batches(minibatches):
            with self.policy.autocast():
                rows, _ = _logprobs(self.policy, micro, temperature)
            found[micro.rows.cpu(), : rows.shape[1]] = rows.cpu()
        return found

    @torch.no_grad()
    def value_estimates(
        self, minibatches: Iterable[Minibatch], shape: tuple[int, int]
    ) -> Float[Tensor, "batch completion"]:
        """Values of the states before every completion token; float32, on the CPU."""
        found = torch.zeros(shape)
        for micro in _micro_batches(minibatches):
            rows = self._values(micro)
            found[micro.rows.cpu(), : rows.shape[1]] = rows.cpu()
        return found

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
        total = 0.0
        for micro in minibatch.micro_batches:
            with self.values.autocast():
                loss = value_loss(
                    self._values(micro),
                    experience.of(micro, "values"),
                    experience.of(micro, "returns"),
                    micro.mask,
                    token_count=minibatch.token_count,
                    clip_range=config.value_clip_range,
                )
            self.values.backward(loss)
            total += float(loss.detach())
        figures.add(value_loss=_bounded("value loss", total, config.loss_limit))
        figures.add(value_gradient_norm=self.values.update().gradient_norm)
        if not policy_moves:
            return 0.0
        kl = self._policy_gradient(minibatch, experience, config, figures)
        if ptx and config.ptx_coef > 0:
            self._ptx_gradient(ptx, config, figures, measure_norms=measure_norms)
        step = self.policy.update()
        figures.add(policy_gradient_norm=step.gradient_norm, learning_rate=step.learning_rate)
        self._move_average(config.ema_decay)
        return kl

    def _policy_gradient(
        self, minibatch: Minibatch, experience: Experience, config: PPOConfig, figures: UpdateFigures
    ) -> float:
        kl_sum = total = 0.0
        for micro in minibatch.micro_batches:
            with self.policy.autocast():
                logprobs, entropies = _logprobs(self.policy, micro, config.sampling.temperature, entropy=True)
                found = policy_loss(
                    logprobs,
                    experience.of(micro, "old_logprobs"),
                    experience.of(micro, "advantages"),
                    micro.mask,
                    token_count=minibatch.token_count,
                    clip_range=config.clip_range,
                    log_ratio_clamp=config.log_ratio_clamp,
                    weights=experience.of(micro, "importance_weights") if config.max_lag else None,
                )
            self.policy.backward(found.loss)
            total += float(found.loss.detach())
            figures.add_tokens(
                clip_fraction=found.clipped_tokens,
                clamped_fraction=found.clamped_tokens,
                update_kl=found.kl_sum,
                entropy=float(entropies.sum()) if entropies is not None else 0.0,
            )
            kl_sum += found.kl_sum
        figures.add(policy_loss=_bounded("policy loss", total, config.loss_limit))
        return kl_sum / minibatch.token_count

    def _ptx_gradient(
        self, ptx: Sequence[Example], config: PPOConfig, figures: UpdateFigures, *, measure_norms: bool
    ) -> None:
        parameters = list(self.policy.model.parameters())
        ppo_gradients: list[Tensor | None] = []
        if measure_norms:
            figures.first["ppo_gradient_norm"] = float(gradient_norm(parameters))
            ppo_gradients = [p.grad for p in parameters]
            for parameter in parameters:
                parameter.grad = None
        loss = train_on(self.policy, ptx, micro_batch_tokens=config.micro_batch_tokens, scale=config.ptx_coef)
        figures.add(ptx_loss=_bounded("pretraining loss", loss, config.loss_limit))
        if measure_norms:
            figures.first["ptx_gradient_norm"] = float(gradient_norm(parameters))
            for parameter, gradient in zip(parameters, ppo_gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)

    def _values(self, micro: MicroBatch) -> Float[Tensor, "micro completion"]:
        with self.values.autocast():
            return completion_values(self.values.model, micro.input_ids, micro.prompt_lengths, micro.completion_lengths)

    @torch.no_grad()
    def _move_average(self, decay: float) -> None:
        """EMA of the weights after a step (InstructGPT C.4), with a warm-up of its decay."""
        if self.average is None:
            return
        weight = 1 - ema_decay_at(self.policy.step - 1, decay)
        for name, tensor in named_parameter_tensors(self.policy.model).items():
            self.average[name].lerp_(tensor.to(self.average[name].dtype), weight)


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
    return completion_logprobs(
        learner.model,
        micro.input_ids,
        micro.prompt_lengths,
        micro.completion_lengths,
        temperature=temperature,
        entropy=entropy,
    )


def _micro_batches(minibatches: Iterable[Minibatch]) -> Iterable[MicroBatch]:
    return (micro for minibatch in minibatches for micro in minibatch.micro_batches)
