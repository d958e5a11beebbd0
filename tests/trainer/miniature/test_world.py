"""The miniature's language: prompts survive the way to text and back, and nothing else is taken for a prompt."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import DataError
from trimtab_trainer.miniature.gold import gold
from trimtab_trainer.miniature.prose import cloze_items, make_document
from trimtab_trainer.miniature.world import (
    FUNCTION_WORDS,
    MAX_ANSWER_WORDS,
    OBJECTS,
    VERBS,
    Kind,
    is_held_out,
    make_prompt,
    parse_prompt,
    vocabulary,
    wrong_fact,
)

seeds = st.integers(0, 2**32)


@given(seed=seeds, held_out=st.booleans(), kind=st.sampled_from(Kind))
def test_parsing_a_rendered_prompt_gives_it_back(seed: int, held_out: bool, kind: Kind) -> None:
    prompt = make_prompt(random.Random(seed), held_out=held_out, kind=kind)
    assert parse_prompt(prompt.render()) == prompt
    assert is_held_out(prompt.story) == held_out
    assert prompt.kind is kind


@given(seed=seeds, kind=st.sampled_from(Kind))
def test_the_reference_answer_is_worth_everything_and_fits(seed: int, kind: Kind) -> None:
    prompt = make_prompt(random.Random(seed), held_out=False, kind=kind)
    scored = gold(prompt.render(), prompt.reference())
    assert scored.score == pytest.approx(1.0)
    assert not scored.hallucinated
    assert len(prompt.reference().split()) <= MAX_ANSWER_WORDS


@given(seed=seeds)
def test_a_story_tells_each_verb_once(seed: int) -> None:
    story = make_prompt(random.Random(seed), held_out=False).story
    assert len({fact.verb for fact in story}) == len(story)
    assert 2 <= len(story) <= 4


@given(seed=seeds)
def test_a_wrong_fact_is_not_in_the_story(seed: int) -> None:
    rng = random.Random(seed)
    story = make_prompt(rng, held_out=False).story
    assert wrong_fact(rng, story, rng.choice(story)) not in story


@given(seed=seeds, held_out=st.booleans())
def test_prose_and_prompts_use_known_words_only(seed: int, held_out: bool) -> None:
    words = set(vocabulary())
    assert set(make_document(random.Random(seed), held_out=held_out).split()) <= words
    assert set(make_prompt(random.Random(seed), held_out=held_out).render().split()) <= words


def test_the_vocabulary_has_no_word_twice() -> None:
    assert len(set(vocabulary())) == len(vocabulary())
    assert 80 <= len(vocabulary()) <= 200
    assert set(OBJECTS) == set(VERBS)
    assert "." in FUNCTION_WORDS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "story : mia keeps cats . answer :",
        "story : mia keeps cats . question : mia keeps what ?",
        "story : mia keeps tea . question : mia keeps what ? answer :",
        "story : mia kept cats . question : mia keeps what ? answer :",
        "story : mia keeps cats question : mia keeps what ? answer :",
        "story : . question : mia keeps what ? answer :",
        "story : mia keeps cats . task : sum up ben . answer :",
        "story : mia keeps cats . question : olga keeps what ? answer :",
        "story :  mia keeps cats . question : mia keeps what ? answer :",
    ],
)
def test_what_is_not_a_prompt_is_refused(text: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_prompt(text)
    assert caught.value.field == "prompt"


def test_cloze_items_ask_what_biographies_tell() -> None:
    items = cloze_items()
    assert items == cloze_items()
    assert len(items) == 40
    biographies = [
        text for text in (make_document(random.Random(i), held_out=False) for i in range(2000)) if text[:5] == "about"
    ]
    person, verb = items[0][0].split()[-2:]
    told = [text for text in biographies if text.startswith(f"about {person} ")]
    assert told
    assert all(f"{person} {verb} {items[0][1]} ." in text for text in told)
