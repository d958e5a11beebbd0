"""Demonstrations, flawed on purpose in a stated share, and the flaws themselves.

Human demonstrations are uneven, and a policy that imitates perfect ones would leave the later stages nothing to do. So
`FLAWED_SHARE` of the demonstrations carry a flaw, mostly of form: a list where a summary was asked for, a sentence said
twice, a fact that nobody asked for, an answer broken off. What a model of 0.16 M parameters can learn to see in an
answer is form and, much less well, truth; a world whose reward model cannot see what is wrong has nothing to show.

Flaws of every sort, of fact as well as of form, are put among the answers that labelers rank: samples of a weak policy
rarely differ from one another in one respect only, while these do, and they teach the reward model each criterion far
faster.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from trimtab_trainer.miniature.world import REFUSAL, STORY_PEOPLE, Fact, Kind, Prompt, joined, story_text, wrong_fact

FLAWED_SHARE = 0.5
"""Share of demonstrations that carry a flaw."""


def demonstrate(rng: random.Random, prompt: Prompt, *, flawed_share: float = FLAWED_SHARE) -> tuple[str, bool]:
    """Answers a prompt as a demonstrator would.

    Returns:
        The completion, and whether a flaw was put in.
    """
    right = prompt.reference()
    if rng.random() >= flawed_share:
        return right, False
    for flaw in rng.sample(_OF_DEMONSTRATIONS, len(_OF_DEMONSTRATIONS)):
        if (answer := flaw(rng, prompt, right)) not in (right, ""):
            return answer, True
    return corruptions(rng, prompt, count=1)[0], True


def corruptions(rng: random.Random, prompt: Prompt, *, count: int) -> list[str]:
    """Flawed versions of the right answer: all different, none of them the right answer.

    Every flaw is drawn before any is drawn a second time, and every other answer carries two.

    Args:
        rng: source of randomness.
        prompt: the prompt to answer.
        count: how many at most; fewer where the prompt does not allow as many (classification allows about five).
    """
    right = prompt.reference()
    found: list[str] = []
    deck: list[Callable[[random.Random, Prompt, str], str]] = []
    for _ in range(12 * count):
        if len(found) == count:
            break
        if not deck:
            deck = rng.sample(_FLAWS, len(_FLAWS))
        answer = deck.pop()(rng, prompt, right)
        if len(found) % 2 == 1:
            answer = rng.choice(_SURFACE)(rng, prompt, answer)
        if answer not in (right, "") and answer not in found:
            found.append(answer)
    return found


def _wrong(rng: random.Random, prompt: Prompt, right: str) -> str:
    """One fact untrue; a wrong verdict; a made-up answer to what cannot be answered, or a needless refusal."""
    facts = prompt.required()
    if prompt.kind is Kind.CLASSIFICATION:
        return "no ." if right == "yes ." else "yes ."
    if not facts:
        return f"{wrong_fact(rng, prompt.story, Fact(prompt.person, prompt.verb, '')).text()} ."
    if rng.random() < 0.15:
        return REFUSAL
    changed = rng.randrange(len(facts))
    return _say(prompt, tuple(wrong_fact(rng, prompt.story, f) if i == changed else f for i, f in enumerate(facts)))


def _wrong_person(rng: random.Random, prompt: Prompt, right: str) -> str:
    """The right thing told of somebody else; unchanged where nobody is named."""
    facts = prompt.required()
    if not facts:
        return right
    other = rng.choice([person for person in STORY_PEOPLE if person != facts[0].subject])
    return _say(prompt, tuple(Fact(other, f.verb, f.object) if f.subject == facts[0].subject else f for f in facts))


def _dropped(rng: random.Random, prompt: Prompt, right: str) -> str:
    """One fact left out; unchanged where there is only one."""
    facts = list(prompt.required())
    if len(facts) < 2:
        return right
    facts.pop(rng.randrange(len(facts)))
    return _say(prompt, tuple(facts))


def _off_topic(rng: random.Random, prompt: Prompt, right: str) -> str:
    """A true fact that was not asked for, after the answer."""
    others = [fact for fact in prompt.story if fact not in prompt.required()]
    return f"{right} {rng.choice(others).text()} ." if others else right


def _wrong_form(rng: random.Random, prompt: Prompt, right: str) -> str:
    """The wrong tense, a list where a summary was asked for or the reverse, a claim in place of a verdict."""
    facts = prompt.required()
    if prompt.kind is Kind.CLASSIFICATION:
        return f"{rng.choice(prompt.story).text()} ."
    if not facts:
        return right
    if prompt.kind is Kind.EXTRACT and len(facts) > 1 and rng.random() < 0.5:
        return joined(facts)
    return story_text(facts, past=prompt.kind is not Kind.REWRITE and rng.random() < 0.5)


def _repeated(rng: random.Random, prompt: Prompt, answer: str) -> str:
    """The last sentence said twice."""
    last = answer.removesuffix(" .").split(" . ")[-1]
    return f"{answer} {last} ." if answer.endswith(".") else answer


def _unfinished(rng: random.Random, prompt: Prompt, answer: str) -> str:
    """Broken off: the full stop is missing, and often the word before it too."""
    words = answer.split()
    return " ".join(words[: -rng.choice((1, 2))]) if len(words) > 2 else " ".join(words[:-1])


def _kept(rng: random.Random, prompt: Prompt, answer: str) -> str:
    return answer


def _say(prompt: Prompt, facts: tuple[Fact, ...]) -> str:
    """States facts in the form that the prompt asks for."""
    if prompt.kind is Kind.SUMMARIZATION:
        return joined(facts)
    return story_text(facts, past=prompt.kind is Kind.REWRITE)


_FLAWS = (_wrong, _wrong, _wrong_person, _dropped, _off_topic, _wrong_form, _repeated, _unfinished)
_SURFACE = (_repeated, _unfinished, _kept)
_OF_DEMONSTRATIONS = (
    *(_wrong_form, _wrong_form, _repeated, _repeated, _unfinished, _unfinished, _off_topic, _off_topic),
    *(_dropped, _wrong),
)
"""Flaws of demonstrations: of ten eight are of form."""
