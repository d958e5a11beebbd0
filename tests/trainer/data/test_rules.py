"""The rules on prompts: duplicates by long common prefix, prompts per user, sides by user."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import ConfigError, DataError
from trimtab.types import ChatMessage
from trimtab_trainer.data.records import PromptText
from trimtab_trainer.data.rules import PromptRules, Verdict, side_of, user_of

KEPT, DUPLICATE, OVER = Verdict.KEPT, Verdict.DUPLICATE, Verdict.OVER_USER_LIMIT


def verdicts(prompts: list[PromptText], users: list[str] | None = None, **rules) -> list[Verdict]:
    given = {"prefix_characters": 10, "prompts_per_user": 0, "prompts_repeat": False, **rules}
    judged = PromptRules(**given)
    return [judged.judge(prompt, user) for prompt, user in zip(prompts, users or ["u"] * len(prompts), strict=True)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Summarize: a cat", "Summarize: a dog", True),
        ("0123456789", "0123456789 and more", True),
        ("012345678", "012345678 and more", False),
        ("012345678", "012345678", True),
        ("0123456789a", "x0123456789a", False),
        ("SUMMARIZE: a", "summarize: b", True),
        ("Summarize:\n\n  a cat", " Summarize: a dog", True),
        ("caf\u00e9 cafe cafe", "cafe\u0301 cafe dogs", True),
        ("ﬁve whole things", "five whole dogs", True),
        ("ß" * 9 + "a", "s" * 18 + "b", True),
    ],
)
def test_what_makes_two_prompts_duplicates(one: str, other: str, same: bool) -> None:
    for pair in ([one, other], [other, one]):
        assert verdicts(pair) == [KEPT, DUPLICATE if same else KEPT]


def test_a_system_turn_is_no_common_prefix() -> None:
    system = ChatMessage(role="system", content="You are a helpful assistant, honest and harmless.")
    chats = [
        (system, ChatMessage(role="user", content=text)) for text in ("Tell me of cats", "And of dogs", "and of dogs")
    ]
    assert verdicts([*chats, "And of dogs"]) == [KEPT, KEPT, DUPLICATE, DUPLICATE]


def test_no_prefix_keeps_duplicates() -> None:
    assert verdicts(["same prompt"] * 3, prefix_characters=0) == [KEPT] * 3


def test_rankings_of_one_prompt_stay_together_and_count_once() -> None:
    prompts: list[PromptText] = ["Summarize: a cat", "Summarize: a dog", "Summarize: a cat", "another one", "a third"]
    found = verdicts(prompts, prompts_repeat=True, prompts_per_user=2)
    assert found == [KEPT, DUPLICATE, KEPT, KEPT, OVER]


def test_the_first_prompts_of_each_user_are_kept() -> None:
    prompts: list[PromptText] = [f"{number} a prompt" for number in range(8)]
    found = verdicts(prompts, ["a", "a", "b", "a", "b", "a", "b", "c"], prompts_per_user=2)
    assert found == [KEPT, KEPT, KEPT, OVER, KEPT, OVER, OVER, KEPT]


def test_a_row_left_out_is_nobodys_duplicate() -> None:
    """The prompt above the limit of one user may be kept of another."""
    prompts: list[PromptText] = ["the first prompt", "the second prompt", "the second prompt"]
    assert verdicts(prompts, ["a", "a", "b"], prompts_per_user=1) == [KEPT, OVER, KEPT]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["aaaab", "aaaac", "aaa", "b", "bbbbb"]), st.sampled_from("xyz")), max_size=20),
    st.integers(0, 20),
)
def test_rows_added_at_the_end_change_nothing_above(rows: list[tuple[str, str]], cut: int) -> None:
    def judge(some: list[tuple[str, str]]) -> list[Verdict]:
        return verdicts([row[0] for row in some], [row[1] for row in some], prefix_characters=4, prompts_per_user=2)

    assert judge(rows)[:cut] == judge(rows[:cut])


@pytest.mark.parametrize("field", ["prefix_characters", "prompts_per_user"])
def test_numbers_below_zero_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match="is -1; allowed: at least 0"):
        verdicts([], **{field: -1})


class TestUser:
    def read(self, row: dict[str, object], without_user="refuse") -> str:
        return user_of(row, "p", field="org", without_user=without_user)

    def test_names_and_numbers(self) -> None:
        assert self.read({"org": "7"}) == self.read({"org": 7}) != self.read({"org": 8})

    def test_without_one(self) -> None:
        for row in ({}, {"org": None}, {"org": ""}):
            with pytest.raises(DataError, match="org is missing"):
                self.read(row)
            assert self.read(row, "by-prompt") != user_of(row, "q", field="org", without_user="by-prompt")

    def test_no_user_can_pass_for_a_prompt(self) -> None:
        assert self.read({"org": self.read({}, "by-prompt")}) != self.read({}, "by-prompt")

    @pytest.mark.parametrize("value", [True, 1.5, ["a"]])
    def test_neither_text_nor_number(self, value: object) -> None:
        with pytest.raises(DataError, match="org must be a text or a number"):
            self.read({"org": value})


class TestSides:
    def test_shares(self) -> None:
        sides = Counter(side_of(f"user {number}", valid=0.1, test=0.2, seed=3) for number in range(20_000))
        # Four standard deviations of a binomial count.
        assert abs(sides["valid"] - 2000) < 4 * (20_000 * 0.1 * 0.9) ** 0.5
        assert abs(sides["test"] - 4000) < 4 * (20_000 * 0.2 * 0.8) ** 0.5

    def test_a_greater_share_moves_users_out_of_training_only(self) -> None:
        for number in range(2000):
            before = side_of(f"user {number}", valid=0.1, test=0.1, seed=0)
            after = side_of(f"user {number}", valid=0.2, test=0.1, seed=0)
            assert after == before or (before, after) == ("train", "valid")

    def test_it_is_the_same_everywhere(self) -> None:
        """Written down: another value would move the users of every data set that was split before."""
        found = [side_of(f"user {name}", valid=0.3, test=0.3, seed=1) for name in "abcdefgh"]
        assert found == "valid valid test train test test test train".split()
