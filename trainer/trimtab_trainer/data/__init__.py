"""Datasets: demonstrations, rankings, prompts and pretraining text, every row checked before any model sees it."""

from trimtab_trainer.data.readers import read_demonstrations, read_pretraining, read_prompts, read_rankings
from trimtab_trainer.data.records import Demonstration, Labeling, Passage, PromptRow, Ranking

__all__ = [
    "Demonstration",
    "Labeling",
    "Passage",
    "PromptRow",
    "Ranking",
    "read_demonstrations",
    "read_pretraining",
    "read_prompts",
    "read_rankings",
]
