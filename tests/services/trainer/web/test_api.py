"""What the page is told: runs, curves of bounded length, log, versions, samples, output, replicas."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from random import Random

import pytest

from trimtab.errors import FailedPrecondition
from trimtab.v1 import info_pb2
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer.run_log import MOST_OUTPUT_BYTES
from trimtab_services.trainer.web.curves import MOST_POINTS, StageCurves
from trimtab_services.trainer.web.samples import SampleFiles
from trimtab_trainer.report_plots import run_plots

from .scene import MARKUP, Service, done, ended, fill_events, fill_runs, ppo_step, replica, rollouts, said, started


def test_runs_newest_first_with_state_step_time_left_and_error(service: Service) -> None:
    told = {run["name"]: run for run in service.get("runs").json()["runs"]}
    assert list(told) == ["working", "stopped", "succeeded", "failed"]
    assert told["failed"]["state"] == "FAILED" and MARKUP in told["failed"]["error"] and told["failed"]["has_ended"]
    working = told["working"]
    assert (working["state"], working["stage"], working["step"], working["total_steps"]) == ("RUNNING", "ppo", 45, 100)
    assert working["seconds_left"] >= 0 and told["stopped"]["seconds_left"] is None


def test_time_left_is_that_of_the_pace_of_late(empty: Service) -> None:
    events = [started("sft", 100), *[done("sft", step, 100, loss=1.0) for step in range(1, 41)]]
    now = 1_700_000_000
    for number, event in enumerate(events):
        event.time.FromSeconds(now + (number if number < 8 else 8 + 20 * (number - 8)))  # 1 s a step, then 20 s
    empty.run("slow", *events)
    (run,) = empty.get("runs").json()["runs"]
    assert run["seconds_a_step"] == 20.0
    assert run["seconds_left"] == 0.0  # the last step was told long ago


def test_a_list_comes_page_by_page_and_1000_runs_at_once(empty: Service) -> None:
    fill_runs(empty, 1000)
    first = empty.get("runs", limit=400).json()
    second = empty.get("runs", limit=1000, before=first["next_before"]).json()
    names = [run["name"] for run in first["runs"] + second["runs"]]
    assert names == [f"run-{number:04}" for number in reversed(range(1000))] and second["next_before"] is None
    refused = empty.get("runs", limit=1001)
    assert refused.status_code == 400 and "limit: 1001 is not in 1..1000" in refused.json()["message"]


def test_the_plots_are_those_of_the_report(service: Service, empty: Service) -> None:
    metrics = dict(service.store.events("working", 0)[60].step_done.metrics)
    stages = ("sft", "reward_model", "dpo", "pretrain")
    figures = ("loss", "held_out_loss", "accuracy", "held_out_accuracy", "better_reward", "worse_reward")
    others = {name: 0.5 for name in (*figures, "better_logprob", "worse_logprob")}
    series = {stage: {1: others, 2: others} for stage in stages} | {"ppo": {1: metrics, 2: metrics}}
    for name, more in (("as-usual", {}), ("with-control", {"ppo_without_kl": {1: metrics, 2: metrics}})):
        all_of_it = series | more
        events = [done(stage, step, 2, **row) for stage, rows in all_of_it.items() for step, row in rows.items()]
        empty.run(name, *events)
        plots = empty.get(f"runs/{name}").json()["plots"]
        assert [plot["title"] for plot in plots] == [plot.title for plot in run_plots(all_of_it)]


def test_curves_have_each_step_and_the_last_of_one_done_twice(empty: Service) -> None:
    empty.run(
        "a",
        done("sft", 1, 9, loss=3.0, unknown=1.0),
        done("sft", 2, 9, loss=2.0),
        done("sft", 2, 9, loss=1.5, held_out_loss=4.0),
    )
    told = empty.get("runs/a").json()
    assert told["curves"] == {
        "sft": {
            "width": 1,
            "steps": [1, 2],
            "figures": {"loss": {"last": [3.0, 1.5]}, "held_out_loss": {"last": [None, 4.0]}},
        }
    }
    assert told["sequence"] == 3


@pytest.mark.parametrize("steps", [MOST_POINTS, MOST_POINTS + 1, 10 * MOST_POINTS + 3])
def test_a_long_curve_keeps_its_extremes_and_its_end(steps: int) -> None:
    curves = StageCurves(["loss"])
    for step in range(1, steps + 1):
        curves.add(step, {"loss": 99.0 if step == steps // 3 else -99.0 if step == steps // 2 else step / steps})
    told = curves.to_json()
    assert len(told["steps"]) <= MOST_POINTS and told["steps"][-1] == steps
    assert told["steps"] == sorted(set(told["steps"]))
    loss = told["figures"]["loss"]
    assert loss["last"][-1] == 1.0
    if told["width"] == 1:
        assert (max(loss["last"]), min(loss["last"])) == (99.0, -99.0)
    else:
        assert (max(loss["high"]), min(loss["low"])) == (99.0, -99.0)
        assert len(told["steps"]) > MOST_POINTS // 3


def test_the_log_by_pages_and_its_warnings_alone(empty: Service) -> None:
    severities = [pb.SEVERITY_INFO, pb.SEVERITY_WARNING, pb.SEVERITY_ERROR]
    lines = [said(f"line {number}", severities[number % 3]) for number in range(9)]
    empty.run("a", *lines, done("ppo", 1, 2, reward=1.0), ended(pb.RUN_STATE_FAILED, "out of memory"))
    first = empty.get("runs/a/log", limit=4).json()
    assert [entry["text"] for entry in first["entries"]] == ["run FAILED: out of memory", "line 8", "line 7", "line 6"]
    second = empty.get("runs/a/log", limit=50, before=first["next_before"]).json()
    assert [entry["text"] for entry in second["entries"]] == [f"line {number}" for number in reversed(range(6))]
    assert second["next_before"] is None
    warnings = empty.get("runs/a/log", warnings=1).json()["entries"]
    assert [entry["severity"] for entry in warnings] == [
        "error",
        "error",
        "warning",
        "error",
        "warning",
        "error",
        "warning",
    ]
    assert empty.get("runs/a").json()["warnings"] == 7


def test_versions_are_those_that_the_run_told_of(service: Service) -> None:
    told = service.get("runs/working/versions", limit=1000).json()["versions"]
    assert [one["version"] for one in told] == [*range(48, 2, -1)]
    assert (told[0]["stage"], told[0]["step"], told[-1]["stage"]) == ("ppo", 45, "sft")
    page = service.get("runs/working/versions", limit=2, before=10).json()
    assert [one["version"] for one in page["versions"]] == [9, 8] and page["next_before"] == 8


def test_the_queue_is_gone_with_its_stage(empty: Service) -> None:
    queue = pb.RunEvent(stage="ppo", rollout_queue=pb.RolloutQueue(waiting_rollouts=3, running_rollouts=2, replicas=1))
    empty.run("a", started("ppo", 2), queue)
    assert empty.get("runs/a").json()["queue"] == {"waiting": 3, "running": 2, "replicas": 1}
    empty.tell("a", pb.RunEvent(stage="ppo", step=2, stage_done=pb.StageDone()))
    assert empty.get("runs/a").json()["queue"] is None


def test_samples_side_by_side_with_search(service: Service) -> None:
    told = service.get("runs/working/samples", limit=20).json()
    assert told["models"] == ["base", "ppo_ptx"] and told["found"] == 30
    assert [one["number"] for one in told["samples"]] == [*range(20)] and told["next_after"] == 19
    answer = told["samples"][7]["answers"]["ppo_ptx"]
    assert answer["completion"].startswith("ppo_ptx answer 0 to 7") and not answer["ended"]
    assert answer["figures"] == {"reward": pytest.approx(0.7), "gold": 0.5, "tokens": 12}
    found = service.get("runs/working/samples", query="BASE ANSWER 0 TO 29").json()
    assert [one["number"] for one in found["samples"]] == [29] and found["next_after"] is None
    assert service.get("runs/working/samples", query="nowhere").json()["found"] == 0


def test_a_line_that_is_no_answer_is_named(empty: Service) -> None:
    folder = empty.run("a", started("ppo", 2))
    assert empty.get("runs/a/models").json() == {"models": []}
    (folder / "samples").mkdir()
    (folder / "samples" / "base.jsonl").write_text(json.dumps({"number": 1, "prompt": "a"}) + "\n{}\n")
    assert empty.get("runs/a/models").json() == {"models": ["base"]}
    refused = empty.get("runs/a/samples")
    assert refused.status_code == 422 and "base.jsonl:2: not an answer" in refused.json()["message"]


def answer_file(folder: Path, model: str, text: str) -> Path:
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    path = folder / "samples" / f"{model}.jsonl"
    path.write_text(json.dumps({"number": 0, "prompt": "a", "completion": text}) + "\n")
    return path


def shown(files: SampleFiles, folder: Path) -> dict[str, str]:
    told = files.read(folder, query="", after=-1, limit=9)
    return {model: answer["completion"] for model, answer in told["samples"][0]["answers"].items()}


def test_a_file_of_samples_is_parsed_again_only_when_it_has_changed(tmp_path: Path) -> None:
    files = SampleFiles()
    path = answer_file(tmp_path, "sft", "one")
    assert shown(files, tmp_path) == {"sft": "one"}
    before = path.stat().st_mtime_ns
    answer_file(tmp_path, "sft", "two")
    os.utime(path, ns=(before, before))
    assert shown(files, tmp_path) == {"sft": "one"}
    os.utime(path, ns=(before, before + 1))
    assert shown(files, tmp_path) == {"sft": "two"}


def test_samples_are_kept_up_to_a_bound(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    size = answer_file(one, "sft", "x").stat().st_size
    files = SampleFiles(most_bytes=2 * size)
    assert shown(files, one) == {"sft": "x"}
    for model in ("base", "ppo"):
        answer_file(other, model, "y")
    assert shown(files, other) == {"base": "y", "ppo": "y"}
    stat = (one / "samples" / "sft.jsonl").stat()
    path = answer_file(one, "sft", "z")
    os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    assert shown(files, one) == {"sft": "z"}  # which was not kept beside the two
    answer_file(other, "sft", "y")
    with pytest.raises(FailedPrecondition, match=f"has {3 * size} bytes; the page reads up to {2 * size}"):
        shown(files, other)


def test_the_last_rollouts_that_a_run_told_of(empty: Service) -> None:
    empty.run("a", rollouts(1, 99, "one", "two"), rollouts(2, 99, "three"))
    first, second, third = empty.get("runs/a/rollouts").json()["rollouts"]
    assert first == {
        "sequence": 1,
        "stage": "ppo",
        "step": 1,
        "prompt": "Prompt: one",
        "completion": "Answer: one",
        "reward": 0.25,
        "ended": False,
    }
    assert second["prompt"] == "Prompt: two" and (third["step"], third["ended"]) == (2, True)
    assert empty.get("runs/a/rollouts", after=1).json()["rollouts"] == [third]
    empty.tell("a", *[rollouts(step, 99, "x", "y", "z") for step in range(3, 60)])
    kept = empty.get("runs/a/rollouts").json()["rollouts"]
    assert len(kept) == 40 and kept[-1]["step"] == 59
    assert empty.get("runs/a").json()["rollouts"] == 40


def test_the_end_of_the_output_and_what_comes_after_it(empty: Service) -> None:
    folder = empty.run("a")
    assert empty.get("runs/a/output").json() == {"output": None}
    (folder / "run.log").write_bytes(b"x" * MOST_OUTPUT_BYTES + b"\xff the end")
    told = empty.get("runs/a/output").json()["output"]
    assert told["size"] == told["end"] == MOST_OUTPUT_BYTES + 9 and told["begin"] == 9
    assert told["text"].endswith("\N{REPLACEMENT CHARACTER} the end") and len(told["text"]) == MOST_OUTPUT_BYTES
    half = "\N{LATIN SMALL LETTER E WITH ACUTE}".encode()
    with (folder / "run.log").open("ab") as log:
        log.write(b" caf" + half[:1])
        log.flush()
        more = empty.get("runs/a/output", after=told["end"]).json()["output"]
        assert (more["begin"], more["text"], more["size"] - more["end"]) == (told["end"], " caf", 1)
        log.write(half[1:])
    rest = empty.get("runs/a/output", after=more["end"]).json()["output"]
    assert rest["text"] == half.decode() and rest["end"] == rest["size"]
    assert empty.get("runs/a/output", after=rest["end"]).json()["output"]["text"] == ""
    (folder / "run.log").write_text("another life")  # a name that was given back
    assert empty.get("runs/a/output", after=rest["end"]).json()["output"]["text"] == "another life"


@pytest.mark.parametrize("path", ["", "/events", "/log", "/versions", "/rollouts", "/models", "/samples", "/output"])
def test_an_unknown_run_is_said_to_be_one(service: Service, path: str) -> None:
    answer = service.get(f"runs/nobody{path}")
    assert answer.status_code == 404 and answer.json()["message"] == "name: no run 'nobody'"


def test_a_name_that_was_given_back_begins_with_other_events(empty: Service) -> None:
    empty.run("a", said("the first life"), ended(pb.RUN_STATE_FAILED, "no such file"))
    assert empty.get("runs/a/log").json()["entries"][1]["text"] == "the first life"
    empty.run("a", said("the second life"), spec="seed: 2\n")
    assert [entry["text"] for entry in empty.get("runs/a/log").json()["entries"]] == ["the second life"]


def test_replicas_are_those_that_the_run_told_of_last(empty: Service) -> None:
    empty.run("a", said("begins"))
    assert empty.get("runs/a").json()["run"]["replicas"] is None
    lost = replica(address="10.0.0.2:1", state=info_pb2.SERVICE_STATE_UNSPECIFIED, note="gone", service="reward")
    lost.ClearField("seconds_since_answer")
    empty.report("a", replica(version=1))
    empty.report("a", replica(version=7, channel_version=9, waiting_items=3, running_items=2, calls=1), lost)
    run = empty.get("runs/a").json()["run"]
    first, second = run["replicas"]
    assert first == {
        "service": "generation",
        "address": "10.0.0.1:50051",
        "state": "SERVING",
        "note": "",
        "version": 7,
        "lag": 2,
        "waiting": 3,
        "running": 2,
        "calls": 1,
        "seconds_since_answer": 1.5,
    }
    assert (second["state"], second["note"], second["lag"]) == ("UNREACHABLE", "gone", None)
    assert second["seconds_since_answer"] is None
    assert 0 <= run["replicas_seconds_ago"] < 10 and abs(run["replicas_time"] - time.time()) < 10
    assert "replicas" not in empty.get("runs").json()["runs"][0]
    empty.tell("a", ended(pb.RUN_STATE_STOPPED))
    assert empty.get("runs/a").json()["run"]["replicas"] is None


def test_100_000_steps_are_a_short_answer(empty: Service) -> None:
    fill_events(empty, "long", 100_000)
    answer = empty.get("runs/long")
    assert len(answer.content) < 400_000
    told = answer.json()
    assert told["sequence"] == 100_001 and told["curves"]["ppo"]["steps"][-1] == 100_000
    assert told["versions"] == 100_000
    empty.tell("long", ppo_step(100_000, 100_000, Random(1)))
    assert empty.get("runs/long").elapsed.total_seconds() < 2.0  # only what came since is read
