"""The pairs of DPO: log-probs of all answers of a prompt in one row, the loss over its decided pairs, their figures.

A prompt with K ranked answers is one batch element, as in `reward_model`: the prompt is read once, each answer sees it
and itself, and all decided pairs of all of its labelers enter the loss together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from trimtab_models.heads import hidden_states
from trimtab_models.logprobs import token_logprobs
from trimtab_models.packing import pack_shared_prompts
from trimtab_trainer.distributed import apply, joined, on_every_rank, sums
from trimtab_trainer.dpo_config import DPOConfig
from trimtab_trainer.examples import RankingExample
from trimtab_trainer.losses import dpo_loss
from trimtab_trainer.optimization import Learner
from trimtab_trainer.reward_model import decided_pairs
from trimtab_trainer.reward_model_accuracy import ranking_micro_batches

__all__ = ["ReferencedExample", "answer_logprobs", "logprobs_of", "pair_figures", "train_on_pairs"]


@dataclass(frozen=True)
class ReferencedExample:
    """One prompt with its ranked answers and what the reference says of them.

    Attributes:
        ranking: with a decided pair.
        ref_logprobs: float64 [answers]: log-prob of each answer given the prompt, summed over its tokens, in nats.
    """

    ranking: RankingExample
    ref_logprobs: npt.NDArray[np.float64]

    @property
    def tokens(self) -> int:
        """Tokens of the packed row."""
        return self.ranking.tokens


def answer_logprobs(model: PreTrainedModel, examples: Sequence[RankingExample]) -> list[Float[Tensor, " answers"]]:
    """Log-probs of every answer given its prompt, summed over the answer's tokens, EOS included; differentiable.

    Equal to those of prompt + answer alone (see `pack_shared_prompts`): the first token of each answer is predicted at
    the prompt's end, which all answers of a row share.

    Args:
        model: a policy.
        examples: one packed row each; rows are padded on the right.

    Returns:
        For each example the log-probs of its answers, float32, in nats.
    """
    device = next(model.parameters()).device
    rows = pack_shared_prompts([(example.prompt, example.answers) for example in examples])
    row, predicting, column, answer = (index.to(device) for index in _targets(examples))
    found = apply(
        model,
        _logprobs_at,
        rows.input_ids.to(device),
        rows.position_ids.to(device),
        rows.attention_mask.to(device),
        (row, predicting, column),
    )
    of_answers = found.new_zeros(sum(rows.counts)).index_add(0, answer, found)
    return list(of_answers.split(rows.counts))


def _logprobs_at(
    model: PreTrainedModel,
    input_ids: Tensor,
    position_ids: Tensor,
    attention_mask: Tensor,
    at: tuple[Tensor, Tensor, Tensor],
) -> Float[Tensor, " tokens"]:
    """Log-probs of tokens at (row, column that predicts, column)."""
    row, predicting, column = at
    hidden = hidden_states(model, input_ids, position_ids=position_ids, attention_mask=attention_mask)
    return token_logprobs(model, hidden[row, predicting], input_ids[row, column]).logprobs


@on_every_rank
def train_on_pairs(learner: Learner, examples: Sequence[ReferencedExample], config: DPOConfig) -> dict[str, float]:
    """Adds the gradient of the mean loss over a batch of prompts; the caller makes the update.

    Returns:
        The figures of `pair_figures`, of the policy before the update.

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    figures = _Figures()
    for positions, weight in ranking_micro_batches([one.ranking for one in examples], config.micro_batch_tokens):
        micro = [examples[position] for position in positions]
        with learner.autocast():
            logprobs = answer_logprobs(learner.model, [example.ranking for example in micro])
        loss = figures.add(micro, logprobs, config, weight=weight)
        learner.backward(loss / len(examples))
    return figures.means()


@torch.no_grad()
def pair_figures(
    examples: Sequence[ReferencedExample], logprobs: Sequence[Tensor], config: DPOConfig
) -> Mapping[str, float]:
    """What a policy does with the decided pairs of some prompts.

    Args:
        examples: at least one with a decided pair.
        logprobs: of the policy, as of `answer_logprobs`.
        config: the loss and its beta.

    Returns:
        `loss`, a mean over prompts; over pairs `accuracy`, the share whose better answer has the higher implicit reward
        beta * (log pi - log pi_ref) (an equal one counts one half), the mean `reward_margin`, `better_reward` and
        `worse_reward`, and the mean log-probs `better_logprob` and `worse_logprob`, in nats; `pairs`, how many.
    """
    figures = _Figures()
    figures.add(examples, logprobs, config, weight=1.0)
    return figures.means()


@on_every_rank
@torch.no_grad()
def logprobs_of(model: PreTrainedModel, examples: Sequence[RankingExample], *, micro_batch_tokens: int) -> list[Tensor]:
    """`answer_logprobs` of any number of examples, without gradient, on the CPU."""
    found: list[tuple[int, Tensor]] = []
    for positions, weight in ranking_micro_batches(examples, micro_batch_tokens):
        logprobs = answer_logprobs(model, [examples[position] for position in positions])
        if weight:
            found += [(position, one.cpu()) for position, one in zip(positions, logprobs, strict=True)]
    by_position = dict(joined(found))
    return [by_position[position] for position in range(len(examples))]


class _Figures:
    """Sums over the prompts and pairs seen so far by this rank."""

    def __init__(self) -> None:
        self._prompts = 0.0
        self._loss = 0.0
        self._pairs = 0.0
        self._sums: dict[str, float] = {}

    def add(
        self, examples: Sequence[ReferencedExample], logprobs: Sequence[Tensor], config: DPOConfig, *, weight: float
    ) -> Tensor:
        """Takes some prompts; returns the differentiable sum of their losses, times the weight as all else."""
        losses = []
        for example, of_policy in zip(examples, logprobs, strict=True):
            reference = torch.as_tensor(example.ref_logprobs, dtype=torch.float32, device=of_policy.device)
            better, worse = (index.to(of_policy.device) for index in decided_pairs(example.ranking))
            log_ratios = of_policy - reference
            losses.append(
                dpo_loss(
                    log_ratios,
                    better,
                    worse,
                    beta=config.beta,
                    kind=config.loss,
                    label_smoothing=config.label_smoothing,
                )
            )
            self._add_pairs(config.beta * log_ratios.detach(), of_policy.detach(), better, worse, weight)
        loss = torch.stack(losses).sum() * weight
        self._prompts += len(examples) * weight
        self._loss += float(loss.detach())
        return loss

    def _add_pairs(self, rewards: Tensor, logprobs: Tensor, better: Tensor, worse: Tensor, weight: float) -> None:
        margins = rewards[better] - rewards[worse]
        of_pairs = {
            "accuracy": (margins > 0) + 0.5 * (margins == 0),
            "reward_margin": margins,
            "better_reward": rewards[better],
            "worse_reward": rewards[worse],
            "better_logprob": logprobs[better],
            "worse_logprob": logprobs[worse],
        }
        self._pairs += len(better) * weight
        for name, values in of_pairs.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(values.sum()) * weight

    def means(self) -> dict[str, float]:
        """The loss as a mean over prompts, the rest over pairs, of all ranks at the call."""
        loss, prompts, pairs, *totals = sums(self._loss, self._prompts, self._pairs, *self._sums.values())
        of_pairs = {name: total / pairs for name, total in zip(self._sums, totals, strict=True)}
        return {"loss": loss / prompts, **of_pairs, "pairs": pairs}


def _targets(examples: Sequence[RankingExample]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the answers' tokens are in packed rows: int64 [tokens] row, column that predicts, column, answer.

    Answers are numbered over all examples.
    """
    rows, predicting, columns, answers = [], [], [], []
    number = 0
    for row, example in enumerate(examples):
        start = len(example.prompt)
        for answer in example.answers:
            of_answer = torch.arange(start, start + len(answer))
            columns.append(of_answer)
            predicting.append(torch.cat([torch.tensor([len(example.prompt) - 1]), of_answer[:-1]]))
            rows.append(torch.full_like(of_answer, row))
            answers.append(torch.full_like(of_answer, number))
            start += len(answer)
            number += 1
    return torch.cat(rows), torch.cat(predicting), torch.cat(columns), torch.cat(answers)
