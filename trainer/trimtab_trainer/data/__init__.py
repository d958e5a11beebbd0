"""Datasets: demonstrations, rankings, prompts and pretraining text, every row checked before any model sees it.

`records` is a row of each kind and the forms it is read from, `readers` the files, `splits` who learns from which rows,
`labeling` makes files of projects of the labeling service.

What `trimtab data` does (`commands`) holds one row at a time: `check` says what is in a file, `cleaning` leaves rows
out by the `rules` on prompts and for `personal_data`, `user_split` splits, `file_statistics` has the figures
(`categories`, `lengths`, `agreement`), `card` writes them down, `formats` are the public ones. `on_disk` holds what
must be known of all rows, `writers` makes new files. Token ids are made elsewhere (`trimtab_trainer.examples`).
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
