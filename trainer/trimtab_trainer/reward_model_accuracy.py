"""What reward models are worth on rankings that were held out: accuracy, calibration, agreement between members.

Every accuracy comes with a bootstrap interval over prompts, for each labeler group, and beside the rule "the longer
answer wins", which a reward model must beat. An ensemble scores by the mean of its members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from trimtab_models.heads import hidden_states, scores_of
from trimtab_models.packing import pack_shared_prompts
from trimtab_trainer.context import StageContext
from trimtab_trainer.data.splits import in_groups
from trimtab_trainer.evaluation import RankedAnswers, calibration, labeler_agreement, ranking_accuracy
from trimtab_trainer.examples import RankingExample
from trimtab_trainer.optimization import token_micro_batches
from trimtab_trainer.stage_configs import RewardModelConfig

__all__ = ["held_out_scores", "measure", "score_answers"]


def score_answers(model: PreTrainedModel, examples: Sequence[RankingExample]) -> list[Float[Tensor, " answers"]]:
    """Rewards of every answer, float32, the shared prompt read once; differentiable.

    Equal to scoring each prompt + answer on its own: an answer attends to the prompt and to itself, and its positions
    go on from the prompt's end.

    Args:
        model: a sequence classifier with one label.
        examples: one packed row each; rows are padded on the right.

    Returns:
        For each example the rewards of its answers, read at their last tokens.
    """
    device = next(model.parameters()).device
    rows = pack_shared_prompts([(example.prompt, example.answers) for example in examples])
    hidden = hidden_states(
        model,
        rows.input_ids.to(device),
        position_ids=rows.position_ids.to(device),
        attention_mask=rows.attention_mask.to(device),
    )
    rewards = scores_of(model, hidden[rows.last_row.to(device), rows.last_column.to(device)])
    return list(rewards.split(rows.counts))


def measure(
    context: StageContext,
    config: RewardModelConfig,
    members: Sequence[PreTrainedModel],
    held_out: Sequence[RankingExample],
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures of reward models on held-out rankings; none where nothing was held out.

    Returns:
        Metrics: `accuracy` of the first member on the groups it was trained on, with its interval; `longer_wins`;
        `labeler_agreement`, its yardstick, where several labelers ranked the same answers; `calibration_error`; of
        several members also `accuracy_member_N`, `accuracy_ensemble` and `member_spread`, the mean over answers of the
        standard deviation of the members' rewards.
        Details: the same by source, and by source and labeler group (those that were not trained on too), and the bins
        of the calibration.
    """
    if not held_out:
        return {}, {}
    by_member = [held_out_scores(config, model, held_out) for model in members]
    lengths = [[float(len(answer)) for answer in example.answers] for example in held_out]
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {}
    named = {"accuracy": by_member[0], "longer_wins": lengths}
    if len(members) > 1:
        named |= {f"accuracy_member_{number}": scores for number, scores in enumerate(by_member, 1)}
        stacked = [np.stack(of_example) for of_example in zip(*by_member, strict=True)]
        named["accuracy_ensemble"] = [scores.mean(0).tolist() for scores in stacked]
        metrics["member_spread"] = float(np.concatenate([scores.std(0) for scores in stacked]).mean())
    said = [_of_trained_groups(config, example) for example in held_out]
    agreement, decisions = labeler_agreement(said)
    if decisions:
        metrics |= {"labeler_agreement": agreement, "labeler_agreement_pairs": float(decisions)}
    for name, scores in named.items():
        ranked, of_trained_groups = _ranked(config, held_out, scores)
        seed = context.seed(config.seed)
        found = ranking_accuracy(of_trained_groups, samples=config.bootstrap_samples, seed=seed)
        if found:
            metrics |= found[""].metrics(name)
            details[name] = asdict(found[""])
        details[f"{name}_by_source"] = {source: asdict(accuracy) for source, accuracy in found.items() if source}
        by_group = ranking_accuracy(ranked, samples=config.bootstrap_samples, seed=seed)
        details[f"{name}_by_group"] = {group: asdict(accuracy) for group, accuracy in by_group.items() if group}
        if name == "accuracy" and (calibrated := calibration(of_trained_groups)) is not None:
            metrics["calibration_error"] = calibrated.error
            details["calibration"] = [asdict(one) for one in calibrated.bins]
    return metrics, details


@torch.no_grad()
def held_out_scores(
    config: RewardModelConfig, model: PreTrainedModel, examples: Sequence[RankingExample]
) -> list[list[float]]:
    """Rewards of the answers of each example, computed as in training."""
    scores: list[list[float]] = [[] for _ in examples]
    for positions in token_micro_batches([example.tokens for example in examples], config.micro_batch_tokens):
        for position, rewards in zip(positions, score_answers(model, [examples[p] for p in positions]), strict=True):
            scores[position] = rewards.tolist()
    return scores


def _ranked(
    config: RewardModelConfig, held_out: Sequence[RankingExample], scores: Sequence[Sequence[float]]
) -> tuple[list[RankedAnswers], list[RankedAnswers]]:
    """Every labeler's ranking beside the scores, by source and group; those of the trained groups, by source."""
    ranked, of_trained_groups = [], []
    for example, score in zip(held_out, scores, strict=True):
        for group, ranks in example.rankings:
            label = " ".join(filter(None, (example.source, group)))
            ranked.append(RankedAnswers(example.prompt_id, label, ranks, score))
            if in_groups(example.source, group, config.groups):
                of_trained_groups.append(RankedAnswers(example.prompt_id, example.source, ranks, score))
    return ranked, of_trained_groups


def _of_trained_groups(config: RewardModelConfig, example: RankingExample) -> list[tuple[int, ...]]:
    """What each labeler of the groups that were trained on said of an example."""
    return [ranks for group, ranks in example.rankings if in_groups(example.source, group, config.groups)]
