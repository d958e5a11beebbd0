"""The live stream: from where the page was, without a gap and without a repetition."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from trimtab.v1 import info_pb2
from trimtab.v1 import trainer_pb2 as pb

from .scene import Service, done, ended, fill_events, queue, replica, said, started, trainer


@contextmanager
def stream(service: Service, name: str, headers: dict[str, str] | None = None, **query: Any) -> Iterator[Any]:
    """The messages of a run as (kind, id, body)."""
    url = f"{service.url}/runs/api/runs/{name}/events"
    with httpx.stream("GET", url, params=query, headers=headers, timeout=30, trust_env=False) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield messages(answer.iter_lines())


def messages(lines: Iterator[str]) -> Iterator[tuple[str, str, Any]]:
    kind, number, body = "", "", None
    for line in lines:
        key, _, value = line.partition(": ")
        if key == "event":
            kind = value
        elif key == "id":
            number = value
        elif key == "data":
            body = json.loads(value)
        elif not line:
            yield kind, number, body
            kind, number, body = "", "", None


def sequences(told: list[tuple[str, str, Any]]) -> list[int]:
    return [event["sequence"] for kind, _, body in told if kind == "events" for event in body]


def test_what_was_and_what_comes(empty: Service) -> None:
    empty.run("a", started("ppo", 3), done("ppo", 1, 3, reward=0.5, tokens=7.0, version=4.0))
    with stream(empty, "a") as coming:
        kind, number, (began, step) = next(coming)
        assert (kind, number) == ("events", "2")
        assert began["log"]["text"] == "begins"
        assert step["figures"] == {"reward": 0.5} and step["version"] == 4  # only what a plot shows
        kind, _, run = next(coming)
        assert (kind, run["state"], run["step"]) == ("run", "RUNNING", 1)
        empty.tell("a", queue(5, 4, 2))
        kind, number, (event,) = next(coming)
        assert (kind, number, event["queue"]) == ("events", "3", {"waiting": 5, "running": 4, "replicas": 2})
        empty.tell("a", ended(pb.RUN_STATE_FAILED, "out of memory"))
        rest = list(coming)
    assert rest[-1][0] == "ended"
    states = [body["state"] for kind, _, body in rest if kind == "run"]
    assert states[-1] == "FAILED"


def test_replicas_come_with_the_run(empty: Service) -> None:
    empty.run("a", said("one"))
    with stream(empty, "a") as coming:
        next(coming)
        assert next(coming)[2]["replicas"] is None
        for version in (3, 4):
            empty.report("a", replica(version=version))
            kind, _, run = next(coming)
            assert (kind, [one["version"] for one in run["replicas"]]) == ("run", [version])
        assert run["state"] == "RUNNING" and run["replicas_seconds_ago"] < 10


def test_a_page_that_lost_its_connection_goes_on_where_it_was(empty: Service) -> None:
    empty.run("a", *[said(f"line {number}") for number in range(5)])
    with stream(empty, "a") as coming:
        seen = sequences([next(coming)])
    assert seen == [1, 2, 3, 4, 5]
    empty.tell("a", said("while nobody looked"), said("twice"))
    with stream(empty, "a", after=5) as coming:
        assert sequences([next(coming)]) == [6, 7]
    with stream(empty, "a", headers={"Last-Event-ID": "6"}, after=2) as coming:  # as a browser connects again
        assert sequences([next(coming)]) == [7]
    with stream(empty, "a", headers={"Last-Event-ID": "no number"}, after=6) as coming:
        assert sequences([next(coming)]) == [7]


def test_it_goes_on_over_a_restart_of_the_service(tmp_path: Path) -> None:
    with trainer(tmp_path) as service:
        service.run("a", said("before"))
        with stream(service, "a") as coming:
            assert sequences([next(coming)]) == [1]
    with trainer(tmp_path) as service:
        service.tell("a", said("after"))
        with stream(service, "a", after=1) as coming:
            assert sequences([next(coming)]) == [2]


def test_a_drain_ends_streams_and_is_not_held_up_by_them(tmp_path: Path) -> None:
    with trainer(tmp_path, drain_s=20.0) as service:
        service.run("a", said("one"))
        with stream(service, "a") as coming:
            next(coming)
            began = time.monotonic()
            service.server.run(service.server.server.runtime.set_state(info_pb2.SERVICE_STATE_DRAINING, "told to stop"))
            assert [kind for kind, _, _ in coming if kind != "run"] == []
            assert time.monotonic() - began < 10


def test_a_page_that_is_far_behind_is_told_so(empty: Service) -> None:
    fill_events(empty, "long", 3000)
    with stream(empty, "long") as coming:
        assert [kind for kind, _, _ in coming] == ["behind"]
    with stream(empty, "long", after=2900) as coming:
        assert sequences([next(coming)])[0] == 2901


def test_state_that_no_event_tells_of_is_told(empty: Service) -> None:
    empty.run("a", said("one"))
    with stream(empty, "a") as coming:
        next(coming)
        assert next(coming)[2]["state"] == "RUNNING"
        empty.store.set_state("a", pb.RUN_STATE_STOPPING)
        assert next(coming)[2]["state"] == "STOPPING"


def test_a_wrong_place_is_refused(empty: Service) -> None:
    empty.run("a", said("one"))
    answer = empty.get("runs/a/events", after="-1")
    assert answer.status_code == 400 and answer.json()["field"] == "after"
