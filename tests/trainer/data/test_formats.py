"""Importers and exporters of the public formats: documented samples, round trips, and the real data."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from real_data import real
from trimtab.errors import ConfigError, DataError
from trimtab.types import ChatMessage
from trimtab_trainer.data import read_demonstrations, read_prompts, read_rankings
from trimtab_trainer.data.formats import FORMATS, export_file, import_file
from trimtab_trainer.data.formats.canonical import canonical_row
from trimtab_trainer.data.records import KINDS, Demonstration, Labeling, PromptText, Ranking, turns_of

READ = {"rankings": read_rankings, "demonstrations": read_demonstrations, "prompts": read_prompts}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def imported(folder: Path, name: str, kind: str, rows: list[dict[str, Any]], **options: Any) -> list[Any]:
    output = folder / f"{len(os.listdir(folder))}.jsonl"
    import_file(name, kind, write(folder / f"in-{output.name}", rows), output, warn=print, **options)
    return READ[kind](output)


def exported(folder: Path, name: str, kind: str, records: list[Any]) -> list[dict[str, Any]]:
    output = folder / f"{len(os.listdir(folder))}.jsonl"
    file = write(folder / f"in-{output.name}", [canonical_row(record) for record in records])
    export_file(name, kind, file, output, warn=print)
    return [json.loads(line) for line in output.read_bytes().splitlines()]


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def assistant(text: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=text)


HH = "\n\nHuman: Hi there\n\nAssistant: Hello!\n\nHuman: Who are you?\n\nAssistant: "
POST = {"id": "t3_1", "post": "I had a car accident.\n\nWhat now?", "title": "Car", "subreddit": "legaladvice"}
SUMMARIES = [
    {"text": " Hit by a car.", "policy": "sup2", "note": "ok"},
    {"text": " Cars.", "policy": "ref", "note": ""},
]
COMPARISON = {"info": POST, "summaries": SUMMARIES, "choice": 1, "worker": "w1", "batch": "b", "split": "train"}


def message(
    text: str, role: str = "assistant", replies: tuple[dict[str, Any], ...] = (), **more: Any
) -> dict[str, Any]:
    about = {"lang": "en", "review_result": True, "deleted": False, "synthetic": False}
    return {"message_id": f"id of {text}", "text": text, "role": role, **about, **more, "replies": list(replies)}


def tree(prompt: dict[str, Any]) -> dict[str, Any]:
    return {"message_tree_id": prompt["message_id"], "tree_state": "ready_for_export", "prompt": prompt}


def published_message(name: str, role: str, parent: str | None, **more: Any) -> dict[str, Any]:
    """With every field of a message of the published trees; the ones that are not known are null."""
    made: dict[str, Any] = {"message_id": f"{name}-id", "parent_id": parent, "user_id": f"user of {name}"}
    made |= {"created_date": "2023-02-05T14:23:50.983374+00:00", "text": name, "role": role, "lang": "en"}
    made |= {"review_count": 3, "review_result": True, "deleted": False, "rank": None, "synthetic": False}
    made |= {"model_name": None, "detoxify": {"toxicity": 0.0004}, "emojis": {"+1": 4}, "replies": []}
    made |= {"labels": {"spam": {"value": 0.0, "count": 3}, "quality": {"value": 0.75, "count": 3}}, "events": None}
    return made | more


class TestPublishedForms:
    """Rows written by hand with every field of the published files, whose own bytes are no part of the project."""

    def test_a_tree_of_openassistant(self, tmp_path: Path) -> None:
        again = published_message("Why?", "prompter", "Because.-id", review_result=None, replies=None)
        replies = [
            published_message("So it is.", "assistant", "Why not?-id", rank=1, deleted=None, synthetic=None),
            published_message("Because.", "assistant", "Why not?-id", rank=0, replies=[again]),
            published_message("Buy this!", "assistant", "Why not?-id", review_result=False),
            published_message("As a model", "assistant", "Why not?-id", rank=2, synthetic=True, model_name="some"),
        ]
        root = published_message("Why not?", "prompter", None, replies=replies, emojis=None, labels=None, user_id=None)
        row = {"message_tree_id": "Why not?-id", "tree_state": "ready_for_export", "prompt": root, "origin": "web"}
        (ranked,) = imported(tmp_path, "openassistant", "rankings", [row])
        assert (turns_of(ranked.prompt), ranked.answers) == ((user("Why not?"),), ("Because.", "So it is."))
        assert (ranked.prompt_id, ranked.labelings[0].ranks) == ("Why not?-id", (0, 1))
        prompts = imported(tmp_path, "openassistant", "prompts", [row])
        assert [len(turns_of(one.prompt)) for one in prompts] == [1, 3]

    def test_comparisons_of_summarize_from_feedback(self, tmp_path: Path) -> None:
        """A line of the authors' own files, and rows of the Hugging Face data set, where each has every field."""
        own = {**COMPARISON, "batch": "batch6", "extra": {"confidence": 8}}
        absent = dict.fromkeys(("post", "title", "subreddit", "site", "article"))
        about = {"worker": "w2", "batch": "cnndm0", "split": "valid1", "extra": {"confidence": None}}
        news = {"id": "f37fd", "site": "cnndm", "article": "It rained.\n\nAll day."}
        rows = [
            own,
            {**COMPARISON, **about, "info": absent | POST, "choice": 0},
            {**COMPARISON, **about, "info": absent | news, "choice": 0},
        ]
        found = imported(tmp_path, "summarize-from-feedback", "rankings", rows)
        assert found[0].prompt == found[1].prompt and found[1].prompt.startswith("SUBREDDIT: r/legaladvice")
        assert found[2].prompt == "Article: It rained.\n\nAll day.\n\nTL;DR:"
        assert [one.labelings[0].ranks for one in found] == [(1, 0), (0, 1), (0, 1)]
        assert [one.prompt_id for one in found] == ["t3_1", "t3_1", "f37fd"]


class TestSamples:
    def test_hh_rlhf(self, tmp_path: Path) -> None:
        (one,) = imported(tmp_path, "hh-rlhf", "rankings", [{"chosen": f"{HH}A robot.", "rejected": f"{HH}No."}])
        assert one.prompt == (user("Hi there"), assistant("Hello!"), user("Who are you?"))
        assert (one.answers, one.labelings[0].ranks) == (("A robot.", "No."), (0, 1))

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"chosen": f"{HH}a", "rejected": "\n\nHuman: Hi\n\nAssistant: a"}, "rejected must have the same dialogue"),
            ({"chosen": f"{HH}a", "rejected": HH}, "rejected must not be empty"),
            ({"chosen": "a", "rejected": "b", "prompt": "p"}, "chosen without `prompt` it must be a transcript"),
            ({"chosen": [], "rejected": []}, "chosen must be a transcript, found list"),
            ({"chosen": f"{HH}a"}, "rejected must be a transcript, found NoneType"),
        ],
    )
    def test_hh_rlhf_refused(self, tmp_path: Path, row: dict[str, Any], reason: str) -> None:
        with pytest.raises(DataError, match=f"jsonl:1: {reason}"):
            imported(tmp_path, "hh-rlhf", "rankings", [row])

    def test_summarize_from_feedback(self, tmp_path: Path) -> None:
        news = {**COMPARISON, "info": {"id": "n", "article": "It rained.", "site": "cnn"}, "choice": 0}
        one, other = imported(tmp_path, "summarize-from-feedback", "rankings", [COMPARISON, news], source="s")
        assert one.prompt == (
            "SUBREDDIT: r/legaladvice\n\nTITLE: Car\n\nPOST: I had a car accident.\n\nWhat now?\n\nTL;DR:"
        )
        assert other.prompt == "Article: It rained.\n\nTL;DR:"
        assert one.answers == ("Hit by a car.", "Cars.") and one.labelings == (Labeling((1, 0), "w1"),)
        assert (one.prompt_id, one.category, one.source) == ("t3_1", "summarization", "s")

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"choice": 2}, "choice is 2; allowed: 0 or 1"),
            ({"choice": None}, "choice is None"),
            ({"summaries": SUMMARIES[:1]}, "summaries must be two objects"),
            ({"summaries": [{}, {}]}, r"summaries\[0\].text is missing"),
            ({"info": {"id": "a"}}, "info.post is missing"),
            ({"info": {"post": "a", "title": 3, "subreddit": "s"}}, "info.title must be a text, found int"),
            ({"info": None}, "info must be an object"),
        ],
    )
    def test_summarize_from_feedback_refused(self, tmp_path: Path, change: dict[str, Any], reason: str) -> None:
        with pytest.raises(DataError, match=f"jsonl:1: {reason}"):
            imported(tmp_path, "summarize-from-feedback", "rankings", [{**COMPARISON, **change}])

    def test_openassistant(self, tmp_path: Path) -> None:
        follow_up = message("And then?", "prompter", (message("So.", rank=1), message("Thus.", rank=0)), user_id="u2")
        replies = (
            message("Second.", rank=1, replies=(follow_up,)),
            message("First.", rank=0),
            message("Not ranked."),
            message("By a model.", rank=2, synthetic=True),
            message("Deleted.", rank=3, deleted=True),
            message("Spam.", rank=4, review_result=False),
        )
        rows = [tree(message("Why?", "prompter", replies, user_id="u1"))]
        first, second = imported(tmp_path, "openassistant", "rankings", rows)
        assert turns_of(first.prompt) == (user("Why?"),) and first.prompt_id == "id of Why?"
        assert (first.answers, first.labelings[0].ranks) == (("First.", "Second."), (0, 1))
        assert second.prompt == (user("Why?"), assistant("Second."), user("And then?"))
        assert second.answers == ("Thus.", "So.")
        demonstrations = imported(tmp_path, "openassistant", "demonstrations", rows)
        assert [one.completion for one in demonstrations] == ["First.", "Thus."]
        assert len(imported(tmp_path, "openassistant", "prompts", rows)) == 2
        kept = [json.loads(line) for line in (tmp_path / "0.jsonl").read_bytes().splitlines()]
        assert [(row["user"], row.get("lang")) for row in kept] == [("u1", "en"), ("u2", "en")]

    def test_more_than_nine_answers_are_dealt_out(self, tmp_path: Path) -> None:
        replies = tuple(message(f"answer {rank}", rank=rank) for rank in range(20))
        found = imported(tmp_path, "openassistant", "rankings", [tree(message("Why?", "prompter", replies))])
        assert [len(one.answers) for one in found] == [7, 7, 6] and {one.prompt_id for one in found} == {"id of Why?"}
        assert sorted(answer for one in found for answer in one.answers) == sorted(reply["text"] for reply in replies)
        assert all(one.labelings[0].ranks == tuple(range(len(one.answers))) for one in found)

    @pytest.mark.parametrize(
        ("prompt", "reason"),
        [
            (None, "prompt must be the message at the root"),
            (message("a", "robot"), "prompt.role must be prompter or assistant"),
            (message(" ", "prompter"), "prompt.text must be a text"),
            (message("a", "prompter", (message("b", rank="1"),)), r"prompt.replies\[0\].rank must be a whole number"),
            (message("a", "prompter", ("b",)), r"prompt.replies\[0\] must be a message"),  # type: ignore[arg-type]
            ({**message("a", "prompter"), "replies": "b"}, "prompt.replies must be a list"),
        ],
    )
    def test_openassistant_refused(self, tmp_path: Path, prompt: Any, reason: str) -> None:
        with pytest.raises(DataError, match=f"jsonl:1: {reason}"):
            imported(tmp_path, "openassistant", "rankings", [{"prompt": prompt}])

    def test_a_tree_of_any_depth(self, tmp_path: Path) -> None:
        node = message("end", "prompter", (message("a", rank=0), message("b", rank=1)))
        for depth in range(100):
            node = message(f"turn {depth}", ("assistant", "prompter")[depth % 2], (node,))
        (found,) = imported(tmp_path, "openassistant", "rankings", [tree(node)])
        assert len(found.prompt) == 101

    def test_trl(self, tmp_path: Path) -> None:
        question, blue, green = ([turn(role, text)] for role, text in QUESTION)
        rows = [
            {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
            {"prompt": question, "chosen": blue, "rejected": green},
            {"chosen": question + blue, "rejected": question + green},
        ]
        plain, *conversational = imported(tmp_path, "trl", "rankings", rows)
        assert (plain.prompt, plain.answers) == ("The sky is", ("blue.", "green."))
        for one in conversational:
            assert (one.prompt, one.answers) == ((user("What color is the sky?"),), ("It is blue.", "It is green."))
        rows = [{"prompt": "The sky is", "completion": " blue."}, {"prompt": question, "completion": blue}]
        assert [one.completion for one in imported(tmp_path, "trl", "demonstrations", rows)] == [
            " blue.",
            "It is blue.",
        ]
        assert len(imported(tmp_path, "trl", "prompts", [{"prompt": "The sky is"}, {"prompt": question}])) == 2

    @pytest.mark.parametrize(
        ("kind", "row", "reason"),
        [
            ("rankings", {"prompt": "a", "chosen": "b"}, "rejected is missing"),
            ("rankings", {"prompt": "a", "completion": "b", "label": True}, "rejected is missing"),
            ("rankings", {"prompt": "a", "chosen": "b", "rejected": ["c"]}, "rejected must be a text"),
            ("demonstrations", {"prompt": "a", "completion": []}, "completion must be a text or one turn"),
            ("demonstrations", {"prompt": "a"}, "completion is missing"),
        ],
    )
    def test_trl_refused(self, tmp_path: Path, kind: str, row: dict[str, Any], reason: str) -> None:
        with pytest.raises(DataError, match=f"jsonl:1: {reason}"):
            imported(tmp_path, "trl", kind, [row])


QUESTION = (("user", "What color is the sky?"), ("assistant", "It is blue."), ("assistant", "It is green."))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CHAT: PromptText = (user("Hi"), assistant("Hello!"), user("Who are\n\nyou?"))
PAIRS = [
    Ranking("one prompt", ("a", "b"), (Labeling((0, 1), "x", "g"),), prompt_id="1", category="chat", source="s"),
    Ranking(CHAT, ("good\n\nanswer", "bad"), (Labeling((0, 1)),), prompt_id="2"),
]
MANY = [
    Ranking("p", ("a", "b", "c"), (Labeling((1, 0, 2), "x"), Labeling((0, 0, 1), "y")), prompt_id="1"),
    Ranking("q", ("a", "b"), (Labeling((0, 0)),), prompt_id="2"),
]
DEMONSTRATIONS = [Demonstration("p", "a\nb", "chat", "s"), Demonstration(CHAT, "c")]


def decided(records: list[Ranking]) -> Counter[tuple[str, ...]]:
    """Every decided pair by every labeler: what a format of pairs can hold."""
    return Counter(
        (str(turns_of(record.prompt)), *(record.answers[place] for place in sorted(pair, key=said.ranks.__getitem__)))
        for record in records
        for said in record.labelings
        for pair in combinations(range(len(record.answers)), 2)
        if len({said.ranks[place] for place in pair}) == 2
    )


class TestRoundTrips:
    def test_our_own_form(self) -> None:
        for record in (*PAIRS, *MANY, *DEMONSTRATIONS):
            assert type(record).from_row(json.loads(json.dumps(canonical_row(record)))) == record

    def test_trl_keeps_all_of_a_pair_and_of_a_demonstration(self, tmp_path: Path) -> None:
        again = imported(tmp_path, "trl", "rankings", exported(tmp_path, "trl", "rankings", PAIRS))
        assert again == PAIRS
        again = imported(tmp_path, "trl", "demonstrations", exported(tmp_path, "trl", "demonstrations", DEMONSTRATIONS))
        assert again == DEMONSTRATIONS

    @pytest.mark.parametrize("name", ["trl", "hh-rlhf"])
    def test_decided_pairs_survive(self, tmp_path: Path, name: str) -> None:
        records = [*PAIRS, *MANY]
        assert decided(imported(tmp_path, name, "rankings", exported(tmp_path, name, "rankings", records))) == decided(
            records
        )

    def test_summaries(self, tmp_path: Path) -> None:
        name = "summarize-from-feedback"
        rows = [COMPARISON, {**COMPARISON, "info": {"id": "n", "article": "It\n\nrained."}}]
        first = imported(tmp_path, name, "rankings", rows)
        again = imported(tmp_path, name, "rankings", exported(tmp_path, name, "rankings", first))
        assert [one.prompt for one in again] == [one.prompt for one in first] and decided(again) == decided(first)
        assert [one.labelings[0].labeler for one in again] == ["w1", "w1"]
        assert decided(imported(tmp_path, name, "rankings", exported(tmp_path, name, "rankings", MANY))) == decided(
            MANY
        )
        with pytest.raises(DataError, match="the format has a post, no conversation"):
            exported(tmp_path, name, "rankings", [PAIRS[1]])

    def test_trees(self, tmp_path: Path) -> None:
        records = [*PAIRS, Ranking("p", ("a", "b", "c"), (Labeling((1, 0, 2)), Labeling((2, 1, 0))), prompt_id="3")]
        rows = exported(tmp_path, "openassistant", "rankings", records)
        again = imported(tmp_path, "openassistant", "rankings", rows)
        assert decided(again) == decided(records) and [one.prompt_id for one in again] == ["1", "2", "3", "3"]
        assert len({row["message_tree_id"] for row in rows}) == 4
        again = imported(
            tmp_path,
            "openassistant",
            "demonstrations",
            exported(tmp_path, "openassistant", "demonstrations", DEMONSTRATIONS),
        )
        assert [(turns_of(one.prompt), one.completion) for one in again] == [
            (turns_of(one.prompt), one.completion) for one in DEMONSTRATIONS
        ]
        with pytest.raises(DataError, match=r"labels\[1\] has ties"):
            exported(tmp_path, "openassistant", "rankings", MANY[:1])

    @pytest.mark.parametrize(
        "prompt",
        ["a\n\nHuman: b", "a\n\nAssistant: b", " a", (ChatMessage(role="system", content="s"), user("a"))],
        ids=["a speaker", "another", "spaces", "system"],
    )
    def test_what_a_transcript_cannot_hold_is_refused(self, tmp_path: Path, prompt: PromptText) -> None:
        with pytest.raises(DataError, match="jsonl:1: messages"):
            exported(tmp_path, "hh-rlhf", "rankings", [Ranking(prompt, ("a", "b"), (Labeling((0, 1)),), prompt_id="1")])

    TEXT = st.text(st.sampled_from("aB \n:é🙂"), min_size=1, max_size=12).map(lambda text: f"x{text}x")

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(prompt=st.lists(TEXT, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2), data=st.data())
    def test_any_ranking(self, tmp_path: Path, prompt: list[str], data: st.DataObject) -> None:
        turns = tuple((user, assistant)[place % 2](text) for place, text in enumerate(prompt))
        answers = tuple(data.draw(st.lists(self.TEXT, min_size=2, max_size=5, unique=True)))
        ranks = tuple(data.draw(st.permutations(range(len(answers)))))
        records = [Ranking(turns, answers, (Labeling(ranks),), prompt_id="1")]
        for name in ("trl", "hh-rlhf", "openassistant"):
            again = imported(tmp_path, name, "rankings", exported(tmp_path, name, "rankings", records))
            assert decided(again) == decided(records), name


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "text", "rank", "replies", "content", "message_id"]), inner)
    ),
    max_leaves=8,
)
KEYS = ["prompt", "chosen", "rejected", "completion", "info", "summaries", "choice", "messages"]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_any_row_is_read_or_refused(row: dict[str, Any]) -> None:
    for found in FORMATS.values():
        for kind in found.kinds:
            try:
                for made in found.read(kind, row):
                    KINDS[kind].from_row(made)
            except DataError as error:
                assert error.field


class TestFiles:
    def test_bad_rows_are_told_and_tolerated(self, tmp_path: Path) -> None:
        rows = [COMPARISON, {**COMPARISON, "choice": 7}, COMPARISON]
        file, output = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
        told: list[str] = []
        with pytest.raises(DataError, match="in.jsonl:2: choice is 7"):
            import_file("summarize-from-feedback", "rankings", file, output, warn=told.append)
        assert not output.exists()
        done = import_file("summarize-from-feedback", "rankings", file, output, skip_bad_rows=1, warn=told.append)
        assert (done.read, done.written, done.without_rows) == (2, 2, 0) and len(told) == 1

    def test_rows_of_which_nothing_comes_are_counted(self, tmp_path: Path) -> None:
        file = write(tmp_path / "in.jsonl", [canonical_row(record) for record in MANY])
        done = export_file("trl", "rankings", file, tmp_path / "out.jsonl", warn=print)
        assert (done.read, done.written, done.without_rows) == (2, 5, 1)
        tied = write(tmp_path / "tied.jsonl", [canonical_row(MANY[1])])
        with pytest.raises(DataError, match="no row came of its 1 rows"):
            export_file("trl", "rankings", tied, tmp_path / "none.jsonl", warn=print)
        assert not (tmp_path / "none.jsonl").exists()

    def test_a_kind_that_a_format_has_not(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="kind is prompts; hh-rlhf has rankings"):
            import_file("hh-rlhf", "prompts", tmp_path / "in", tmp_path / "out", warn=print)


class TestRealFiles:
    def test_comparisons_in_the_form_of_trl(self, tmp_path: Path) -> None:
        file = real("comparisons.jsonl.gz")
        done = import_file("trl", "rankings", file, tmp_path / "ours.jsonl.gz", warn=print)
        records = read_rankings(tmp_path / "ours.jsonl.gz")
        assert done.read == done.written == len(records) and records == read_rankings(file)
        some = records[::20]
        assert imported(tmp_path, "trl", "rankings", exported(tmp_path, "trl", "rankings", some)) == some

    def test_hh_rlhf_as_it_was_published(self, tmp_path: Path) -> None:
        with gzip.open(real("comparisons.jsonl.gz")) as rows:
            comparisons = [row for row in map(json.loads, rows) if row["source"] == "anthropics/hh-rlhf"]
        published = [{name: f"{row['prompt']} {row[name]}" for name in ("chosen", "rejected")} for row in comparisons]
        found = imported(tmp_path, "hh-rlhf", "rankings", published)
        assert len(found) == len(comparisons) > 6000
        for row, one in zip(comparisons, found, strict=True):
            assert one.answers == (row["chosen"].strip(), row["rejected"].strip())
            said = [turn.content for turn in turns_of(one.prompt)]
            assert said == [turn["content"].strip() for turn in row["messages"]]
        some = found[::30]
        assert imported(tmp_path, "hh-rlhf", "rankings", exported(tmp_path, "hh-rlhf", "rankings", some)) == some

    @pytest.mark.parametrize("name", ["trl", "hh-rlhf", "summarize-from-feedback", "openassistant"])
    def test_rankings(self, tmp_path: Path, name: str) -> None:
        records = read_rankings(real("rankings.jsonl.gz"))
        if name == "openassistant":  # ranks of a tree have no ties
            records = [one for one in records if all(len(set(said.ranks)) == len(said.ranks) for said in one.labelings)]
        if name == "hh-rlhf":  # spaces at the ends of a turn are no part of it
            records = [one for one in records if all(said == said.strip() for said in texts(one))]
        if name == "summarize-from-feedback":
            records = [one for one in records if isinstance(one.prompt, str)]
        some = records[::10]
        assert len(some) > 10
        again = imported(tmp_path, name, "rankings", exported(tmp_path, name, "rankings", some))
        assert decided(again) == decided(some)

    @pytest.mark.parametrize("name", ["trl", "openassistant"])
    def test_demonstrations(self, tmp_path: Path, name: str) -> None:
        records = read_demonstrations(real("demonstrations.jsonl.gz"))[::4]
        again = imported(tmp_path, name, "demonstrations", exported(tmp_path, name, "demonstrations", records))
        assert [(turns_of(one.prompt), one.completion) for one in again] == [
            (turns_of(one.prompt), one.completion) for one in records
        ]


def texts(ranking: Ranking) -> list[str]:
    return [*(turn.content for turn in turns_of(ranking.prompt)), *ranking.answers]
