"""What reward models are worth on rankings that were held out: accuracy, calibration, agreement between members.

Every accuracy comes with a bootstrap interval over prompts, for each labeler group, and beside the rule "the longer
answer wins", which a reward model must beat. An ensemble scores by the mean of its members.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from trimtab_trainer.distributed import apply, even_rounds, joined, on_every_rank, own_share
from trimtab_trainer.evaluation import RankedAnswers, calibration, labeler_agreement, ranking_accuracy
from trimtab_trainer.examples import RankingExample, said_by
from trimtab_trainer.optimization import token_micro_batches
from trimtab_trainer.stage_configs import RewardModelConfig

__all__ = ["held_out_scores", "measure", "measure_scores", "ranking_micro_batches", "score_answers"]


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
    rewards = apply(
        model,
        _scores_at,
        rows.input_ids.to(device),
        rows.position_ids.to(device),
        rows.attention_mask.to(device),
        (rows.last_row.to(device), rows.last_column.to(device)),
    )
    return list(rewards.split(rows.counts))


def _scores_at(
    model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, at: tuple[Tensor, Tensor]
) -> Float[Tensor, " answers"]:
    return scores_of(
        model, hidden_states(model, input_ids, position_ids=position_ids, attention_mask=attention_mask)[at]
    )


def measure(
    context: StageContext,
    config: RewardModelConfig,
    members: Sequence[PreTrainedModel],
    held_out: Sequence[RankingExample],
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures of reward models on held-out rankings; none where nothing was held out.

    Returns:
        As `measure_scores`, of the first member under `accuracy`; of several members also `accuracy_member_N`,
        `accuracy_ensemble` and `member_spread`, the mean over answers of the standard deviation of the members'
        rewards.
    """
    if not held_out:
        return {}, {}
    by_member = [held_out_scores(config, model, held_out) for model in members]
    named = {"accuracy": by_member[0]}
    if len(members) == 1:
        return measure_scores(context, config, held_out, named)
    named |= {f"accuracy_member_{number}": scores for number, scores in enumerate(by_member, 1)}
    stacked = [np.stack(of_example) for of_example in zip(*by_member, strict=True)]
    named["accuracy_ensemble"] = [scores.mean(0).tolist() for scores in stacked]
    metrics, details = measure_scores(context, config, held_out, named)
    return {**metrics, "member_spread": float(np.concatenate([scores.std(0) for scores in stacked]).mean())}, details


def measure_scores(
    context: StageContext,
    config: RewardModelConfig,
    held_out: Sequence[RankingExample],
    scores: Mapping[str, Sequence[Sequence[float]]],
) -> tuple[dict[str, float], dict[str, Any]]:
    """Agreement of scores with held-out rankings; none where nothing was held out.

    Args:
        context: of the stage.
        config: the groups trained on, and the bootstrap.
        held_out: rankings.
        scores: under each name, of every answer of every ranking, higher is better.

    Returns:
        Metrics: agreement under each name on the groups that were trained on, with its interval; `longer_wins`, that of
        the answers' lengths; `labeler_agreement`, the yardstick, where several labelers ranked the same answers;
        `calibration_error` of the scores named `accuracy`.
        Details: the same by source, and by source and labeler group (those that were not trained on too), and the bins
        of the calibration with their intervals.
    """
    if not held_out:
        return {}, {}
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {}
    lengths = [[float(len(answer)) for answer in example.answers] for example in held_out]
    said = (said_by(example, config.groups_trained_on).rankings for example in held_out)
    agreement, decisions = labeler_agreement([ranks for _, ranks in rankings] for rankings in said)
    if decisions:
        metrics |= {"labeler_agreement": agreement, "labeler_agreement_pairs": float(decisions)}
    for name, of_name in {**scores, "longer_wins": lengths}.items():
        ranked, of_trained_groups = _ranked(config, held_out, of_name)
        seed = context.seed(config.seed)
        found = ranking_accuracy(of_trained_groups, samples=config.bootstrap_samples, seed=seed)
        if found:
            metrics |= found[""].metrics(name)
            details[name] = asdict(found[""])
        details[f"{name}_by_source"] = {source: asdict(accuracy) for source, accuracy in found.items() if source}
        by_group = ranking_accuracy(ranked, samples=config.bootstrap_samples, seed=seed)
        details[f"{name}_by_group"] = {group: asdict(accuracy) for group, accuracy in by_group.items() if group}
        if name == "accuracy":
            calibrated = calibration(of_trained_groups, samples=config.bootstrap_samples, seed=seed)
            if calibrated is not None:
                metrics["calibration_error"] = calibrated.error
                details["calibration"] = [asdict(one) for one in calibrated.bins]
    return metrics, details


@on_every_rank
@torch.no_grad()
def held_out_scores(
    config: RewardModelConfig, model: PreTrainedModel, examples: Sequence[RankingExample]
) -> list[list[float]]:
    """Rewards of the answers of each example, computed as in training."""
    found: list[tuple[int, list[float]]] = []
    for positions, weight in ranking_micro_batches(examples, config.micro_batch_tokens):
        rewards = score_answers(model, [examples[position] for position in positions])
        if weight:
            found += [(position, scores.tolist()) for position, scores in zip(positions, rewards, strict=True)]
    by_position = dict(joined(found))
    return [by_position[position] for position in range(len(examples))]


def ranking_micro_batches(
    examples: Sequence[RankingExample], micro_batch_tokens: int
) -> Iterator[tuple[list[int], float]]:
    """This rank's share of a batch as positions of micro-batches, each with its weight (`even_rounds`)."""
    lengths = [example.tokens for example in examples]
    own = own_share(lengths)
    cuts = token_micro_batches([lengths[position] for position in own], micro_batch_tokens)
    shortest = min(range(len(lengths)), key=lengths.__getitem__, default=0)
    return even_rounds([[own[index] for index in cut] for cut in cuts], filler=[shortest])


def _ranked(
    config: RewardModelConfig, held_out: Sequence[RankingExample], scores: Sequence[Sequence[float]]
) -> tuple[list[RankedAnswers], list[RankedAnswers]]:
    """Every labeler's ranking beside the scores, by source and group; those of the trained groups, by source."""
    ranked, of_trained_groups = [], []
    for example, score in zip(held_out, scores, strict=True):
        for group, ranks in example.rankings:
            label = " ".join(filter(None, (example.source, group)))
            ranked.append(RankedAnswers(example.prompt_id, label, ranks, score))
            if in_groups(example.source, group, config.groups_trained_on):
                of_trained_groups.append(RankedAnswers(example.prompt_id, example.source, ranks, score))
    return ranked, of_trained_groups
