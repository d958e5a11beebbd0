"""The miniature: a closed world small enough for `trimtab quickstart --model tiny` to run all of RLHF in five minutes.

Everything in it is written by a program and says so: the prose, the prompts, the demonstrations and the labelers are
*simulated*, so that a gold score is known and each stage's claim can be measured.

    world           facts, stories, prompts of five kinds; renders a prompt and parses it back from its text
    prose           pretraining documents, and cloze items that measure what the base model knows
    demonstrations  right answers, and the flaws put into some of them on purpose
    gold            the score of five criteria, read off prompt and answer
    labelers        ten training and five held-out simulated labelers, and `rank`
    tokenizer       one word is one token; the shape of the untrained base model
    files           writes the dataset files

Only `tokenizer` needs torch and transformers and is not imported here; the rest is the standard library's.
"""

from trimtab_trainer.miniature.demonstrations import corruptions, demonstrate
from trimtab_trainer.miniature.files import Sizes, write_datasets
from trimtab_trainer.miniature.gold import CRITERIA, WEIGHTS, Gold, gold, parse_answer
from trimtab_trainer.miniature.labelers import Labeler, labelers_for, make_labelers, rank, ranking_row
from trimtab_trainer.miniature.prose import cloze_items
from trimtab_trainer.miniature.world import Fact, Kind, Prompt, parse_prompt

__all__ = [
    "CRITERIA",
    "WEIGHTS",
    "Fact",
    "Gold",
    "Kind",
    "Labeler",
    "Prompt",
    "Sizes",
    "cloze_items",
    "corruptions",
    "demonstrate",
    "gold",
    "labelers_for",
    "make_labelers",
    "parse_answer",
    "parse_prompt",
    "rank",
    "ranking_row",
    "write_datasets",
]
