"""Pretraining prose: what the base model learns before it is asked anything.

Five sorts of short documents, each of which teaches one skill that the prompts or the reward model need, at the density
that makes it appear within 1.5 million tokens (copying at once, `words` from step 600 of 1,000):

- stories told again (copying from the context, on which every answer rests: the largest share);
- stories and words that occur in them or not (noticing what was not told is what the reward model must do);
- tense pairs and sentences in short (the forms that rewrite and summarization ask for);
- biographies of the known people (knowledge of the world, which the alignment tax can take away: `cloze_items`).

Prose never holds a prompt's question, so the base model does not follow instructions until it has seen demonstrations.
"""

from __future__ import annotations

import random

from trimtab_trainer.miniature.world import (
    KNOWN_PEOPLE,
    OBJECTS,
    STORY_PEOPLE,
    VERBS,
    Fact,
    is_held_out,
    joined,
    make_story,
    story_text,
)

SHARES = {"retold": 0.5, "words": 0.2, "tenses": 0.1, "short": 0.1, "biography": 0.1}
"""Share of each sort of document."""


def biography(person: str) -> tuple[Fact, ...]:
    """The five fixed facts of a known person; a function of the name alone, so every run shares one world."""
    rng = random.Random(f"trimtab-miniature/biography/{person}")
    return tuple(Fact(person, verb, rng.choice(OBJECTS[verb])) for verb in VERBS)


def cloze_items() -> list[tuple[str, str]]:
    """Questions of knowledge: the start of a biography's sentence and the one word that continues it."""
    facts = [fact for person in KNOWN_PEOPLE for fact in biography(person)]
    return [(f"about {fact.subject} : {fact.subject} {fact.verb}", fact.object) for fact in facts]


def make_document(rng: random.Random, *, held_out: bool) -> str:
    """Writes one document of prose.

    Args:
        rng: source of randomness.
        held_out: whether its story is one of the held-out ones; a biography is the same world in both sets and only its
            order is drawn, so held-out loss measures both copying and knowledge.
    """
    sort = rng.choices(list(SHARES), list(SHARES.values()))[0]
    if sort == "biography":
        facts = list(biography(rng.choice(KNOWN_PEOPLE)))
        rng.shuffle(facts)
        return f"about {facts[0].subject} : {story_text(tuple(facts))}"
    while True:
        story = make_story(rng, people=rng.choice((1, 2) if sort in ("tenses", "short") else (2, 3)), facts=3)
        if is_held_out(story) == held_out:
            break
    told = f"story : {story_text(story)}"
    if sort == "retold":
        again = list(story)
        if rng.random() < 0.5:
            rng.shuffle(again)
        return f"{told} again : {story_text(tuple(again))}"
    if sort == "tenses":
        return f"today {story_text(story)} yesterday {story_text(story, past=True)}"
    if sort == "short":
        return f"{told} in short : {_in_short(rng, story)}"
    return f"{told} words : {_words(rng, story)} ."


def _words(rng: random.Random, story: tuple[Fact, ...]) -> str:
    """Five words, each with `yes` where the story holds it and `no` where it does not."""
    told = sorted({word for fact in story for word in (fact.subject, fact.object)})
    everything = (*STORY_PEOPLE, *(word for words in OBJECTS.values() for word in words))
    absent = [word for word in everything if word not in told]
    asked = [(rng.choice(told), "yes") if rng.random() < 0.5 else (rng.choice(absent), "no") for _ in range(5)]
    return " ".join(f"{word} {answer}" for word, answer in asked)


def _in_short(rng: random.Random, story: tuple[Fact, ...]) -> str:
    people = sorted({fact.subject for fact in story})
    rng.shuffle(people)
    return " ".join(joined(tuple(f for f in story if f.subject == person)) for person in people)
