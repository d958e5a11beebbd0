"""The gold score, criterion by criterion, on answers made by hand."""

import pytest

from trimtab.errors import DataError
from trimtab_trainer.miniature.gold import CRITERIA, WEIGHTS, gold, parse_answer

STORY = "story : mia keeps cats . ben likes tea . mia wears red ."
QA = f"{STORY} question : mia keeps what ? answer :"
UNANSWERABLE = f"{STORY} question : ben keeps what ? answer :"
EXTRACT = f"{STORY} task : list all of mia . answer :"
PRESENT = f"{STORY} question : is mia in the story ? answer :"
ABSENT = f"{STORY} question : is eva in the story ? answer :"
REWRITE = "story : mia keeps cats . ben likes tea . task : write in the past . answer :"
SUMMARY = f"{STORY} task : sum up mia . answer :"


def criteria(prompt: str, answer: str, *, finished: bool = True) -> tuple[float, ...]:
    scored = gold(prompt, answer, finished=finished)
    return tuple(scored.criteria[name] for name in CRITERIA)


def test_weights_sum_to_one() -> None:
    assert tuple(WEIGHTS) == CRITERIA
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (QA, "mia keeps cats ."),
        (UNANSWERABLE, "the story does not say ."),
        (EXTRACT, "mia wears red . mia keeps cats ."),
        (PRESENT, "yes ."),
        (ABSENT, "no ."),
        (REWRITE, "mia kept cats . ben liked tea ."),
        (SUMMARY, "mia wears red and keeps cats ."),
    ],
)
def test_right_answers_score_one(prompt: str, answer: str) -> None:
    assert gold(prompt, answer).score == pytest.approx(1.0)


# follows, true, complete, no_repeats, ended
@pytest.mark.parametrize(
    ("prompt", "answer", "expected", "hallucinated"),
    [
        (QA, "", (0, 0, 0, 0, 0), False),
        (QA, "mia keeps dogs .", (1, 0, 0, 1, 1), True),
        (QA, "ben likes tea .", (0, 1, 0, 1, 1), False),
        (QA, "mia kept cats .", (0, 1, 1, 1, 1), False),
        (QA, "mia keeps cats . mia wears red .", (0.5, 1, 1, 1, 1), False),
        (QA, "mia keeps cats . mia keeps cats .", (0.5, 1, 1, 0, 1), False),
        (QA, "mia keeps cats", (1, 1, 1, 1, 0), False),
        (QA, "mia keeps", (0, 0, 0, 1, 0), False),
        (QA, "the story does not say .", (1, 0, 0, 1, 1), False),
        (QA, "yes .", (0, 0, 0, 1, 1), False),
        (UNANSWERABLE, "ben keeps cats .", (1, 0, 0, 1, 1), True),
        (EXTRACT, "mia keeps cats .", (1, 1, 0.5, 1, 1), False),
        (EXTRACT, "mia keeps cats . mia wears blue .", (1, 0.5, 0.5, 1, 1), True),
        (EXTRACT, "mia keeps cats and wears red .", (0, 1, 1, 1, 1), False),
        (EXTRACT, "mia keeps cats . mia wears red . ben likes tea .", (0.5, 1, 1, 1, 1), False),
        (EXTRACT, "mia keeps cats . mia wears blue . mia likes tea .", (1, 0, 0.5, 1, 1), True),
        (PRESENT, "no .", (1, 0, 0, 1, 1), False),
        (PRESENT, "mia keeps cats .", (0, 1, 0, 1, 1), False),
        (REWRITE, "mia keeps cats . ben likes tea .", (0, 1, 1, 1, 1), False),
        (REWRITE, "mia kept cats . ben likes tea .", (0.5, 1, 1, 1, 1), False),
        (SUMMARY, "mia keeps cats . mia wears red .", (0.5, 1, 1, 1, 1), False),
        (SUMMARY, "mia keeps cats and wears red and keeps cats .", (1, 1, 1, 0, 1), False),
        (SUMMARY, "mia keeps cats and .", (0, 0, 0, 1, 1), False),
    ],
)
def test_each_flaw_costs_its_criterion(
    prompt: str, answer: str, expected: tuple[float, ...], hallucinated: bool
) -> None:
    assert criteria(prompt, answer) == pytest.approx(expected)
    scored = gold(prompt, answer)
    assert scored.hallucinated is hallucinated
    assert scored.score == pytest.approx(sum(WEIGHTS[name] * scored.criteria[name] for name in CRITERIA))


def test_an_answer_cut_by_the_limit_has_not_ended() -> None:
    assert criteria(QA, "mia keeps cats .", finished=False)[-1] == 0
    assert criteria(QA, " ".join(["mia keeps cats ."] * 7))[-1] == 0


def test_an_empty_sentence_is_malformed() -> None:
    sentences, closed = parse_answer("mia keeps cats . .")
    assert closed
    assert [sentence.malformed for sentence in sentences] == [False, True]


def test_a_foreign_prompt_is_refused() -> None:
    with pytest.raises(DataError):
        gold("what is the capital of france ?", "paris .")
