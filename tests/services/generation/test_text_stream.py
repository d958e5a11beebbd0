"""Tokens to text as they come, over the real tokenizer: any ids, any text, any stop string."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_models import make_tokenizer
from trimtab_models.tokenizer import encode_document
from trimtab_services.generation.http.text import TextPiece, TextStream

TOKENIZER = make_tokenizer()
SPECIAL = set(TOKENIZER.all_special_ids)

ids = st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=60)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=40)


def fed(stream: TextStream, token_ids: Sequence[int]) -> list[list[TextPiece]]:
    """What is handed out after each token and at the end."""
    return [*(stream.feed(token_id) for token_id in token_ids), stream.finish()]


def joined(pieces: list[list[TextPiece]]) -> str:
    return "".join(piece.text for some in pieces for piece in some)


def until_stop(token_ids: Sequence[int], stops: Sequence[str]) -> str:
    """The text in front of the stop string that the first tokens complete."""
    for count in range(1, len(token_ids) + 1):
        text = TOKENIZER.decode(token_ids[:count], skip_special_tokens=True)
        found = [at for stop in stops if (at := text.find(stop)) >= 0]
        if found:
            return text[: min(found)]
    raise AssertionError("one of the stop strings is part of the text")


@given(ids)
@settings(max_examples=300)
def test_pieces_join_to_the_decoded_text_and_every_token_comes_once(token_ids: list[int]) -> None:
    pieces = fed(TextStream(TOKENIZER), token_ids)
    assert joined(pieces) == TOKENIZER.decode(token_ids, skip_special_tokens=True)
    flat = [piece for some in pieces for piece in some]
    assert [piece.token_id for piece in flat] == token_ids
    assert [piece.offset for piece in flat] == [len("".join(p.text for p in flat[:i])) for i in range(len(flat))]
    assert all(piece.text == "" for piece in flat if piece.token_id in SPECIAL)


@given(texts)
@settings(max_examples=200)
def test_a_character_is_never_split(text: str) -> None:
    token_ids = encode_document(TOKENIZER, text)[:-1]
    pieces = fed(TextStream(TOKENIZER), token_ids)
    assert joined(pieces) == text
    assert not any("\ufffd" in piece.text for some in pieces for piece in some)


@given(texts.filter(lambda text: len(text) > 2), st.data())
@settings(max_examples=300)
def test_a_stop_string_never_leaks_in_part_or_whole(text: str, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(text) - 1))
    stops = [text[begin : data.draw(st.integers(begin + 1, len(text)))], data.draw(texts.filter(bool))]
    token_ids = encode_document(TOKENIZER, text)[:-1]
    expected = until_stop(token_ids, stops)
    stream = TextStream(TOKENIZER, stops)
    seen = ""
    for some in fed(stream, token_ids):
        seen += "".join(piece.text for piece in some)
        assert expected.startswith(seen)  # at no moment more than what stays
    assert seen == expected and stream.stopped


def test_text_is_handed_out_as_soon_as_it_is_settled() -> None:
    token_ids = encode_document(TOKENIZER, "the lazy dog é!")[:-1]
    handed_out = [sum(len(piece.text) for piece in some) for some in fed(TextStream(TOKENIZER), token_ids)]
    assert handed_out.count(0) == 2  # the first byte of é, and the end, where nothing is left


def test_what_may_become_a_stop_string_is_held_back_and_comes_when_it_does_not() -> None:
    stream = TextStream(TOKENIZER, ["ab!"])
    a, b, c = (encode_document(TOKENIZER, letter)[0] for letter in "abc")
    assert stream.feed(a) == [] and stream.feed(b) == []
    assert [piece.text for piece in stream.feed(c)] == ["a", "b", "c"]


@pytest.mark.parametrize("keep", [True, False])
def test_special_tokens_are_text_only_where_asked(keep: bool) -> None:
    end = TOKENIZER.eos_token_id
    assert isinstance(end, int)
    text = joined(fed(TextStream(TOKENIZER, keep_special=keep), [end, *encode_document(TOKENIZER, "dog")]))
    assert text == ("<|end|>dog<|end|>" if keep else "dog")
