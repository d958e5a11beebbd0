"""Datasets: demonstrations, rankings, prompts and pretraining text, every row checked before any model sees it.

`records` is a row of each kind and the forms it is read from, `readers` the files, `splits` who learns from which rows,
`check` what is in a file. Token ids are made elsewhere (`trimtab_trainer.examples`).
"""

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
