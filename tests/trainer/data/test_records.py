"""Every form that a row may have, read into the one form that the trainer works with."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import DataError
from trimtab.types import ChatMessage
from trimtab_trainer.data.records import Demonstration, Labeling, Passage, PromptRow, Ranking, prompt_key

HI = {"role": "user", "content": "hi"}


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def assistant(text: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=text)


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def ranking(**fields) -> Ranking:
    return Ranking.from_row(fields)


# Demonstrations, prompts, passages


def test_demonstration() -> None:
    row = {"prompt": "2+2?", "completion": "4", "category": "math", "source": "us", "user": "u1", "anything": 3}
    assert Demonstration.from_row(row) == Demonstration("2+2?", "4", "math", "us")
    assert Demonstration.from_row({"messages": [HI], "completion": "yo"}).prompt == (user("hi"),)


def test_prompt_row() -> None:
    assert PromptRow.from_row({"prompt": "  keep my spaces "}).prompt == "  keep my spaces "
    turns = [{"role": "system", "content": "be kind"}, HI, said("yo"), {"role": "user", "content": "and now?"}]
    assert PromptRow.from_row({"messages": turns}).prompt == tuple(map(ChatMessage.model_validate, turns))
    assert PromptRow.from_row({"prompt": [HI]}).prompt == (user("hi"),)  # TRL's conversational prompt


@pytest.mark.parametrize(
    ("more", "source"),
    [({}, ""), ({"source": "hh"}, "hh"), ({"source": "hh", "subset": "base"}, "hh/base"), ({"subset": "base"}, "")],
)
def test_a_subset_is_part_of_the_source(more: dict[str, str], source: str) -> None:
    assert PromptRow.from_row({"prompt": "a", **more}).source == source
    assert Ranking.from_row({"prompt": "a", "chosen": "b", "rejected": "c", **more}).source == source


def test_a_subset_that_is_no_text_names_nothing() -> None:
    assert PromptRow.from_row({"prompt": "a", "source": "hh", "subset": 3}).source == "hh"


def test_a_pair_keeps_its_labeler() -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "labeler": "ann", "group": "expert"}
    assert Ranking.from_row(row).labelings == (Labeling((0, 1), "ann", "expert"),)


def test_passage() -> None:
    assert Passage.from_row({"text": "once\n upon"}) == Passage("once\n upon")


def test_context_comes_before_the_question() -> None:
    assert PromptRow.from_row({"context": "C", "prompt": "Q"}).prompt == "C\n\nQ"
    assert PromptRow.from_row({"context": None, "prompt": "Q"}).prompt == "Q"
    turns = [HI, said("yo"), {"role": "user", "content": "Q"}]
    assert PromptRow.from_row({"context": "C", "messages": turns}).prompt == (
        user("hi"),
        assistant("yo"),
        user("C\n\nQ"),
    )
    assert ranking(context="C", prompt="Q", answers=["a", "b"], ranks=[1, 2]).prompt == "C\n\nQ"
    assert ranking(context="C", chosen=[HI, said("a")], rejected=[HI, said("b")]).prompt == (user("C\n\nhi"),)


# Rankings


def test_labels_of_several_labelers() -> None:
    labels = [
        {"labeler": "ann", "group": "train", "ranking": [[2], [0, 3], [1]]},
        {"ranking": [[0, 1, 2, 3]]},
    ]
    found = ranking(prompt="p", answers=list("abcd"), labels=labels, prompt_id="p-1")
    assert found.answers == ("a", "b", "c", "d") and found.prompt_id == "p-1"
    assert found.labelings == (Labeling((1, 2, 0, 1), "ann", "train"), Labeling((0, 0, 0, 0)))


def test_ranks_of_one_labeler() -> None:
    found = ranking(prompt="p", answers=list("abc"), ranks=[7, 1, 7], labeler="ann")
    assert found.labelings == (Labeling((1, 0, 1), "ann"),)


@pytest.mark.parametrize("prompt_id", [0, 17, "17"])
def test_prompt_id_of_numbers(prompt_id) -> None:
    assert ranking(prompt="p", answers=["a", "b"], ranks=[1, 2], prompt_id=prompt_id).prompt_id == str(prompt_id)


def test_equal_prompts_have_equal_keys() -> None:
    one, two = (ranking(prompt="p", answers=["a", x], ranks=[1, 2]) for x in "bc")
    assert one.prompt_id == two.prompt_id == prompt_key("p") == prompt_key((user("p"),))
    assert prompt_key((user("p"), assistant("a"), user("p"))) not in (prompt_key("p"), prompt_key((user("q"),)))


CHOSEN = (("yes", "no"), (Labeling((0, 1)),))


def test_trl_texts() -> None:
    found = ranking(prompt="ok?", chosen=" yes", rejected="no\n")
    assert (found.prompt, found.answers, found.labelings) == ("ok?", *CHOSEN)


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [HI, said("yes")], "rejected": [HI, said("no")]},
        {"prompt": "hi", "chosen": [HI, said("yes")], "rejected": [HI, said("no")]},
        {"prompt": [HI], "chosen": [HI, said("yes")], "rejected": [HI, said("no")]},
        {"prompt": [HI], "chosen": [said("yes")], "rejected": [said("no")]},
        {"messages": [HI], "chosen": [said("yes")], "rejected": [said("no")]},
        # binarised UltraFeedback: `messages` is the chosen dialogue once more
        {
            "prompt": "hi",
            "messages": [HI, said("yes")],
            "chosen": [HI, said("yes")],
            "rejected": [HI, said("no")],
        },
    ],
)
def test_trl_turns(row) -> None:
    found = Ranking.from_row(row)
    assert (found.prompt, found.answers, found.labelings) == ((user("hi"),), *CHOSEN)


@pytest.mark.parametrize("start", ["\n\n", ""])
def test_hh_transcripts(start: str) -> None:
    dialogue = f"{start}Human: hi\n\nAssistant: hello\n\nHuman: ok?\n\nAssistant:"
    found = ranking(chosen=f"{dialogue} yes", rejected=f"{dialogue} no")
    assert (found.answers, found.labelings) == CHOSEN
    assert found.prompt == (user("hi"), assistant("hello"), user("ok?"))


def test_nemo_rl() -> None:
    found = ranking(
        context=[HI],
        completions=[{"rank": r, "completion": [said(t)]} for r, t in ((1, "b"), (0, "a"), (1, "c"))],
    )
    assert found.prompt == (user("hi"),) and found.answers == ("b", "a", "c")
    assert found.labelings == (Labeling((1, 0, 1)),)


@pytest.mark.parametrize("whole", [int, float])
def test_nectar(whole) -> None:
    answers = [{"answer": text, "model": "m", "rank": whole(rank)} for text, rank in (("b", 2), ("a", 1), ("c", 3))]
    found = ranking(prompt="\n\nHuman: hi\n\nAssistant: ", answers=answers)
    assert found.prompt == (user("hi"),) and found.answers == ("b", "a", "c")
    assert found.labelings == (Labeling((1, 0, 2)),)
    assert ranking(prompt="plain", answers=answers).prompt == "plain"


@pytest.mark.parametrize("k", range(2, 10))
def test_allowed_numbers_of_answers(k: int) -> None:
    assert len(ranking(prompt="p", answers=["a"] * k, ranks=list(range(k))).answers) == k


@pytest.mark.parametrize("k", [0, 1, 10])
def test_other_numbers_of_answers_are_refused(k: int) -> None:
    with pytest.raises(DataError, match=f"K is {k}; allowed: 2..9"):
        ranking(prompt="p", answers=["a"] * k, ranks=list(range(k)))


TWO = {"prompt": "p", "answers": ["a", "b"]}


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (TWO, "labels"),
        (TWO | {"labels": [{"ranking": [[0], [1]]}], "ranks": [1, 2]}, "labels"),
        (TWO | {"labels": []}, "labels"),
        (TWO | {"labels": [[0, 1]]}, "labels[0]"),
        (TWO | {"labels": [{"ranking": [[0]]}]}, "labels[0].ranking"),
        (TWO | {"labels": [{"ranking": [[0], [1], [1]]}]}, "labels[0].ranking"),
        (TWO | {"labels": [{"ranking": [[0, 0], [1]]}]}, "labels[0].ranking"),
        (TWO | {"labels": [{"ranking": [[0], [2]]}]}, "labels[0].ranking"),
        (TWO | {"labels": [{"ranking": [[0], [-1]]}]}, "labels[0].ranking"),
        (TWO | {"labels": [{"ranking": [[0], [], [1]]}]}, "labels[0].ranking[1]"),
        (TWO | {"labels": [{"ranking": [0, 1]}]}, "labels[0].ranking[0]"),
        (TWO | {"labels": [{"ranking": [[True], [0]]}]}, "labels[0].ranking[0]"),
        (TWO | {"labels": [{"ranking": "01"}]}, "labels[0].ranking"),
        (TWO | {"labels": [{"ranking": [[0], [1]], "group": 3}]}, "labels[0].group"),
        (TWO | {"ranks": [1, 2, 3]}, "ranks"),
        (TWO | {"ranks": [1, 1.5]}, "ranks"),
        (TWO | {"ranks": "12"}, "ranks"),
        (TWO | {"ranks": [1, 2], "prompt_id": [1]}, "prompt_id"),
        (TWO | {"ranks": [1, 2], "context": ["C"]}, "context"),
        ({"prompt": "p", "answers": ["a", " "], "ranks": [1, 2]}, "answers[1]"),
        ({"prompt": "p", "answers": ["a", None], "ranks": [1, 2]}, "answers[1]"),
        ({"prompt": "p", "answers": ["a", {"answer": "b"}], "ranks": [1, 2]}, "answers[1]"),
        ({"prompt": "p", "answers": [{"answer": "b", "rank": 1}, "a"]}, "answers"),
        ({"prompt": "p", "answers": [{"answer": "b", "rank": 1}, {"rank": 2}]}, "answers[1].answer"),
        ({"prompt": "p", "answers": "ab", "ranks": [1, 2]}, "answers"),
        ({"prompt": "p", "answers": ["a", "\ud800"], "ranks": [1, 2]}, "answers[1]"),
        ({"prompt": "p", "chosen": "a"}, "rejected"),
        ({"prompt": "p", "chosen": "a", "rejected": [said("b")]}, "rejected"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt"),
        ({"chosen": "no transcript", "rejected": "b"}, "chosen"),
        ({"chosen": [said("a")], "rejected": [said("b")]}, "prompt"),
        ({"chosen": [HI, said("a")], "rejected": [{"role": "user", "content": "ho"}, said("b")]}, "rejected"),
        ({"prompt": "other", "chosen": [HI, said("a")], "rejected": [HI, said("b")]}, "prompt"),
        ({"chosen": [HI], "rejected": [HI]}, "chosen"),
        ({"chosen": [HI, said("x"), said("a")], "rejected": [HI, said("x"), said("b")]}, "chosen"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"},
            "rejected",
        ),
        ({"context": [HI], "completions": "ab"}, "completions"),
        (
            {"context": [HI], "completions": [{"rank": 0, "completion": [HI]}, {"rank": 1, "completion": [said("a")]}]},
            "completions[0].completion",
        ),
        (
            {"context": [HI], "completions": [{"completion": [said("a")]}, {"rank": 1, "completion": [said("a")]}]},
            "completions[].rank",
        ),
        ({"context": "C", "completions": [{"rank": 0, "completion": [said("a")]}]}, "context"),
    ],
)
def test_refused_ranking(row, field: str) -> None:
    with pytest.raises(DataError) as caught:
        Ranking.from_row(row)
    assert caught.value.field == field
    assert caught.value.message.startswith(field)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "half \udc00"}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": HI}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role"),
        ({"messages": [HI, {"role": "assistant"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        ({"messages": [HI, said("yo")]}, "messages"),
        ({"prompt": [HI, said("yo")]}, "prompt"),
        ({"prompt": "p", "category": 3}, "category"),
    ],
)
def test_refused_prompt(row, field: str) -> None:
    with pytest.raises(DataError) as caught:
        PromptRow.from_row(row)
    assert caught.value.field == field


def test_a_value_of_any_depth_can_be_told() -> None:
    for depth in range(1, 900, 60):
        with pytest.raises(DataError):
            PromptRow.from_row(json.loads('{"prompt": {"a": ' + "[" * depth + "]" * depth + "}}"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "rank"]), inner),
    max_leaves=6,
)
KEYS = [
    "prompt",
    "messages",
    "context",
    "answers",
    "labels",
    "ranks",
    "chosen",
    "rejected",
    "completions",
    "completion",
]


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_any_row_is_read_or_refused(row) -> None:
    for kind in (Ranking, Demonstration, PromptRow, Passage):
        try:
            kind.from_row(row)
        except DataError as error:
            assert error.field
