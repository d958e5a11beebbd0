"""`trimtab eval preference` and `hallucination` over exported files: figures, pages, and what is wrong with a file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from trimtab.cli import trimtab
from trimtab.errors import ConfigError, DataError

from .labels import jsonl, row, said

MODELS = ("sft", "ppo", "ptx")


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(trimtab, ["eval", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """Three models, eight prompts of two use cases, six labelers of two groups who mostly agree."""
    rows = []
    for number in range(8):
        labels = []
        for who in range(6):
            ranking = [[2], [1], [0]] if (number + who) % 4 else [[0], [1, 2]]
            flags = [{"hallucination": number % 2 == 0 and place == 0} for place in range(3)]
            group = "heldout" if who >= 4 else ""
            labels.append(said(f"w{who}", ranking, group=group, ratings=[2, 4, 6], flags=flags, order=[2, 0, 1]))
        rows.append(row(number, MODELS, labels, category="closed_qa" if number < 6 else "generation"))
    return jsonl(tmp_path / "export.jsonl", *rows)


def test_findings_name_their_files_and_hold_every_figure(exported: Path, tmp_path: Path) -> None:
    done = evaluate(
        "preference", exported, "--baseline", "sft@3:t0.7", "--bootstrap-samples", 200, "--out", tmp_path / "out"
    )
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "preference.html").read_text()
    written = json.loads((tmp_path / "out" / "preference.json").read_text())
    assert written["settings"]["files"] == {str(exported): hashlib.sha256(exported.read_bytes()).hexdigest()}
    assert written["settings"]["bootstrap_samples"] == 200
    figures = written["figures"]
    assert figures["contestants"] == ["ppo@3:t0.7", "ptx@3:t0.7", "sft@3:t0.7"]
    assert (figures["labels"], figures["prompts"], figures["labelers"]) == (48, 8, 6)
    ppo, ptx = figures["against_baseline"]
    assert (ptx["model"], ptx["win_rate"]["value"], ptx["win_rate"]["count"]) == ("ptx@3:t0.7", 0.75, 48)
    assert ppo["ties"]["value"] == 0 and ptx["win_rate"]["over_both"] is not None
    assert [(one["model"], one["other"], one["ties"]["value"]) for one in figures["pairs"]] == [
        ("ppo@3:t0.7", "ptx@3:t0.7", 0.25),
        ("ppo@3:t0.7", "sft@3:t0.7", 0.0),
        ("ptx@3:t0.7", "sft@3:t0.7", 0.0),
    ]
    groups = {(one["group"], one["model"]): one["win_rate"] for one in figures["against_baseline_by_group"]}
    assert set(groups) == {(group, model) for group in ("", "heldout") for model in ("ppo@3:t0.7", "ptx@3:t0.7")}
    assert groups["heldout", "ptx@3:t0.7"]["labelers"] == 2
    assert list(figures["bradley_terry"]) == ["ptx@3:t0.7", "ppo@3:t0.7", "sft@3:t0.7"]
    assert figures["first_shown"]["count"] == 3 * 48
    assert {name: one["value"] for name, one in figures["ratings"].items()} == {
        "ppo@3:t0.7": 4,
        "ptx@3:t0.7": 6,
        "sft@3:t0.7": 2,
    }
    assert figures["flags"]["hallucination"]["sft@3:t0.7"]["value"] == 0.5
    for words in ("Win rate against sft@3:t0.7", "heldout", "Bradley-Terry", "Ratings, 1 to 7", "Position on the page"):
        assert words in done.output and words in page
    told = json.loads(evaluate("preference", exported, "--bootstrap-samples", 200, "--json").output)
    assert told["against_baseline"] == [] and told["pairs"] == figures["pairs"]
    with pytest.raises(ConfigError, match=r"preference.html is there already|preference.json is there already"):
        evaluate("preference", exported, "--out", tmp_path / "out")


def test_what_makes_a_contestant_and_whose_labels_count(exported: Path) -> None:
    by_model = json.loads(evaluate("preference", exported, "--by", "model", "--group", "heldout", "--json").output)
    assert by_model["contestants"] == sorted(MODELS)
    assert (by_model["labels"], by_model["labelers"]) == (16, 2)
    with pytest.raises(ConfigError, match="by: 'name' is none of model, version, temperature, system"):
        evaluate("preference", exported, "--by", "name")
    with pytest.raises(ConfigError, match="system stands alone"):
        evaluate("preference", exported, "--by", "model,system")
    with pytest.raises(ConfigError, match="group: no label of nobody in"):
        evaluate("preference", exported, "--group", "nobody")
    with pytest.raises(ConfigError, match="baseline: sft; the contestants are"):
        evaluate("preference", exported, "--baseline", "sft")


def test_a_model_that_always_loses_has_win_rates_but_no_strength(tmp_path: Path) -> None:
    rows = [row(n, MODELS, [said("ann", [[2], [n % 2], [1 - n % 2]])]) for n in range(6)]
    file = jsonl(tmp_path / "export.jsonl", *rows)
    with pytest.raises(DataError, match=r"ppo@3:t0.7, sft@3:t0.7 never won .* --no-bradley-terry gives"):
        evaluate("preference", file)
    done = evaluate("preference", file, "--no-bradley-terry")
    assert done.exit_code == 0 and "100.0 %" in done.output
    assert "a figure speaks for its own labelers only" in done.output


def test_hallucination_counts_closed_domain_answers_only(exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = evaluate("hallucination", exported, "--by", "model", "--baseline", "sft", "--out", out)
    assert done.exit_code == 0, done.output
    figures = json.loads((out / "hallucination.json").read_text())["figures"]
    assert figures["labels"] == 36 and figures["paper"] == {"InstructGPT": 0.21, "GPT-3": 0.41}
    sft, ppo = figures["rates"]["sft"], figures["rates"]["ppo"]
    assert (sft["rate"]["value"], sft["rate"]["count"], sft["above_baseline"]) == (0.5, 36, None)
    assert (ppo["rate"]["value"], ppo["above_baseline"]["value"]) == (0.0, -0.5)
    low, high = ppo["above_baseline"]["over_both"]
    assert low <= -0.5 <= high and high <= 0
    for words in ("41.0 %", "21.0 %", "-50.0", "36 of 48 labels"):
        assert words in done.output and words in (out / "hallucination.html").read_text()
    whole = evaluate("hallucination", exported, "--categories", "Generation", "--json")
    assert json.loads(whole.output)["labels"] == 12
    with pytest.raises(ConfigError, match="categories: no label of Rewrite; the files have closed_qa, generation"):
        evaluate("hallucination", exported, "--categories", "rewrite")


def test_hallucination_needs_the_question_answered(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", row(0, MODELS, [said("ann", [[0], [1], [2]])], category="summarization"))
    with pytest.raises(ConfigError, match="flags: no label answers the question 'hallucination'"):
        evaluate("hallucination", file)
    flags = [{"hallucination": False}, {}, {}]
    some = jsonl(
        tmp_path / "b.jsonl", row(0, MODELS, [said("ann", [[0], [1], [2]], flags=flags)], category="summarization")
    )
    with pytest.raises(ConfigError, match="no label answers the question 'hallucination' on ptx"):
        evaluate("hallucination", some, "--by", "model", "--baseline", "ptx")
    assert "2 were left open" in evaluate("hallucination", some).output


RANKED = said("ann", [[0], [1], [2]])
BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"sources": None}, "sources is missing: .*--skip-bad-rows N"),
    ({"sources": None, "systems": ["a", "b", "c"]}, "sources is missing: .* name contestants by system"),
    ({"sources": [{"model": "a"}]}, "sources must have one value for each of 3 answers, found 1 values"),
    ({"sources": [{"model": "a"}, {}, {"model": "c"}]}, r"sources\[1\] must be an object with `model`"),
    ({"labels": None, "ranks": [1, 2, 3]}, "labels is missing"),
    ({"labels": [RANKED | {"labeler": ""}]}, r"labels\[0\].labeler must not be empty"),
    ({"labels": [RANKED | {"ranking": [[0], [1]]}]}, r"labels\[0\].ranking names 2 of 3 answers"),
    ({"labels": [RANKED | {"ratings": [1, 2]}]}, r"labels\[0\].ratings must have one value for each of 3"),
    ({"labels": [RANKED | {"ratings": [1, 2, 8]}]}, r"labels\[0\].ratings\[2\] must be a whole number, 1..7"),
    ({"labels": [RANKED | {"flags": [{}, {}, {"hallucination": "no"}]}]}, r"labels\[0\].flags\[2\] must be an object"),
    ({"labels": [RANKED | {"order": [0, 1, 1]}]}, r"labels\[0\].order must name each of 3 answers once"),
    ({"task_key": 7}, "task_key must be a text, found int"),
]


@pytest.mark.parametrize(("fields", "words"), BAD_ROWS)
def test_a_bad_row_is_told_by_file_line_and_field(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    good = row(0, MODELS, [RANKED, said("bob", [[2], [0], [1]])])
    better = row(2, MODELS, [said("ann", [[1], [2], [0]])])
    file = jsonl(tmp_path / "export.jsonl", good, row(1, MODELS, [RANKED]) | fields, better)
    with pytest.raises(DataError, match=rf"{file}:2: {words}"):
        evaluate("preference", file)
    done = evaluate("preference", file, "--skip-bad-rows", 1, "--no-bradley-terry")
    assert done.exit_code == 0 and "3 labels of 2 prompts" in done.output


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "systems is missing: .*it has `sources`: name contestants by model"),
        ({"sources": None}, "systems is missing: .*labels of people have `sources` where the tasks of their project"),
    ],
)
def test_rows_without_systems_say_what_else_names_contestants(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    file = jsonl(tmp_path / "export.jsonl", row(0, MODELS, [RANKED]) | fields)
    with pytest.raises(DataError, match=words):
        evaluate("preference", file, "--by", "system")


def test_a_label_counts_once(tmp_path: Path) -> None:
    """A row that comes again in a followed export replaces its earlier one; one in two files is refused."""
    early = row(0, MODELS[:2], [said("ann", [[0], [1]])])
    late = row(0, MODELS[:2], [said("ann", [[1], [0]]), said("bob", [[1], [0]])])
    followed = jsonl(tmp_path / "followed.jsonl", early, late)
    told = json.loads(evaluate("preference", followed, "--json").output)
    assert (told["labels"], told["pairs"][0]["win_rate"]["value"]) == (2, 1.0)
    again = jsonl(tmp_path / "again.jsonl", row(0, MODELS[:2], [said("bob", [[1], [0]])]))
    with pytest.raises(DataError, match=r"again.jsonl:1: labels: bob's label of the same answers .*followed.jsonl:2"):
        evaluate("preference", followed, again)
    with pytest.raises(DataError, match=r"other.jsonl:1: .*cat's label of the same answers"):
        evaluate("preference", *[jsonl(tmp_path / "other.jsonl", row(0, MODELS[:2], [said("cat", [[1], [0]])]))] * 2)
    project = jsonl(tmp_path / "project.jsonl", row(1, MODELS[:2], [said("bob", [[1], [0]])], task_key="task-0"))
    assert json.loads(evaluate("preference", followed, project, "--json").output)["labels"] == 3
    other = jsonl(tmp_path / "other.jsonl", row(0, MODELS[:2], [said("cat", [[1], [0]])]))
    assert json.loads(evaluate("preference", followed, other, "--json").output)["labels"] == 3
