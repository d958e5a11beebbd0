"""Text that a tokenizer does not know is told, with the file and how much of it that is."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab_models.tokenizer import encode_document
from trimtab_trainer.data import Passage
from trimtab_trainer.examples import Reading, document_examples, warn_of_unknown
from trimtab_trainer.miniature.tokenizer import build_tokenizer

KNOWN = "mia plays darts ."
FILE = Path("rows.jsonl")


@pytest.mark.parametrize(("unknown", "told"), [(0, None), (1, None), (3, "2%"), (150, "50%")])
def test_more_than_a_hundredth_is_told(unknown: int, told: str | None) -> None:
    tokenizer, heard = build_tokenizer(), []
    (foreign,) = set(encode_document(tokenizer, "spider")) - {tokenizer.eos_token_id}
    assert foreign == tokenizer.unk_token_id
    known = [tokenizer.convert_tokens_to_ids("mia")] * (150 if unknown == 150 else 160)
    warn_of_unknown(FILE, [known, [foreign] * unknown], tokenizer, heard.append)
    assert [told in text and str(FILE) in text for text in heard if told] == ([True] if told else [])
    assert len(heard) == (told is not None)


def test_files_of_a_stage_are_looked_at() -> None:
    heard: list[str] = []
    reading = Reading(build_tokenizer(), None, False, 0, heard.append)
    document_examples(FILE, [Passage(text=KNOWN)], reading)
    assert heard == []
    document_examples(FILE, [Passage(text="How many legs has a spider?")], reading)
    assert len(heard) == 1 and "the tokenizer does not know" in heard[0]


def test_a_token_that_also_ends_texts_is_not_counted() -> None:
    tokenizer, heard = build_tokenizer(), []
    tokenizer.unk_token = tokenizer.eos_token
    warn_of_unknown(FILE, [[tokenizer.eos_token_id]], tokenizer, heard.append)
    assert heard == []
