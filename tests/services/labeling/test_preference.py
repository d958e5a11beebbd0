"""From two policies to the page that says which one people prefer: every service and command is the real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from running import running
from tiny_models import make_policy, make_tokenizer
from trimtab.cli import trimtab
from trimtab.v1 import labeling_pb2 as pb
from trimtab_models.loading import save_model

from .people import Person, Service

PROMPTS = 9
PEOPLE = ("ann", "bob", "cat", "dan", "eve", "fay")


def command(*arguments: object) -> Result:
    done = CliRunner().invoke(trimtab, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def policies(llama_folder: Path, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Targets of a service of each of two policies."""
    tokenizer = make_tokenizer()
    save_model(make_policy("llama", len(tokenizer), seed=1), tokenizer, tmp_path / "ppo")
    with (
        running("generation", model_folder=llama_folder, model_name="sft", slots=4) as sft,
        running("generation", model_folder=tmp_path / "ppo", model_name="ppo", slots=4) as ppo,
    ):
        yield sft.target, ppo.target


def opinion(prompt: int, person: str) -> float:
    """What this person says of ppo against sft on this prompt: 1, 0, or one half for a tie."""
    kind = (prompt + 2 * PEOPLE.index(person)) % 6
    return 0.5 if kind == 0 else float(kind > 1)


def label_of(given: dict[str, Any], person: str, models: dict[tuple[str, str], str]) -> dict[str, Any]:
    """The label of a scripted person, who knows whose answer is whose as no real one does."""
    shown = [models[given["prompt"], text] for text in given["answers"]]
    ppo, sft = shown.index("ppo"), shown.index("sft")
    won = opinion(int(given["prompt"].split()[-1]), person)
    ranking = [[0, 1]] if won == 0.5 else [[ppo], [sft]] if won else [[sft], [ppo]]
    flags = [{"hallucination": model == "sft" and person in PEOPLE[:3]} for model in shown]
    return {"ranking": ranking, "ratings": [5 if model == "ppo" else 3 for model in shown], "flags": flags}


def test_people_compare_two_policies_and_the_right_figures_come_out(
    service: Service, policies: tuple[str, str], tmp_path: Path
) -> None:
    here = ("--target", service.server.target)
    prompts, drawn, exported = (tmp_path / f"{name}.jsonl" for name in ("prompts", "drawn", "exported"))
    content = ({"prompt": f"say something {n}", "category": "summarization"} for n in range(PROMPTS))
    prompts.write_text("".join(json.dumps(one) + "\n" for one in content))
    kind = ("--kind", "compare", "--overlap", len(PEOPLE), "--undo-s", 0, "--ratings", "--held-out-group", "")
    command("labeling", "create", "blind", *kind, *here)
    policy = ("--policy", policies[0], "--policy", policies[1])
    options = ("--prompts", prompts, "--answers", 2, "--max-new-tokens", 8, "--out", drawn)
    command("labeling", "draw", "blind", *options, *policy, *here)
    models = {}
    for row in map(json.loads, drawn.read_text().splitlines()):
        assert [source["model"] for source in row["sources"]] == ["sft", "ppo"]
        models |= {
            (row["prompt"], text): one["model"] for text, one in zip(row["answers"], row["sources"], strict=True)
        }
    for name in PEOPLE:
        person = service.person(name, group="heldout" if name in PEOPLE[4:] else "")
        assert label_everything(person, models) == PROMPTS
    command("labeling", "export", "blind", exported, *here)

    out = tmp_path / "eval"
    asked = ("--by", "model", "--baseline", "sft", "--bootstrap-samples", 200)
    command("eval", "preference", exported, *asked, "--out", out)
    figures = json.loads((out / "preference.json").read_text())["figures"]
    said = {(prompt, who): opinion(prompt, who) for prompt in range(PROMPTS) for who in PEOPLE}
    (found,) = figures["against_baseline"]
    assert (found["model"], found["win_rate"]["count"]) == ("ppo", len(said))
    assert found["win_rate"]["value"] == pytest.approx(sum(said.values()) / len(said))
    assert found["ties"]["value"] == pytest.approx(sum(won == 0.5 for won in said.values()) / len(said))
    assert (found["win_rate"]["prompts"], found["win_rate"]["labelers"]) == (PROMPTS, len(PEOPLE))
    low, high = found["win_rate"]["over_both"]
    assert low < found["win_rate"]["value"] < high
    groups = {one["group"]: one["win_rate"]["value"] for one in figures["against_baseline_by_group"]}
    for group, members in (("", PEOPLE[:4]), ("heldout", PEOPLE[4:])):
        mine = [won for (_, who), won in said.items() if who in members]
        assert groups[group] == pytest.approx(sum(mine) / len(mine))
    assert {name: one["value"] for name, one in figures["ratings"].items()} == {"ppo": 5, "sft": 3}

    told = json.loads(command("eval", "hallucination", exported, *asked, "--json").output)
    assert told["rates"]["sft"]["rate"]["value"] == 0.5 and told["rates"]["ppo"]["rate"]["value"] == 0
    assert told["rates"]["ppo"]["above_baseline"]["value"] == -0.5


def label_everything(person: Person, models: dict[tuple[str, str], str]) -> int:
    done = 0
    while given := person.next("blind"):
        assert person.submit(given, label_of(given, person.name, models)).status_code == 200
        done += 1
    return done


def test_what_a_label_says_stays_with_its_labeler(service: Service) -> None:
    """Labelers see texts only: nothing of the page says whose answer is which."""
    service.project("blind", pb.TASK_KIND_COMPARE)
    sources = [pb.AnswerSource(model="sft"), pb.AnswerSource(model="ppo", version=9)]
    service.add(pb.LabelTask(prompt="Q", answers=["one", "two"], sources=sources), project="blind")
    assert "ppo" not in json.dumps(service.person("ann").next("blind"))
