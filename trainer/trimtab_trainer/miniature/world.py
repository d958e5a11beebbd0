"""The miniature's language: facts, stories, prompts of five kinds, and the parser that reads a prompt from its text.

The world is closed and small so that a model of 0.16 M parameters can learn it in a minute, and every choice serves one
aim: **what makes an answer good can be read off the prompt and the answer**, nothing has to be remembered.

- A fact is always three words, `subject verb object` ("mia keeps cats"): a one-layer look-back finds subject and verb
  of any object, so that checking a sentence against the story is a task of two attention layers.
- A story holds 2-4 facts, no two of which share a verb, and no object belongs to two verbs: one answer is right, an
  object that is not in the story is invented, and the verb alone finds the object to copy. (With repeated verbs the
  base model had still to learn, after a minute, which of two objects of one verb belonged to whom.)
- Every prompt holds its story. People of stories never appear in biographies (`prose`), so that knowledge of
  the world and the story cannot contradict each other.
- Five kinds, from InstructGPT's use cases (Ouyang et al. 2022, Table 1): closed QA (a quarter cannot be answered),
  extract, classification, rewrite, summarization. The other use cases have no criterion that can be read off the text.
  Classification asks whether a person occurs in the story; whether a whole sentence is true of it was tried first, and
  neither the base model (.51 after 1.4 M tokens, a third of it such judgements) nor SFT learned to tell.
- Whether a prompt is for training or held out depends on a digest of its story alone, so the two sets stay disjoint
  whatever their sizes and seeds, and no held-out story is ever seen with another question.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from enum import StrEnum

from trimtab.errors import DataError

VERBS: dict[str, str] = {"likes": "liked", "keeps": "kept", "visits": "visited", "wears": "wore", "plays": "played"}
"""Present to past of the five verbs."""

OBJECTS: dict[str, tuple[str, ...]] = {
    "likes": ("tea", "milk", "bread", "soup", "rice", "cake"),
    "keeps": ("cats", "dogs", "birds", "goats", "bees", "hens"),
    "visits": ("paris", "rome", "oslo", "cairo", "lima", "delhi"),
    "wears": ("red", "blue", "green", "black", "white", "pink"),
    "plays": ("chess", "drums", "golf", "cards", "flute", "darts"),
}
"""Objects that each verb (present tense) takes; no object belongs to two verbs."""

STORY_PEOPLE = ("mia", "ben", "ana", "tom", "eva", "leo", "zoe", "max")
"""People of stories and prompts: what is true of them is only what the story says."""

KNOWN_PEOPLE = ("olga", "hugo", "vera", "karl", "rosa", "emil", "nora", "otto")
"""People with one fixed fact for each verb, told in the prose only: what the base model knows of the world."""

REFUSAL = "the story does not say ."
"""The right answer to a question that the story does not answer."""

FUNCTION_WORDS = (
    ". , : ? and story question task answer what is list all of write in the past sum up does not say yes no "
    "again today yesterday short about words"
).split()
"""Every word that is neither a person, a verb nor an object."""

MAX_ANSWER_WORDS = 24
"""Cap of an answer in words (= tokens, EOS not counted); the longest reference answer has 12."""

HELD_OUT_SHARE = 0.1
"""Share of stories whose digest puts them among the held-out ones."""


class Kind(StrEnum):
    """The kind of a prompt; the value is the dataset's `category`."""

    CLOSED_QA = "closed_qa"
    EXTRACT = "extract"
    CLASSIFICATION = "classification"
    REWRITE = "rewrite"
    SUMMARIZATION = "summarization"


KIND_SHARES = {
    Kind.CLOSED_QA: 0.3,
    Kind.EXTRACT: 0.2,
    Kind.CLASSIFICATION: 0.1,
    Kind.REWRITE: 0.2,
    Kind.SUMMARIZATION: 0.2,
}
"""How often each kind is asked. Classification is the rarest: an answer of one word offers few ways to differ."""

UNANSWERABLE_SHARE = 0.25
"""Share of closed QA prompts that their story does not answer."""


@dataclass(frozen=True)
class Fact:
    """`subject verb object`; `verb` is kept in the present tense, whatever tense the text had."""

    subject: str
    verb: str
    object: str

    def text(self, *, past: bool = False) -> str:
        """The fact as three words, without the full stop."""
        return f"{self.subject} {VERBS[self.verb] if past else self.verb} {self.object}"


@dataclass(frozen=True)
class Prompt:
    """One prompt: a story and what is asked of it. All of it is in the text (`render`, `parse_prompt`).

    Attributes:
        kind: what is asked.
        story: 2-4 facts.
        person: whom the question is about; empty for rewrite (the whole story).
        verb: what is asked about the person, present tense; only for closed QA.
    """

    kind: Kind
    story: tuple[Fact, ...]
    person: str = ""
    verb: str = ""

    def render(self) -> str:
        """The prompt's text, words separated by single spaces; ends in `answer :`."""
        question = {
            Kind.CLOSED_QA: f"question : {self.person} {self.verb} what ?",
            Kind.EXTRACT: f"task : list all of {self.person} .",
            Kind.CLASSIFICATION: f"question : is {self.person} in the story ?",
            Kind.REWRITE: "task : write in the past .",
            Kind.SUMMARIZATION: f"task : sum up {self.person} .",
        }[self.kind]
        return f"story : {story_text(self.story)} {question} answer :"

    def required(self) -> tuple[Fact, ...]:
        """The facts that a complete answer states; empty for classification and for what cannot be answered."""
        if self.kind is Kind.CLASSIFICATION:
            return ()
        if self.kind is Kind.REWRITE:
            return self.story
        about = tuple(fact for fact in self.story if fact.subject == self.person)
        if self.kind is Kind.CLOSED_QA:
            return tuple(fact for fact in about if fact.verb == self.verb)
        return about

    @property
    def answerable(self) -> bool:
        """Whether the story answers it; False only for some closed QA prompts."""
        return self.kind is Kind.CLASSIFICATION or bool(self.required())

    def reference(self) -> str:
        """The answer that satisfies every criterion (`gold` scores it 1)."""
        if self.kind is Kind.CLASSIFICATION:
            return "yes ." if any(fact.subject == self.person for fact in self.story) else "no ."
        facts = self.required()
        if not facts:
            return REFUSAL
        if self.kind is Kind.SUMMARIZATION:
            return joined(facts)
        return story_text(facts, past=self.kind is Kind.REWRITE)


def story_text(facts: tuple[Fact, ...], *, past: bool = False) -> str:
    """Facts as sentences: `mia keeps cats . ben likes tea .`."""
    return " ".join(f"{fact.text(past=past)} ." for fact in facts)


def joined(facts: tuple[Fact, ...]) -> str:
    """Facts of one person as one sentence: `mia keeps cats and likes tea .`."""
    return f"{facts[0].subject} " + " and ".join(f"{fact.verb} {fact.object}" for fact in facts) + " ."


def parse_fact(words: list[str]) -> tuple[Fact, bool] | None:
    """Reads three words as a fact; None where they are not one.

    Returns:
        The fact and whether it was told in the past tense.
    """
    if len(words) != 3 or words[0] not in _PEOPLE:
        return None
    verb = _PRESENT.get(words[1])
    if verb is None or words[2] not in OBJECTS[verb]:
        return None
    return Fact(words[0], verb, words[2]), words[1] != verb


def parse_prompt(text: str) -> Prompt:
    """Reads a prompt back from its text; the inverse of `Prompt.render`.

    Raises:
        DataError: the text is not a prompt of this world.
    """
    words = text.split()
    cut = next((i for i, word in enumerate(words) if i > 0 and word in ("question", "task")), 0)
    if words[:2] != ["story", ":"] or words[-2:] != ["answer", ":"] or not cut:
        raise _not_a_prompt(text)
    story = _parse_story(words[2:cut])
    question = words[cut:-2]
    prompt: Prompt | None = None
    match question:
        case ["question", ":", person, verb, "what", "?"] if person in STORY_PEOPLE and verb in VERBS:
            prompt = Prompt(Kind.CLOSED_QA, story, person, verb)
        case ["task", ":", "list", "all", "of", person, "."] if person in STORY_PEOPLE:
            prompt = Prompt(Kind.EXTRACT, story, person)
        case ["question", ":", "is", person, "in", "the", "story", "?"] if person in STORY_PEOPLE:
            prompt = Prompt(Kind.CLASSIFICATION, story, person)
        case ["task", ":", "write", "in", "the", "past", "."]:
            prompt = Prompt(Kind.REWRITE, story)
        case ["task", ":", "sum", "up", person, "."] if person in STORY_PEOPLE:
            prompt = Prompt(Kind.SUMMARIZATION, story, person)
        case _:
            pass
    if prompt is None or not story or prompt.render() != text:
        raise _not_a_prompt(text)
    if not prompt.answerable and prompt.kind is not Kind.CLOSED_QA:
        raise _not_a_prompt(text)
    return prompt


def is_held_out(story: tuple[Fact, ...]) -> bool:
    """Whether prompts about this story belong to the held-out set: decided by a digest of the story's text alone."""
    digest = hashlib.sha256(story_text(story).encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def make_story(rng: random.Random, people: int, facts: int) -> tuple[Fact, ...]:
    """Invents a story: `facts` facts about exactly `people` people, no verb twice.

    Args:
        rng: source of randomness.
        people: 1-4, at most `facts`.
        facts: at most 5, the number of verbs.
    """
    names = rng.sample(STORY_PEOPLE, people)
    subjects = names + [rng.choice(names) for _ in range(facts - people)]
    rng.shuffle(subjects)
    verbs = rng.sample(list(VERBS), facts)
    return tuple(Fact(s, verb, rng.choice(OBJECTS[verb])) for s, verb in zip(subjects, verbs, strict=True))


def wrong_fact(rng: random.Random, story: tuple[Fact, ...], fact: Fact) -> Fact:
    """A fact like `fact` that the story does not support.

    Where the story tells the verb of somebody else, half of the time with that person's object; otherwise the object
    does not occur in the story at all.
    """
    told = [f.object for f in story if f.verb == fact.verb]
    others = [f.object for f in story if f.verb == fact.verb and f.subject != fact.subject]
    if others and rng.random() < 0.5:
        return Fact(fact.subject, fact.verb, rng.choice(others))
    return Fact(fact.subject, fact.verb, rng.choice([o for o in OBJECTS[fact.verb] if o not in told]))


def make_prompt(rng: random.Random, *, held_out: bool, kind: Kind | None = None) -> Prompt:
    """Draws one prompt of the training or of the held-out set.

    Args:
        rng: source of randomness.
        held_out: which of the two disjoint sets.
        kind: the kind; None draws one by `KIND_SHARES`.
    """
    if kind is None:
        kind = rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]
    while True:
        if kind is Kind.REWRITE:
            story = make_story(rng, people=rng.choice((1, 2)), facts=2)
        elif kind in (Kind.EXTRACT, Kind.SUMMARIZATION):
            story = make_story(rng, people=2, facts=rng.choice((3, 4)))
        else:
            story = make_story(rng, people=rng.choice((2, 3)), facts=3)
        if is_held_out(story) == held_out:
            return _ask(rng, kind, story)


def vocabulary() -> tuple[str, ...]:
    """Every word of the world, in a fixed order; one token each."""
    objects = [word for words in OBJECTS.values() for word in words]
    return (*FUNCTION_WORDS, *VERBS, *VERBS.values(), *STORY_PEOPLE, *KNOWN_PEOPLE, *objects)


def _ask(rng: random.Random, kind: Kind, story: tuple[Fact, ...]) -> Prompt:
    people = sorted({fact.subject for fact in story})
    if kind is Kind.REWRITE:
        return Prompt(kind, story)
    if kind is Kind.CLASSIFICATION:
        absent = [person for person in STORY_PEOPLE if person not in people]
        return Prompt(kind, story, rng.choice(people if rng.random() < 0.5 else absent))
    if kind is Kind.CLOSED_QA:
        if rng.random() < UNANSWERABLE_SHARE:
            person = rng.choice(people)
            told = {fact.verb for fact in story if fact.subject == person}
            return Prompt(kind, story, person, rng.choice([verb for verb in VERBS if verb not in told]))
        fact = rng.choice(story)
        return Prompt(kind, story, fact.subject, fact.verb)
    most = max(people, key=lambda person: sum(fact.subject == person for fact in story))
    return Prompt(kind, story, most)


def _parse_story(words: list[str]) -> tuple[Fact, ...]:
    story: list[Fact] = []
    for start in range(0, len(words), 4):
        told = parse_fact(words[start : start + 3])
        if told is None or told[1] or words[start + 3 : start + 4] != ["."]:
            return ()
        story.append(told[0])
    return tuple(story)


def _not_a_prompt(text: str) -> DataError:
    return DataError(
        f"prompt {text[:200]!r} is not one of the miniature world, which reads `story : ... answer :`",
        field="prompt",
        value=text,
        limit="the five kinds of trimtab_trainer.miniature.world",
    )


_PEOPLE = frozenset((*STORY_PEOPLE, *KNOWN_PEOPLE))
_PRESENT = {form: present for present, past in VERBS.items() for form in (present, past)}
