"""Figures of files, against independent implementations."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab_models.tokenizer import load_tokenizer
from trimtab_trainer.data.agreement import Agreement, Labelings
from trimtab_trainer.data.categories import PAPER_SHARES, Categories, paper_category
from trimtab_trainer.data.check import describe_dataset
from trimtab_trainer.data.file_statistics import FileStatistics, describe_file
from trimtab_trainer.data.lengths import Lengths, LengthTable
from trimtab_trainer.data.records import Labeling, Ranking


class TestLengths:
    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.integers(0, 10**6), min_size=2, max_size=60))
    def test_against_numpy(self, values: list[int]) -> None:
        table = length_table(values)
        quarters = np.percentile(values, [25, 50, 75])
        assert (table.count, table.min, table.max) == (len(values), min(values), max(values))
        assert table.mean == pytest.approx(np.mean(values), rel=1e-12)
        assert table.std == pytest.approx(np.std(values, ddof=1), rel=1e-9, abs=1e-6)
        assert [table.quarter, table.median, table.three_quarters] == pytest.approx(list(quarters), rel=1e-12)

    def test_one_and_none(self) -> None:
        assert length_table([7]) == LengthTable(1, 7, None, 7, 7, 7, 7, 7)
        assert Lengths().table() is None


def length_table(values: Sequence[int]) -> LengthTable:
    lengths = Lengths()
    for value in values:
        lengths.add(value)
    table = lengths.table()
    assert table is not None
    return table


class TestCategories:
    def test_names_of_the_paper(self) -> None:
        names = ["open_qa", "Open QA", "closed-qa", "extraction", "brainstorming", "CHAT", "my own"]
        assert [paper_category(name) for name in names] == [
            "Open QA", "Open QA", "Closed QA", "Extract", "Brainstorming", "Chat", "my own",
        ]  # fmt: skip
        assert sum(PAPER_SHARES.values()) == pytest.approx(0.999)

    def test_table(self) -> None:
        counted = Categories()
        for name in ["generation", "open_qa", "open_qa", "mine", ""]:
            counted.add(name)
        shares = {one.category: (one.rows, one.share, one.paper) for one in counted.table()}
        assert list(shares) == [*PAPER_SHARES, "mine", ""]
        assert shares["Open QA"] == (2, 0.4, 0.124) and shares["Chat"] == (0, 0.0, 0.084)
        assert shares["mine"] == (1, 0.2, None)

    def test_no_row_has_one(self) -> None:
        counted = Categories()
        counted.add("")
        assert counted.table() == []

    def test_a_field_that_is_no_category_is_counted_together_after_a_thousand_names(self, tmp_path: Path) -> None:
        names = [*(f"text {number}" for number in range(1500)), "open_qa", "text 7", ""]
        rows = [{"prompt": f"p{number}", "category": name} for number, name in enumerate(names)]
        found = describe(tmp_path / "rows.jsonl", "prompts", rows)
        shares = {one.category: one.rows for one in found.categories}
        assert shares["(after 1000 other names)"] == 500 and shares["text 7"] == 2 and shares["text 999"] == 1
        assert shares["Open QA"] == 1 and shares[""] == 1 and sum(shares.values()) == 1503
        assert len({one.category for one in found.lengths}) == 1003  # "" is all of them

    def test_groups_beyond_a_thousand_are_counted_together(self) -> None:
        found = describe_dataset(ranking(str(number), {f"{number}-a": (0, 1)}) for number in range(1200))
        assert found["groups"]["(after 1000 other names)"] == 200 and found["labelings"] == 1200


def ranking(prompt: str, ranks: dict[str, Sequence[int]], *, answers: str = "abcdefghi", **more: Any) -> Ranking:
    count = len(next(iter(ranks.values())))
    labelings = tuple(Labeling(tuple(one), name, name.rpartition("-")[0]) for name, one in ranks.items())
    return Ranking(prompt, tuple(answers[:count]), labelings, prompt_id=prompt, **more)


def agreements(rankings: Sequence[Ranking], samples: int = 200) -> dict[tuple[str, str], Agreement]:
    labelings = Labelings()
    for one in rankings:
        labelings.add(one)
    found = labelings.agreements(samples=samples, seed=0)
    return {(one.source, one.group): one for one in found}


class TestAgreement:
    def test_counted_by_hand(self) -> None:
        rows = [
            ranking("p", {"x": [0, 1, 2], "y": [0, 2, 1]}),  # of three pairs two agree
            ranking("q", {"x": [0, 0, 1], "y": [1, 0, 1]}),  # one pair is decided by both, and they differ in none
        ]
        found = agreements(rows)[("", "")]
        assert (found.decisions, found.prompts) == (4, 2)
        assert found.value == pytest.approx(3 / 4) and found.low is None

    def test_groups_and_sources(self) -> None:
        rows = [
            ranking("p", {"expert-1": [0, 1], "expert-2": [0, 1], "crowd-1": [1, 0]}, source="s"),
            ranking("q", {"crowd-1": [0, 1], "crowd-2": [1, 0]}, source="t"),
        ]
        found = {key: (one.value, one.decisions) for key, one in agreements(rows).items()}
        assert found == {
            ("", ""): (1 / 4, 4),
            ("s", ""): (1 / 3, 3),
            ("s", "expert"): (1.0, 1),
            ("s", "between groups"): (0.0, 2),
            ("t", ""): (0.0, 1),
            ("t", "crowd"): (0.0, 1),
        }

    def test_labelers_in_rows_of_their_own(self) -> None:
        """The same answers in another order, as rows of pairs have the better one first."""
        rows = [
            ranking("p", {"x": [0, 1]}, answers="ab"),
            ranking("p", {"y": [0, 1]}, answers="ba"),
            ranking("p", {"z": [1, 0]}, answers="ba"),
            ranking("p", {"y": [0, 1]}, answers="cd"),  # other answers
        ]
        found = agreements(rows)[("", "")]
        assert (found.value, found.decisions) == (pytest.approx(1 / 3), 3)

    def test_nobody_agrees_with_himself(self) -> None:
        rows = [ranking("p", {"x": [0, 1]}), ranking("p", {"x": [0, 1]}), ranking("q", {"x": [0, 1]})]
        assert agreements(rows) == {}

    def test_labelers_of_nobody_known_are_compared_within_a_row(self) -> None:
        two = Ranking("p", ("a", "b"), (Labeling((0, 1)), Labeling((0, 1))), prompt_id="p")
        assert agreements([two])[("", "")].decisions == 1
        assert agreements([two, two, two])[("", "")].decisions == 3
        assert agreements([Ranking("p", ("a", "b"), (Labeling((0, 1)),), prompt_id="p")] * 5) == {}

    def test_interval_against_scipy(self) -> None:
        """The same bootstrap over prompts by scipy, whose resamples are other ones."""
        generator = np.random.default_rng(5)
        rows = []
        for number in range(120):
            count = int(generator.integers(2, 6))
            said = {f"g-{name}": list(map(int, generator.permutation(count))) for name in range(3)}
            if generator.random() < 0.6:
                said["g-1"] = said["g-0"]
            rows.append(ranking(f"p{number}", said))
        clusters = np.array([_decisions(row) for row in rows], dtype=float)
        found = agreements(rows, samples=20_000)[("", "")]
        expected = scipy.stats.bootstrap(
            (clusters[:, 0], clusters[:, 1]),
            lambda agree, total, axis=-1: agree.sum(axis) / total.sum(axis),
            paired=True, vectorized=True, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1),
        )  # fmt: skip
        assert found.value == pytest.approx(clusters[:, 0].sum() / clusters[:, 1].sum(), rel=1e-12)
        tolerance = (
            6 * expected.standard_error / math.sqrt(20_000) * 3
        )  # of a 2.5 % quantile, about 2.7 standard errors
        assert found.low == pytest.approx(expected.confidence_interval.low, abs=tolerance)
        assert found.high == pytest.approx(expected.confidence_interval.high, abs=tolerance)


def _decisions(row: Ranking) -> tuple[int, int]:
    agree = total = 0
    for one, other in combinations(row.labelings, 2):
        for i, j in combinations(range(len(row.answers)), 2):
            a, b = (np.sign(said.ranks[i] - said.ranks[j]) for said in (one, other))
            agree += int(a == b and a != 0)
            total += int(a != 0 and b != 0)
    return agree, total


def describe(path: Path, kind: str, rows: list[dict[str, Any]], **options: Any) -> FileStatistics:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return describe_file(kind, path, warn=print, **options)


class TestFile:
    def test_lengths_of_every_field(self, tmp_path: Path) -> None:
        rows = [
            {"prompt": "four", "answers": ["a", "bbb"], "ranks": [1, 2], "category": "open_qa"},
            {
                "messages": [
                    {"role": "user", "content": "abc"},
                    {"role": "assistant", "content": "de"},
                    {"role": "user", "content": "f"},
                ],
                "answers": ["a", "b"],
                "ranks": [1, 1],
                "category": "mine",
            },
        ]
        found = describe(tmp_path / "rows.jsonl", "rankings", rows)
        assert [(one.field, one.category, one.table.count, one.table.mean) for one in found.lengths] == [
            ("prompt", "", 2, 5.0),
            ("answer", "", 4, 1.5),
            ("prompt", "Open QA", 1, 4.0),
            ("prompt", "mine", 1, 6.0),
        ]

    def test_tokens(self, tmp_path: Path, tokenizer_folder: Path) -> None:
        tokenizer = load_tokenizer(tokenizer_folder)
        texts = [f"the quick brown fox {'jumps ' * (number % 7)}" for number in range(600)]
        rows = [{"prompt": text, "completion": "over <|end|>"} for text in texts]
        found = describe(tmp_path / "rows.jsonl", "demonstrations", rows, tokenizer=tokenizer)
        (tokens,) = (one.table for one in found.lengths if (one.unit, one.field) == ("tokens", "prompt"))
        counts = [len(tokenizer.tokenize(text)) for text in texts]
        assert (tokens.count, tokens.max) == (600, max(counts)) and tokens.mean == pytest.approx(np.mean(counts))
        (completion,) = (one.table for one in found.lengths if (one.unit, one.field) == ("tokens", "completion"))
        assert completion.min == completion.max > len(tokenizer.tokenize("over <|end|>"))  # what looks like one is text
