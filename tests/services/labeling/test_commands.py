"""`trimtab labeling`: from prompts to a reward model that is trained on the rankings, without leaving the platform."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from running import running
from trimtab.cli import trimtab
from trimtab.errors import DataError, InvalidRequest, TrimtabError
from trimtab.v1 import labeling_pb2 as pb
from trimtab_trainer.config import RunSpec
from trimtab_trainer.data import read_demonstrations, read_rankings
from trimtab_trainer.run import run

from .people import PASSWORD, Service, in_order

Command = Callable[..., Result]


@pytest.fixture
def command(service: Service) -> Command:
    def call(*arguments: object, input: str = "") -> Result:
        words = ["labeling", *map(str, arguments), "--target", service.server.target]
        return CliRunner().invoke(trimtab, words, input=input, catch_exceptions=False)

    return call


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def ranked(number: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"Q{number}", "answers": ["a", "b", "c", "d"]} | fields


def test_projects_and_accounts(command: Command, service: Service, tmp_path: Path) -> None:
    instructions = tmp_path / "read.md"
    instructions.write_text("# Be honest")
    made = command("create", "p", "--kind", "rank", "--instructions", instructions, "--overlap", 2)
    assert made.exit_code == 0 and made.output == "project p: rank, 2 labels a task\n"
    command("update", "p", "--overlap", 3, "--state", "closed")
    (row,) = [json.loads(line) for line in command("list", "--json").output.splitlines()]
    assert (row["overlap"], row["instructions"], row["wants_ratings"]) == (3, "# Be honest", True)
    assert row["state"] == "PROJECT_STATE_CLOSED"
    assert "closed" in command("list").output
    asked = command("accounts", "add", "ann", "--group", "heldout", input=f"{PASSWORD}\n{PASSWORD}\n")
    assert asked.exit_code == 0 and PASSWORD not in asked.output
    password = tmp_path / "password"
    password.write_text(f"{PASSWORD}\n")
    command("accounts", "add", "bob", "--role", "admin", "--password-file", password)
    command("accounts", "update", "ann", "--disabled")
    listed = [json.loads(line) for line in command("accounts", "list", "--json").output.splitlines()]
    assert [(one["name"], one["role"], one["group"], one["enabled"]) for one in listed] == [
        ("ann", "labeler", "heldout", False),
        ("bob", "admin", "", True),
    ]
    actions = [json.loads(line)["action"] for line in command("audit", "--json").output.splitlines()]
    assert actions == ["project.create", "project.update", "account.create", "account.create", "account.update"]


BAD_ROWS = [
    ("{", "line: not a JSON object"),
    ("[1]", "line: a JSON object is expected"),
    ({"prompt": 3}, "prompt: must be a text, found int"),
    (ranked(1, answers="abcd"), "answers: "),
    (ranked(1, answers=["a", 2, "c", "d"]), "answers: "),
    (ranked(1, answers=["a", "b", "c"]), "answers: 3 answers; a task to rank has 4..9"),
    (ranked(1, answers=["a", "", "c", "d"]), "answers[1]: "),
    (ranked(1, gold_ranking=[[0, 1]]), "gold_ranking: "),
    (ranked(1, overlap="many"), "overlap: "),
    (ranked(0), "task_key: "),
    (ranked(1, answers=["a", "b", "a", "c"]), "answers: 0 and 2 are equal"),
    (ranked(1, golden_ranking=[[0], [1, 2, 3]]), "golden_ranking: no field of a task; is gold_ranking meant?"),
    (ranked(1, sources="m"), "sources: a list is expected, of a mapping with model, version, "),
    (ranked(1, sources=["v"] * 4), "sources[0]: a mapping with model, version, temperature, seed, sample_index is "),
    (ranked(1, sources=[{}, {"model": 3}, {}, {}]), "sources[1].model: must be a text; got 3"),
    (ranked(1, sources=[{}, {"kind": "m"}, {}, {}]), "sources[1].kind: is no field of a source"),
]


@pytest.mark.parametrize(("bad", "words"), BAD_ROWS)
def test_a_broken_row_is_told_by_file_line_and_field_and_nothing_is_imported(
    command: Command, service: Service, tmp_path: Path, bad: Any, words: str
) -> None:
    service.project()
    file = jsonl(tmp_path / "rows.jsonl", ranked(0), "", bad, ranked(2))
    with pytest.raises(DataError) as caught:
        command("import", "p", file)
    assert caught.value.message.startswith(f"{file}:3: {words}"), caught.value.message
    assert service.progress().tasks == 0


def test_equal_answers_of_two_sources_are_a_task(command: Command, service: Service, tmp_path: Path) -> None:
    service.project()
    sources = [{"model": f"m{number}", "version": "7"} for number in range(4)]
    row = ranked(1, answers=["a", "b", "a", "c"], sources=sources)
    assert "1 task added to p" in command("import", "p", jsonl(tmp_path / "rows.jsonl", row)).output


def test_tasks_are_withdrawn_projects_archived_and_labelers_qualified_again(
    command: Command, service: Service, tmp_path: Path
) -> None:
    rows = [ranked(n, task_key=f"t{n}", **({"gold_ranking": [[0], [1, 2, 3]]} if n == 2 else {})) for n in range(3)]
    command("create", "p", "--kind", "rank", "--no-ratings", "--undo-s", 0, "--held-out-overlap", 2)
    command("import", "p", jsonl(tmp_path / "rows.jsonl", *rows))
    ann = service.person("ann")
    while given := ann.next("p"):
        ann.submit(given, in_order(given))
    keys = tmp_path / "keys"
    keys.write_text("t1\n\nt0\n")
    done = command("withdraw", "p", "t0", "--keys-file", keys)
    assert done.output == "2 of 2 tasks withdrawn from p; they have 2 labels\n"
    done = command("withdraw", "p", "t0", "--restore")
    assert done.output == "1 of 1 task put back into p; it has 1 label\n"
    for options, expected in (((), ["t0"]), (("--include-withdrawn",), ["t1", "t0"])):
        file = tmp_path / f"labels{len(options)}"
        command("export", "p", file, *options)
        assert [json.loads(line)["task_key"] for line in file.read_text().splitlines()] == expected
    assert command("requalify", "p", "ann").output == "ann gets 1 qualification task of p again\n"
    assert command("requalify", "p", "ann").output == "ann has done none yet\n"
    command("update", "p", "--state", "archived", "--held-out-group", "")
    (row,) = [json.loads(line) for line in command("list", "--json").output.splitlines()]
    assert (row["state"], row["held_out_group"], row["held_out_overlap"]) == ("PROJECT_STATE_ARCHIVED", "", 2)
    assert "archived" in command("list").output


def test_an_export_of_held_out_labels_alone_says_why_it_is_empty(
    command: Command, service: Service, tmp_path: Path
) -> None:
    service.project()
    command("import", "p", jsonl(tmp_path / "rows.jsonl", ranked(0)))
    hal = service.person("hal", group="heldout")
    given = hal.next("p")
    hal.submit(given, in_order(given))
    told = command("export", "p", tmp_path / "labels").output
    assert "the 1 label is of the group heldout, which finishes no task: --include-unfinished exports it" in told


def test_a_group_that_no_label_has_leaves_an_export_alone(command: Command, service: Service, tmp_path: Path) -> None:
    service.project(held_out_group="")
    file = tmp_path / "labels"
    command("import", "p", jsonl(tmp_path / "rows.jsonl", *map(ranked, range(3))))
    told = command("export", "p", file, "--group", "heldout").output
    assert told == "0 rows, the last of sequence 0\n" and not file.read_text()  # nobody has said anything yet
    for person in (service.person("ann"), service.person("hal", group="heldout")):
        given = person.next("p")
        person.submit(given, in_order(given))
    assert command("export", "p", file, "--group", "heldout").output == "1 row, the last of sequence 2\n"
    written = file.read_text()
    for where in (file, "-"):
        told = command("export", "p", where, "--group", "hledout").output
        assert "warning: no label has group 'hledout'; groups are '', 'heldout': nothing is written" in told
    assert file.read_text() == written and not list(tmp_path.glob("*.partial"))
    command("export", "p", file, "--group", "heldout", "--after", 2)
    assert not file.read_text()  # what there is came before


def test_keys_of_tasks_that_nobody_has_labeled_are_found_and_withdrawn(
    command: Command, service: Service, tmp_path: Path
) -> None:
    service.project(overlap=2, undo_ms=0, held_out_group="")
    rows = [*map(ranked, range(3)), ranked(3, gold_ranking=[[0], [1, 2, 3]], overlap=1)]
    command("import", "p", jsonl(tmp_path / "rows.jsonl", *rows))
    ann = service.person("ann", group="crowd")
    for _ in range(2):  # the qualification, then Q0
        given = ann.next("p")
        ann.submit(given, in_order(given))

    def export(*options: str) -> list[dict[str, Any]]:
        lines = command("export", "p", "-", *options).output.splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    assert [row["prompt"] for row in export("--include-unfinished")] == ["Q0"]
    found = export("--include-unlabeled")
    assert [(row["prompt"], len(row["labels"]), row.get("qualification", False)) for row in found] == [
        ("Q0", 1, False),
        ("Q1", 0, False),
        ("Q2", 0, False),
        ("Q3", 0, True),  # labeled, which no export tells
    ]
    assert not any("gold_ranking" in row for row in found)
    assert [len(row["labels"]) for row in export("--include-unlabeled", "--group", "experts", "--group", "crowd")] == [
        1,
        0,
        0,
        0,
    ]
    keys = [found[number]["task_key"] for number in (1, 3)]
    assert command("withdraw", "p", *keys).output.startswith("2 of 2 tasks withdrawn from p")
    assert [row["prompt"] for row in export("--include-unlabeled")] == ["Q0", "Q2"]
    assert len(export("--include-unlabeled", "--include-withdrawn")) == 4
    with pytest.raises(TrimtabError, match="include_unlabeled: not with --follow"):
        command("export", "p", "-", "--include-unlabeled", "--follow")
    with pytest.raises(InvalidRequest, match="include_unlabeled: not with follow"):
        service.export(include_unlabeled=True, follow=True)


def test_demonstrations_to_be_written_are_found(command: Command, service: Service, tmp_path: Path) -> None:
    command("create", "d", "--kind", "demonstrate")
    command("import", "d", jsonl(tmp_path / "rows.jsonl", {"prompt": "Q", "task_key": "q"}))
    exported = tmp_path / "exported"
    command("export", "d", exported, "--include-unlabeled")
    assert json.loads(exported.read_text()) == {"prompt": "Q", "task_key": "q"}


def test_a_demonstration_has_a_group_too(command: Command, service: Service, tmp_path: Path) -> None:
    command("create", "d", "--kind", "demonstrate", "--undo-s", 0)
    command("import", "d", jsonl(tmp_path / "rows.jsonl", {"prompt": "Q"}))
    ann = service.person("ann", group="writers")
    ann.submit(ann.next("d"), {"completion": "A"})
    told = command("export", "d", tmp_path / "rows", "--group", "writer").output
    assert "no label has group 'writer'; groups are 'writers'" in told and not (tmp_path / "rows").exists()


def test_a_group_that_nobody_else_has_is_told(command: Command, service: Service, tmp_path: Path) -> None:
    service.project()
    service.account("ben", group="crowd")
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    add = ("accounts", "add", "ann", "--password-file", password)
    assert command(*add, "--group", "heldout").output == "account ann: labeler\n"  # as the project has it
    told = command("accounts", "update", "ann", "--group", "heldot").output
    assert "warning: ann is the only account of the group 'heldot'; groups are 'crowd', 'heldout'\n" in told
    assert command("accounts", "update", "ann", "--group", "crowd").output == "account ann is changed\n"
    assert command("accounts", "update", "ann", "--group", "").output == "account ann is changed\n"


def test_an_update_of_nothing_is_refused(command: Command, service: Service) -> None:
    service.project()
    service.account("ann")
    for words in (("update", "p"), ("accounts", "update", "ann")):
        done = command(*words)
        assert done.exit_code == 2 and "nothing to change: give an option" in done.output


def test_an_import_tells_of_new_qualification_tasks_and_of_a_project_that_gives_out_none(
    command: Command, service: Service, tmp_path: Path
) -> None:
    service.project()
    gold = [ranked(number, gold_ranking=[[0], [1, 2, 3]]) for number in range(3)]
    assert command("import", "p", jsonl(tmp_path / "1.jsonl", gold[0])).output == "1 task added to p\n"
    told = command("import", "p", jsonl(tmp_path / "2.jsonl", *gold, ranked(3))).output
    assert told.endswith(
        "2 qualification tasks more: who has passed the qualification does them, too, before other tasks\n"
    )
    command("update", "p", "--state", "archived")
    told = command("import", "p", jsonl(tmp_path / "3.jsonl", ranked(4))).output
    assert told.endswith("p is archived and gives out no task: `trimtab labeling update p --state open` goes on\n")


def test_an_import_says_what_becomes_of_systems(command: Command, service: Service, tmp_path: Path) -> None:
    service.project()
    row = ranked(0, systems=["m1", "m2", "m3", "m4"])
    told = command("import", "p", jsonl(tmp_path / "rows.jsonl", row)).output
    assert 'the fields systems; a task keeps `systems` as `sources`: [{"model": NAME}, ...]\n' in told
    row |= {"prompt": "Q1", "sources": [{"model": name} for name in row["systems"]]}
    told = command("import", "p", jsonl(tmp_path / "rows.jsonl", row)).output
    assert "the fields systems\n" in told


def test_what_people_wrote_is_no_markup(command: Command, service: Service, tmp_path: Path) -> None:
    instructions = tmp_path / "read.md"
    instructions.write_text("see [/guide], [the guide](https://example.org) :smile:")
    command("create", "p", "--kind", "rank", "--instructions", instructions)
    service.account("ann", group="[/red]")
    assert "see [/guide], [the guide](https://example.org) :smile:" in command("audit").output
    assert "[/red]" in command("accounts", "list").output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--undo-s", "nan"), "--undo-s nan: seconds, allowed: 0..86400"),
        (("--lease-s", "1e308"), r"--lease-s 1e\+308: seconds, allowed: 1..86400"),
        (("--lease-s", "-5"), "--lease-s -5: seconds, allowed: 1..86400"),
        (("--overlap", 0), "overlap: 0; allowed: 1..100"),
    ],
)
def test_numbers_out_of_range_are_refused_by_create_and_update(
    command: Command, service: Service, options: tuple[str, object], told: str
) -> None:
    service.project("old")
    with pytest.raises(TrimtabError, match=told):
        command("create", "new", "--kind", "rank", *options)
    with pytest.raises(TrimtabError, match=told):
        command("update", "old", *options)


def test_a_password_without_a_terminal_is_read_from_a_file_only(service: Service) -> None:
    words = ["labeling", "accounts", "add", "ann", "--target", service.server.target]
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", *words],
        input=f"{PASSWORD}\n{PASSWORD}\n",
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,  # without a controlling terminal
    )
    assert done.returncode == 2
    assert done.stderr == "error: password: there is no terminal to ask at; --password-file is needed\n"


@pytest.mark.parametrize("options", [(), ("--follow",)])
def test_an_export_that_cannot_begin_tells_of_no_rows_and_leaves_no_file(
    service: Service, tmp_path: Path, options: tuple[str, ...]
) -> None:
    service.project("known")
    for project, file in (("unknown", tmp_path / "rows"), ("unknown", "-"), ("known", tmp_path / "nowhere" / "rows")):
        words = ["labeling", "export", project, str(file), *options, "--target", service.server.target]
        done = CliRunner().invoke(trimtab, words)
        assert isinstance(done.exception, TrimtabError | OSError) and done.output == ""
    assert not list(tmp_path.glob("rows*"))


def test_files_in_other_encodings_are_refused_and_gzip_and_boms_are_read(
    command: Command, service: Service, tmp_path: Path
) -> None:
    service.project()
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(json.dumps(ranked(0, prompt="h\u00e9"), ensure_ascii=False).encode("latin-1"))
    with pytest.raises(DataError, match="latin.jsonl:1: line: not UTF-8 at byte"):
        command("import", "p", latin)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(ranked(0, source="x", context_id=1)).encode()))
    done = command("import", "p", packed)
    assert done.exit_code == 0 and "1 task added to p" in done.output
    assert "left out of the tasks are the fields context_id, source" in done.output
    again = command("import", "p", packed).output  # the same file is the same import
    assert again.endswith("nothing new: this import of 1 task was added to p before\n")
    other = jsonl(tmp_path / "other.jsonl", ranked(0))
    assert command("import", "p", other).output == "nothing new: p has the task already, with the same content\n"
    more = jsonl(tmp_path / "more.jsonl", ranked(0), ranked(1))
    told = command("import", "p", more).output
    assert told == "1 task added to p; 1 was there already, with the same content\n"
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(DataError, match="cut.jsonl.gz:1: cannot be read"):
        command("import", "p", cut)
    with pytest.raises(DataError, match="it has no rows"):
        command("import", "p", jsonl(tmp_path / "empty.jsonl"))


@pytest.fixture(scope="module")
def generation(llama_folder: Path) -> Iterator[str]:
    with running("generation", model_folder=llama_folder, slots=4) as server:
        yield server.target


def test_answers_are_drawn_ranked_exported_and_trained_on(
    command: Command, service: Service, generation: str, llama_folder: Path, tmp_path: Path
) -> None:
    command("create", "p", "--kind", "rank", "--undo-s", 0, "--no-ratings")
    prompts = jsonl(
        tmp_path / "prompts.jsonl",
        *({"prompt": f"say something helpful {number}", "category": "chat", "user": "u1"} for number in range(11)),
        {"messages": [{"role": "user", "content": "what does the dog do?"}], "context": "The dog sleeps."},
    )
    drawn = command(
        *("draw", "p", "--prompts", prompts, "--policy", generation, "--policy", f"{generation}@0", "--answers", 4),
        *("--temperature", 1.0, "--temperature", 1.5, "--max-new-tokens", 6, "--out", tmp_path / "drawn.jsonl"),
    )
    assert drawn.exit_code == 0 and "12 tasks in p, 4 answers each, from 4 contestants" in drawn.output, drawn.output
    rows = [json.loads(line) for line in (tmp_path / "drawn.jsonl").read_text().splitlines()]
    assert all(len(set(row["answers"])) == 4 for row in rows)
    assert [source["temperature"] for source in rows[0]["sources"]] == [1.0, 1.0, 1.5, 1.5]
    for person in (service.person("ann"), service.person("bob", group="heldout")):
        while given := person.next("p"):
            assert person.submit(given, in_order(given)).status_code == 200
    exported = tmp_path / "rankings.jsonl"
    # each row comes again with the label that stands beside the overlap
    assert "12 rows, the last of sequence 24" in command("export", "p", exported, "--settled-only").output
    checked = CliRunner().invoke(trimtab, ["data", "check", "rankings", str(exported), "--json"])
    assert checked.exit_code == 0, checked.output
    read = read_rankings(exported)
    assert {labeling.group for row in read for labeling in row.labelings} == {"", "heldout"}
    assert all(row.labelings[0].ranks == row.labelings[1].ranks for row in read)
    only = tmp_path / "heldout.jsonl"
    command("export", "p", only, "--group", "heldout")
    assert {labeling.labeler for row in read_rankings(only) for labeling in row.labelings} == {"bob"}
    assert "all pairs: 100.0%" in command("agreement", "p").output

    outcome = run(reward_model_spec(tmp_path, llama_folder))
    assert outcome.state == "SUCCEEDED", outcome.error


def reward_model_spec(folder: Path, model: Path) -> RunSpec:
    return RunSpec.model_validate(
        {
            "name": "r",
            "directory": folder / "run",
            "model": str(model),
            "data_directory": folder,
            "stages": ["reward_model"],
            "threads": 1,
            "reward_model": {
                "initial_model": "base",
                "rankings": "{data}/rankings.jsonl",
                "demonstrations": None,
                "held_out_fraction": 0.25,
                "batch_size": 4,
                "optimizer": {"learning_rate": 1e-3},
                "micro_batch_tokens": 256,
                "bootstrap_samples": 100,
            },
        }
    )


def test_demonstrations_are_exported_as_the_trainer_reads_them(
    command: Command, service: Service, tmp_path: Path
) -> None:
    command("create", "d", "--kind", "demonstrate", "--undo-s", 0)
    command("import", "d", jsonl(tmp_path / "rows.jsonl", {"prompt": "Q", "category": "chat"}, {"category": "own"}))
    ann = service.person("ann")
    while given := ann.next("d"):
        ann.submit(given, {"completion": "A"} | ({"prompt": "mine"} if given["writes_prompt"] else {}))
    out = tmp_path / "demonstrations.jsonl"
    command("export", "d", out)
    assert [(row.prompt, row.completion, row.category) for row in read_demonstrations(out)] == [
        ("Q", "A", "chat"),
        ("mine", "A", "own"),
    ]


def test_draw_refuses_before_it_draws(command: Command, service: Service, generation: str, tmp_path: Path) -> None:
    prompts = jsonl(tmp_path / "prompts.jsonl", {"prompt": "Q"})
    policy = ("--policy", generation)
    for arguments, words in (
        (("draw", "nothing", "--prompts", prompts, *policy), "no project"),
        (("draw", "p", "--prompts", jsonl(tmp_path / "a.jsonl", ranked(0)), *policy), "has answers already"),
        (("draw", "p", "--prompts", jsonl(tmp_path / "b.jsonl", {"category": "x"}), *policy), "must not be empty"),
        (("draw", "p", "--prompts", prompts, "--policy", f"{generation}@new"), "VERSION a number"),
    ):
        with pytest.raises(TrimtabError, match=words):
            command(*arguments)


def test_an_export_follows_what_is_finished_and_settled(service: Service, tmp_path: Path) -> None:
    service.project(undo_ms=300)
    service.add(*(pb.LabelTask(task_key=str(n), prompt=f"Q{n}", answers=["a", "b", "c", "d"]) for n in range(3)))
    ann = service.person("ann")
    seen: list[tuple[str, float]] = []

    def follow() -> None:
        request = pb.ExportLabelsRequest(project="p", follow=True)
        for response in service.program.export_labels(request, timeout_s=60):
            if response.row_json:  # a sign of life has none
                seen.append((response.task_key, time.monotonic()))
            if len(seen) == 3:
                return

    thread = threading.Thread(target=follow)
    thread.start()
    sent = []
    for _ in range(3):
        given = ann.next("p")
        assert ann.submit(given, in_order(given)).status_code == 200
        sent.append(time.monotonic())
    undone = ann.post(f"assignments/{given['id']}/undo")
    assert undone.status_code == 200
    ann.submit(given, in_order(given))
    thread.join(30)
    assert [key for key, _ in seen] == ["0", "1", "2"]
    assert all(came - at >= 0.25 for (_, came), at in zip(seen, sent, strict=True))


def test_a_wrong_field_is_told_as_the_service_tells_it(command: Command) -> None:
    with pytest.raises(InvalidRequest, match="overlap: 101; allowed: 1..100"):
        command("create", "p", "--kind", "rank", "--overlap", 101)
