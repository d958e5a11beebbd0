"""`trimtab labeling draw`: what is kept when it is interrupted, and few-shot baselines; real services throughout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from running import RunningServer, running
from trimtab import Client
from trimtab.cli import trimtab
from trimtab.cli.labeling_draw_command import _ANSWERS
from trimtab.cli.labeling_draw_journal import Drawn, opened_journal
from trimtab.errors import ConfigError, DataError, FailedPrecondition, InvalidRequest, SequenceTooLong
from trimtab.types import GenerateRequest, GenerationPrompt, SamplingParams
from trimtab.v1 import labeling_pb2 as pb
from trimtab_services.labeling.contents import ANSWERS

from .people import Service

Command = Callable[..., Result]
PROMPTS = 12
WORDS = ("--temperature", 1.0, "--answers", 4, "--max-new-tokens", 24, "--seed", 5)


@pytest.fixture(scope="module")
def generation(llama_folder: Path) -> Iterator[RunningServer]:
    with running(
        "generation", model_folder=llama_folder, model_name="base", slots=4, deterministic=True, threads=1
    ) as server:
        yield server


@pytest.fixture
def command(service: Service) -> Command:
    def call(*arguments: object) -> Result:
        words = ["labeling", *map(str, arguments), "--target", service.server.target]
        return CliRunner().invoke(trimtab, words, catch_exceptions=False)

    return call


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"say something {n}"}) + "\n" for n in range(PROMPTS)))
    return file


def rows(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def tasks_of(service: Service, project: str) -> int:
    return service.progress(project).tasks


def test_a_killed_drawing_goes_on_and_ends_as_one_that_was_not(
    command: Command, service: Service, generation: RunningServer, prompts: Path, tmp_path: Path
) -> None:
    service.project("killed")
    service.project("whole")
    out, whole, journal = tmp_path / "out.jsonl", tmp_path / "whole.jsonl", tmp_path / "out.jsonl.drawing"
    asked = ("--prompts", prompts, "--policy", generation.target, *WORDS)
    arguments = ["labeling", "draw", "killed", *map(str, asked), "--out", str(out), "--target", service.server.target]
    child = subprocess.Popen([sys.executable, "-m", "trimtab", *arguments], stderr=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 120
        while not journal.exists() or journal.read_bytes().count(b"\n") < 8:
            assert child.poll() is None and time.monotonic() < give_up
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    finally:
        child.wait(30)
    before = journal.read_bytes()
    kept = before[: before.rindex(b"\n") + 1]
    assert 8 <= kept.count(b"\n") < PROMPTS * 4 and not out.exists()
    journal.write_bytes(kept + b'{"place": [1, 2')  # as if it had died while it wrote a line
    second_name = tmp_path / "link"
    os.link(journal, second_name)

    done = command("draw", "killed", *asked, "--out", out)
    assert done.exit_code == 0, done.output
    assert second_name.read_bytes().startswith(kept) and not journal.exists()
    places = [tuple(row["place"]) for row in rows(second_name)[1:]]
    assert len(places) == len(set(places)) >= PROMPTS * 4
    assert command("draw", "whole", *asked, "--out", whole).exit_code == 0
    assert out.read_text() == whole.read_text()
    assert len(rows(out)) == tasks_of(service, "killed") == PROMPTS

    second_name.rename(journal)  # as if it had died after the import and before it cleaned up
    again = command("draw", "killed", *asked, "--out", out)
    assert again.exit_code == 0 and tasks_of(service, "killed") == PROMPTS
    with pytest.raises(ConfigError, match=r"out.jsonl is there already and is not replaced"):
        command("draw", "killed", *asked, "--out", out)


def test_a_drawing_goes_on_with_the_same_settings_only(
    command: Command, service: Service, generation: RunningServer, prompts: Path, tmp_path: Path
) -> None:
    service.project("p")
    prompts.write_text(json.dumps({"prompt": "say something", "task_key": "one"}) + "\n")
    service.add(pb.LabelTask(task_key="one", prompt="Q", answers=["a", "b", "c", "d"]))
    out = tmp_path / "out.jsonl"
    words = ("--prompts", prompts, "--policy", generation.target, "--max-new-tokens", 4, "--out", out)
    refused = CliRunner().invoke(
        trimtab,
        ["labeling", "draw", "p", *map(str, words), "--target", service.server.target],
    )
    assert isinstance(refused.exception, DataError | InvalidRequest)  # its name is another task's
    assert f"{prompts}:1: task_key: " in str(refused.exception)
    journal = tmp_path / "out.jsonl.drawing"
    assert f"is kept in {journal}; the same command goes on" in refused.output and journal.exists()
    for other, told in (
        (("--answers", 5), "begun with --answers 4, and this is --answers 5;"),
        (("--max-new-tokens", 5), "begun with --max-new-tokens 4, and this is --max-new-tokens 5;"),
        (("--temperature", 2), "begun with base --temperature 1, and this is base --temperature 2;"),
    ):
        with pytest.raises(ConfigError, match=told):
            command("draw", "p", *words, *other)
    with opened_journal(tmp_path / "held", {}), pytest.raises(FailedPrecondition, match="another process"):
        with opened_journal(tmp_path / "held", {}):
            pass
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:3], '{"place": 7}', *lines[4:]]) + "\n")
    with pytest.raises(DataError, match=r"out.jsonl.drawing:4: no line of a drawing"):
        command("draw", "p", *words)


def test_what_can_never_be_drawn_is_refused_before_a_file_is_made(
    command: Command, service: Service, generation: RunningServer, prompts: Path, tmp_path: Path
) -> None:
    kinds = {"rank": pb.TASK_KIND_RANK, "compare": pb.TASK_KIND_COMPARE, "demonstrate": pb.TASK_KIND_DEMONSTRATE}
    for name, kind in kinds.items():
        service.project(name, kind)
    with Client(generation.target) as client:
        longest = client.info().models[0].max_sequence_tokens
    asked = ("--prompts", prompts, "--policy", generation.target, "--out", tmp_path / "o")
    assert _ANSWERS == {kinds[kind.value]: counts for kind, counts in ANSWERS.items() if counts[1]}
    for project, other, told in (
        ("rank", ("--answers", 3), "--answers 3: a task to rank has 4..9"),
        ("compare", ("--answers", 4), "--answers 4: a task to compare has 2"),
        ("demonstrate", (), "PROJECT demonstrate: people write its answers"),
        ("rank", ("--max-new-tokens", longest), f"--max-new-tokens {longest}: base takes {longest} tokens"),
        ("rank", ("--temperature", -1), "temperature: "),
        ("rank", ("--temperature", "nan"), "temperature: "),
    ):
        with pytest.raises((ConfigError, InvalidRequest), match=told):
            command("draw", project, *asked, *other)
    assert not list(tmp_path.glob("o*"))


def test_a_drawing_that_gets_no_answer_leaves_no_file(
    command: Command, service: Service, generation: RunningServer, tmp_path: Path
) -> None:
    service.project("p")
    long_prompt = tmp_path / "prompts.jsonl"
    long_prompt.write_text(json.dumps({"prompt": "say something " * 2000}) + "\n")
    asked = ("--prompts", long_prompt, "--policy", generation.target, *WORDS, "--out", tmp_path / "o")
    with pytest.raises(SequenceTooLong):
        command("draw", "p", *asked)
    assert not list(tmp_path.glob("o*"))


def test_a_drawing_without_an_answer_binds_nobody(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl.drawing"
    with opened_journal(path, {"answers": 4}):
        pass
    with opened_journal(path, {"answers": 5}) as journal:
        journal.add((0, 0, 0), Drawn("text", {}))
    with pytest.raises(ConfigError, match="begun with --answers 5"), opened_journal(path, {"answers": 4}):
        pass
    with opened_journal(path, {"answers": 5}) as journal:
        assert journal.drawn == {(0, 0, 0): Drawn("text", {})}


def test_a_base_model_with_a_prefix_is_a_contestant(
    command: Command, service: Service, generation: RunningServer, prompts: Path, tmp_path: Path
) -> None:
    service.project("few", pb.TASK_KIND_COMPARE)
    prefix, out = tmp_path / "examples.txt", tmp_path / "out.jsonl"
    prefix.write_text("Q: what does the dog do?\nA: It sleeps.\n\nQ: {prompt}\nA:")
    done = command(
        *("draw", "few", "--prompts", prompts, "--policy", generation.target, "--answers", 2, "--out", out),
        *("--few-shot", f"{generation.target}@0", prefix, "--few-shot-stop", "e", "--max-new-tokens", 12, "--seed", 3),
    )
    assert done.exit_code == 0, done.output
    assert f"{PROMPTS} tasks in few, 2 answers each, from 2 contestants" in done.output
    drawn = rows(out)
    assert [row["prompt"] for row in drawn] == [row["prompt"] for row in rows(prompts)]  # what labelers see
    names = {tuple(source["model"] for source in row["sources"]) for row in drawn}
    ((plain, few_shot),) = names
    assert plain == "base" and few_shot.startswith("base+few-shot-examples-") and len(few_shot) == 31
    assert not any("e" in row["answers"][1] for row in drawn) and any("e" in row["answers"][0] for row in drawn)
    first = next(row for row in drawn if row["sources"][1].get("sample_index") == 1)
    asked = GenerationPrompt(
        prompt_id="0",
        prompt=prefix.read_text().replace("{prompt}", first["prompt"]),
        seed=3,
        first_sample_index=1,
    )
    with Client(generation.target) as client:
        sampling = SamplingParams(max_new_tokens=12, stop_strings=("e",))
        (result,) = client.generate(GenerateRequest(prompts=(asked,), sampling=sampling, return_text=True))
    assert result.completion is not None and result.completion.text.partition("e")[0] == first["answers"][1]


def test_a_prefix_is_checked_before_anything_is_drawn(
    command: Command, service: Service, generation: RunningServer, prompts: Path, tmp_path: Path
) -> None:
    service.project("p")
    prefix, turns = tmp_path / "prefix.txt", tmp_path / "turns.jsonl"
    turn = {"role": "user", "content": "hello"}
    turns.write_text(json.dumps({"messages": [turn, {"role": "assistant", "content": "yes?"}, turn]}) + "\n")
    for content, file, words in (
        (b" \n", prompts, "must not be empty"),
        (b"{prompt} {prompt}", prompts, "is there 2 times"),
        (b"\xff", prompts, "not UTF-8 at byte 0"),
        (b"Q: ", turns, "turns.jsonl:1: messages: 3 turns; --few-shot takes prompts of one turn"),
    ):
        prefix.write_bytes(content)
        with pytest.raises((ConfigError, DataError), match=words):
            command("draw", "p", "--prompts", file, "--few-shot", generation.target, prefix)
    long_name = tmp_path / f"{'x' * 190}.txt"
    long_name.write_text("Q: ")
    with pytest.raises(ConfigError, match="characters; allowed: 200"):
        command("draw", "p", "--prompts", prompts, "--few-shot", generation.target, long_name)
