"""Who learns from which rows: nothing on both sides, nothing lost, misspelt names refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import ConfigError, DataError
from trimtab.types import ChatMessage
from trimtab_trainer.data import Demonstration, Labeling, PromptRow, Ranking
from trimtab_trainer.data.records import prompt_key
from trimtab_trainer.data.splits import (
    AllBut,
    hold_out_labelers,
    in_groups,
    keep_categories,
    keep_groups,
    keep_sources,
    labeler_folds,
    set_apart,
    split_by_prompt,
    warn_of_misspelt,
)


def ranking(prompt: str, prompt_id: str = "", *labels: tuple[str, str], source: str = "s") -> Ranking:
    labelings = tuple(Labeling((0, 1), labeler, group) for labeler, group in labels or (("", ""),))
    return Ranking(prompt, ("a", "b"), labelings, prompt_id or prompt_key(prompt), source=source)


rows = st.lists(
    st.builds(ranking, st.sampled_from("abcdefgh"), st.sampled_from(["", "1", "2", "3", "4"])), min_size=1, max_size=40
)


@given(rows, st.floats(0, 1), st.integers(0, 5))
def test_no_prompt_and_no_id_is_on_both_sides_and_no_row_is_lost(
    rankings: list[Ranking], share: float, seed: int
) -> None:
    train, held_out = split_by_prompt(rankings, share, seed=seed)
    assert sorted(map(id, train + held_out)) == sorted(map(id, rankings))
    for key in (lambda row: row.prompt, lambda row: row.prompt_id):
        assert {key(row) for row in train}.isdisjoint(key(row) for row in held_out)


def test_a_prompt_is_on_the_same_side_in_every_file_and_form() -> None:
    texts = [f"prompt {number}" for number in range(2000)]
    _, held_out = split_by_prompt([ranking(text) for text in texts], 0.2, seed=1)
    _, demonstrations = split_by_prompt([Demonstration(text, "x") for text in reversed(texts)], 0.2, seed=1)
    turns = [PromptRow((ChatMessage(role="user", content=text),)) for text in texts]
    _, conversations = split_by_prompt(turns, 0.2, seed=1)
    chosen = {row.prompt for row in held_out}
    assert chosen == {row.prompt for row in demonstrations}
    assert chosen == {row.prompt[0].content for row in conversations if isinstance(row.prompt, tuple)}
    assert 340 < len(chosen) < 460  # 400 expected, standard deviation 18
    _, other = split_by_prompt([ranking(text) for text in texts], 0.2, seed=2)
    assert chosen != {row.prompt for row in other}


def test_the_shares_0_and_1() -> None:
    rankings = [ranking(text) for text in "abc"]
    assert split_by_prompt(rankings, 0.0, seed=0) == (rankings, [])
    assert split_by_prompt(rankings, 1.0, seed=0) == ([], rankings)


LABELLED = [
    ranking("a", "", ("ann", "expert"), ("bob", "crowd"), source="news"),
    ranking("b", "", ("bob", "crowd"), source="news"),
    ranking("c", "", ("eve", "crowd"), source="chat"),
]


def labels(rankings: Sequence[Ranking]) -> list[tuple[str, list[str]]]:
    return [(str(row.prompt), [one.labeler for one in row.labelings]) for row in rankings]


def test_groups_of_every_source_or_of_some() -> None:
    assert labels(keep_groups(LABELLED, None)) == labels(LABELLED)
    assert labels(keep_groups(LABELLED, ["expert"])) == [("a", ["ann"])]
    assert labels(keep_groups(LABELLED, {"news": ["expert"]})) == [("a", ["ann"]), ("c", ["eve"])]
    assert [in_groups("chat", "crowd", chosen) for chosen in (None, ["crowd"], ["expert"], {"news": ["expert"]})] == [
        True,
        True,
        False,
        True,
    ]


def test_sources_and_categories() -> None:
    assert [row.prompt for row in keep_sources(LABELLED, ["chat"])] == ["c"]
    prompts = [PromptRow("a", "qa"), PromptRow("b"), PromptRow("c", "rewrite")]
    assert keep_categories(prompts, ["qa", ""]) == prompts[:2]


def test_a_source_stands_for_its_subsets() -> None:
    rows = [ranking("a", source="hh/base"), ranking("b", source="hh/online"), ranking("c", source="hhh")]
    assert [row.prompt for row in keep_sources(rows, ["hh"])] == ["a", "b"]
    assert [row.prompt for row in keep_sources(rows, ["hh/base", "hhh"])] == ["a", "c"]
    assert [row.prompt for row in keep_groups([*rows, *LABELLED], {"hh": [""], "news": ["expert"]})][:3] == list("abc")
    assert in_groups("hh/base", "crowd", {"hh": ["crowd"]})
    assert not in_groups("hh/base", "crowd", {"hh": ["crowd"], "hh/base": ["expert"]})  # the nearer name counts
    with pytest.raises(DataError, match="no row has 'hh/bas'; they have hh, hh/base, hh/online, hhh"):
        keep_sources(rows, ["hh/bas"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: keep_groups(LABELLED, ["experts"]), "groups: no row has 'experts'; they have crowd, expert"),
        (lambda: keep_groups(LABELLED, {"new": ["expert"]}), "sources: no row has 'new'; they have chat, news"),
        (lambda: keep_groups(LABELLED, {"chat": ["expert"]}), "groups of chat: no row has 'expert'"),
        (lambda: keep_sources(LABELLED, ["blog"]), "sources: no row has 'blog'"),
        (lambda: keep_categories([PromptRow("a", "qa")], ["QA"]), "categories: no row has 'QA'; they have qa"),
        (lambda: keep_sources(LABELLED, [""]), "sources: no row is without one; they have chat, news"),
        (lambda: keep_sources([PromptRow("a")][:0], ["news"]), "sources: no row has 'news'; they have none"),
        (
            lambda: keep_categories([PromptRow("a", "qa"), PromptRow("b")], ["QA"]),
            "categories: no row has 'QA'; they have qa and some have none",
        ),
        (lambda: hold_out_labelers(LABELLED, ["zoe"]), "labelers: no row has 'zoe'; they have ann, bob, eve"),
    ],
)
def test_a_name_that_no_row_has_is_refused(call: object, words: str) -> None:
    assert callable(call)
    with pytest.raises(DataError) as caught:
        call()
    assert words in caught.value.message


def test_held_out_labelers_keep_the_ranking_on_both_sides() -> None:
    train, held_out = hold_out_labelers(LABELLED, ["bob"])
    assert labels(train) == [("a", ["ann"]), ("c", ["eve"])]
    assert labels(held_out) == [("a", ["bob"]), ("b", ["bob"])]


def test_folds_cover_every_labeler_once() -> None:
    rankings = [ranking("p", "", *((f"l{number}", "") for number in range(13)))]
    folds = labeler_folds(rankings, 5, seed=3)
    assert sorted(map(len, folds)) == [2, 2, 3, 3, 3]
    assert sorted(name for fold in folds for name in fold) == sorted(f"l{number}" for number in range(13))
    assert folds == labeler_folds(rankings, 5, seed=3) != labeler_folds(rankings, 5, seed=4)
    with pytest.raises(ConfigError, match="folds is 1"):
        labeler_folds(rankings, 1, seed=0)
    with pytest.raises(DataError, match="3 known labelers cannot make 4 folds"):
        labeler_folds(LABELLED, 4, seed=0)


def test_every_group_but_one() -> None:
    rankings = [ranking("a", "", ("ann", ""), ("cat", "heldout")), ranking("b", "", ("cat", "heldout"))]
    assert labels(keep_groups(rankings, AllBut(("heldout",)))) == [("a", ["ann"])]
    assert keep_groups(rankings, AllBut(("nobody",))) == rankings


def test_a_group_that_is_spelt_otherwise_than_the_held_out_one_is_told() -> None:
    told: list[str] = []
    learnt = ("held_out", "heldout 2", "held out by us", "", "heldout", "Held-Out")
    warn_of_misspelt(Path("rows.jsonl"), learnt, ["heldout"], told.append)
    assert [one.split(" are learnt")[0] for one in told] == [
        f"rows.jsonl: labels of the group {name}" for name in ("Held-Out", "held_out", "heldout 2")
    ]
    warn_of_misspelt(Path("rows.jsonl"), learnt, [], told.append)
    assert len(told) == 3


def test_rows_of_held_out_groups_are_set_apart_where_nothing_else_has_their_prompt() -> None:
    ann, cat = ("ann", ""), ("cat", "heldout")
    both, theirs, seen = ranking("a", "", ann, cat), ranking("b", "", cat), ranking("a", "", cat)
    joined, by_id = ranking("c", "1", ann), ranking("d", "1", cat)

    def groups(row: Ranking) -> set[str]:
        return {one.group for one in row.labelings}

    kept, apart = set_apart([both, theirs, seen, joined, by_id], groups, ["heldout"])
    assert kept == [both, joined] and apart == [theirs]
    assert set_apart([both, theirs], groups, []) == ([both, theirs], [])
