"""How well a reward model predicts labelers whom it never saw: cross-validation over groups of labelers.

The known labelers of the groups trained on are split into `folds` parts; for each part a reward model is trained on
the labels of the others and measured, on prompts that were held out, on both. Nothing else of the run uses these
models. Source: InstructGPT 4.1 and appendix E.2: five groups, 72.4 +- 0.4 % on training labelers, 69.6 +- 0.9 % on
those held out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trimtab.errors import DataError
from trimtab_trainer.checkpoint import write_file_atomically
from trimtab_trainer.config import RewardModelConfig
from trimtab_trainer.context import StageContext, StageResult
from trimtab_trainer.data import Ranking
from trimtab_trainer.data.splits import hold_out_labelers, labeler_folds, split_by_prompt
from trimtab_trainer.evaluation import RankedAnswers, ranking_accuracy
from trimtab_trainer.examples import RankingExample, first_of, ranking_examples
from trimtab_trainer.reward_model import Course, RewardModelSetup, learnt, read_sources, train_member
from trimtab_trainer.reward_model_accuracy import held_out_scores

__all__ = ["train"]


def train(context: StageContext, config: RewardModelConfig) -> StageResult:
    """Runs the stage: see the module.

    Raises:
        DataError: fewer known labelers than folds, or a fold without a label that can be measured.
    """
    setup = RewardModelSetup.of(context, config)
    seed = context.seed(config.seed)
    path = context.spec.path(config.rankings)
    rows = learnt(context, config, path, read_sources(context, config, path))
    folds = labeler_folds(rows, config.folds, seed=seed)
    train_rows, held_out_rows = split_by_prompt(rows, config.held_out_fraction, seed=seed)

    def examples(rows: Sequence[Ranking], limit: int | None, name: str) -> list[RankingExample]:
        decided = [one for one in ranking_examples(path, rows, setup.reading) if one.decided]
        if not decided:
            raise DataError(
                f"{path}: the {len(rows)} rankings of one side of a fold have no decided pair; fewer folds or a larger "
                "held_out_fraction gives each side some",
                field="reward_model.folds",
                value=config.folds,
            )
        return first_of(decided, limit, seed=seed, name=name)

    seen, unseen = [], []
    for labelers in folds:
        here = hold_out_labelers(train_rows, _present(labelers, train_rows))[0]
        seen.append(examples(here, config.limit, "reward_model/limit"))
        theirs = hold_out_labelers(held_out_rows, _present(labelers, held_out_rows))
        unseen.append([examples(side, config.limit_held_out, "reward_model/limit_held_out") for side in theirs])
    course = Course.of(context, config, seen)
    for number in range(len(folds)):
        if course.is_over(number):
            continue
        model = train_member(context, config, setup, course, number)
        accuracies = [_accuracy(held_out_scores(config, model, side), side) for side in unseen[number]]
        write_file_atomically(_fold_file(context, number), json.dumps(accuracies))
    measured = np.array([json.loads(_fold_file(context, number).read_text()) for number in range(len(folds))])
    means, errors = measured.mean(0), measured.std(0, ddof=1) / np.sqrt(len(folds))
    metrics = {
        "accuracy_training_labelers": float(means[0]),
        "accuracy_training_labelers_error": float(errors[0]),
        "accuracy_held_out_labelers": float(means[1]),
        "accuracy_held_out_labelers_error": float(errors[1]),
        "folds": float(len(folds)),
    }
    details = {"folds": [{"labelers": sorted(group)} for group in folds], "accuracies": measured.tolist()}
    return StageResult(metrics=metrics, details=details)


def _present(labelers: frozenset[str], rows: Sequence[Ranking]) -> list[str]:
    """Those of the labelers who labelled one of the rows."""
    there = sorted(labelers & {one.labeler for row in rows for one in row.labelings})
    if not there:
        raise DataError(
            f"labelers: none of {', '.join(sorted(labelers))} labelled any of the {len(rows)} rankings of one side; "
            "fewer folds or a larger held_out_fraction gives each side some",
            field="reward_model.folds",
            value=len(labelers),
        )
    return there


def _accuracy(scores: Sequence[Sequence[float]], examples: Sequence[RankingExample]) -> float:
    ranked = [
        RankedAnswers(example.prompt_id, group, ranks, score)
        for example, score in zip(examples, scores, strict=True)
        for group, ranks in example.rankings
    ]
    return ranking_accuracy(ranked, samples=100, seed=0, by_group=False)[""].value


def _fold_file(context: StageContext, number: int) -> Path:
    folder = context.spec.directory / "folds"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"fold-{number + 1}.json"
