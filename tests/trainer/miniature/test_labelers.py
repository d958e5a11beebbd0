"""Simulated labelers: valid rankings, deterministic, and agreeing about as often as the paper's people."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import DataError
from trimtab_trainer.evaluation import labeler_agreement
from trimtab_trainer.miniature.demonstrations import corruptions
from trimtab_trainer.miniature.gold import CRITERIA
from trimtab_trainer.miniature.labelers import Labeler, labelers_for, make_labelers, rank, ranking_row, ranks_of
from trimtab_trainer.miniature.world import make_prompt

LABELERS = make_labelers(0)


def answered(seed: int) -> tuple[str, list[str]]:
    """A prompt with its right answer among flawed ones."""
    rng = random.Random(seed)
    prompt = make_prompt(rng, held_out=True)
    answers = [prompt.reference(), *corruptions(rng, prompt, count=5)]
    rng.shuffle(answers)
    return prompt.render(), answers


def test_there_are_ten_training_and_five_held_out_labelers() -> None:
    assert [who.group for who in LABELERS] == ["training"] * 10 + ["heldout"] * 5
    assert len({who.name for who in LABELERS}) == 15
    assert all(who.name.startswith("simulated-") for who in LABELERS)
    assert len({tuple(who.weights.values()) for who in LABELERS}) == 15
    for who in LABELERS:
        assert sum(who.weights[name] for name in CRITERIA) == pytest.approx(1.0)


@given(seed=st.integers(0, 2**32), who=st.sampled_from(LABELERS))
def test_a_ranking_holds_each_answer_once(seed: int, who) -> None:
    prompt, answers = answered(seed)
    groups = rank(prompt, answers, who)
    assert sorted(index for group in groups for index in group) == list(range(len(answers)))
    assert all(group == sorted(group) and group for group in groups)


@given(seed=st.integers(0, 2**32))
def test_the_order_of_answers_does_not_change_the_ranking(seed: int) -> None:
    prompt, answers = answered(seed)
    backwards = answers[::-1]
    one = [{answers[i] for i in group} for group in rank(prompt, answers, LABELERS[0])]
    other = [{backwards[i] for i in group} for group in rank(prompt, backwards, LABELERS[0])]
    assert one == other


def ranks_by(prompt: str, answers: list[str], labelers: Sequence[Labeler]) -> list[list[int]]:
    return [ranks_of(label["ranking"]) for label in ranking_row(prompt, answers, labelers)["labels"]]


def test_two_labelers_agree_on_about_73_percent_of_pairs() -> None:
    texts = [answered(seed) for seed in range(150)]
    share, decisions = labeler_agreement(ranks_by(prompt, answers, LABELERS[:10]) for prompt, answers in texts)
    assert decisions > 50_000
    assert 0.70 <= share <= 0.78
    held_out, _ = labeler_agreement(ranks_by(prompt, answers, LABELERS[10:]) for prompt, answers in texts)
    assert 0.70 <= held_out <= 0.78


def test_without_noise_labelers_nearly_always_agree() -> None:
    quiet = make_labelers(0, noise=0.0)
    share, _ = labeler_agreement(ranks_by(*answered(seed), quiet) for seed in range(60))
    assert share > 0.88


def test_noise_follows_the_seed() -> None:
    prompt, answers = answered(3)
    again = make_labelers(0)
    other = make_labelers(1)
    assert [who.utility(prompt, answers[0]) for who in again] == [who.utility(prompt, answers[0]) for who in LABELERS]
    assert [who.utility(prompt, answers[0]) for who in other] != [who.utility(prompt, answers[0]) for who in LABELERS]


def test_a_row_has_the_fields_of_a_rankings_file() -> None:
    prompt, answers = answered(5)
    row = ranking_row(prompt, answers, LABELERS[:2])
    assert list(row) == ["prompt", "answers", "labels"]
    assert row["answers"] == answers
    assert [list(label) for label in row["labels"]] == [["labeler", "group", "ranking"]] * 2


def test_labelers_are_assigned_evenly_and_repeatably() -> None:
    counts = dict.fromkeys((who.name for who in LABELERS[:10]), 0)
    for number in range(2000):
        for who in labelers_for(f"prompt {number}", LABELERS[:10], 3):
            counts[who.name] += 1
    assert sum(counts.values()) == 6000
    assert all(500 < count < 700 for count in counts.values())
    assert labelers_for("x", LABELERS, 2) == labelers_for("x", LABELERS, 2)


def test_wrong_input_is_refused() -> None:
    prompt, answers = answered(1)
    with pytest.raises(DataError, match="differ"):
        rank(prompt, [answers[0], answers[0]], LABELERS[0])
    with pytest.raises(DataError, match="2 to 9"):
        ranking_row(prompt, answers[:1], LABELERS)
    with pytest.raises(DataError, match="16 labelers"):
        labelers_for(prompt, LABELERS, 16)
