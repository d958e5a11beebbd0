"""The copy of a pod's log: whole and without a double, whatever the API server, the clocks and this service do.

The API server is a small one of this test, since a real one does none of this when asked to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web
from kubernetes.aio import client

from trimtab_services.trainer.launchers import pod_log
from trimtab_services.trainer.launchers.cluster import Cluster
from trimtab_services.trainer.launchers.pod_log import PodLog

SAME = "2026-01-02T03:04:05.678901234Z"
CUT = object()
"""Ends a stream in the middle."""

Stream = list[bytes | object]


class Api:
    """Answers each request for a log with the next of some streams, and then with the last one again."""

    def __init__(self, *streams: Stream | int) -> None:
        self.streams = list(streams)
        self.asked = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        stream = self.streams.pop(0) if len(self.streams) > 1 else self.streams[0]
        if isinstance(stream, int):
            return web.json_response({"message": f"answer {stream}"}, status=stream)
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in stream:
            if not isinstance(piece, bytes):
                assert request.transport is not None
                request.transport.close()
                break
            await response.write(piece)
            await asyncio.sleep(0.02)  # so that each arrives by itself
        return response


def copy(
    path: Path, *streams: Stream | int, pod: str = "pod-1", is_over: Callable[[Api], bool] = lambda api: True
) -> Api:
    """Copies what an API server with these streams has of a pod's log, by a service that begins now."""

    async def run() -> Api:
        api = Api(*streams)
        app = web.Application()
        app.router.add_get("/api/v1/namespaces/x/pods/{pod}/log", api.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        cluster = Cluster(client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{port_of(site)}")), "x")
        try:
            async with asyncio.timeout(20):
                await PodLog(cluster, path, "run").follow(pod, "run", lambda: is_over(api))
        finally:
            await cluster.close()
            await runner.cleanup()
        return api

    return asyncio.run(run())


def port_of(site: web.TCPSite) -> int:
    server = site._server  # aiohttp tells the port that it was given nowhere else
    assert isinstance(server, asyncio.Server)
    return int(server.sockets[0].getsockname()[1])


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_log, "_AGAIN_S", 0.1)


def line(number: int, at: str = "") -> bytes:
    return f"{at or f'2026-01-02T03:04:{number:02}Z'} line {number}\n".encode()


def lines(*numbers: int) -> str:
    return "".join(f"line {number}\n" for number in numbers)


def test_lines_of_one_time_in_two_pieces_are_all_copied(tmp_path: Path) -> None:
    log = tmp_path / "run" / "run.log"
    copy(log, [line(1, SAME), line(2, SAME), line(3, SAME)])
    assert log.read_text() == lines(1, 2, 3)


def test_a_stream_that_is_cut_goes_on_after_the_last_line(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    whole: Stream = [line(1), line(2, SAME), line(3, SAME), line(4, SAME), line(5)[:-1]]
    copy(log, [line(1), line(2, SAME), line(3, SAME) + line(4, SAME)[:-3], CUT], whole)
    assert log.read_text() == lines(1, 2, 3, 4, 5)


def test_a_stream_that_ends_while_the_pod_works_is_asked_for_again(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    api = copy(log, [line(1), line(2)[:9]], [line(1), line(2), line(3)], is_over=lambda api: api.asked > 1)
    assert log.read_text() == lines(1, 2, 3) and api.asked == 3  # the last time all of it is there


def test_a_new_pod_on_a_node_whose_clock_is_behind_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    copy(log, [line(50)])
    copy(log, [line(1), line(2)], pod="pod-2")
    assert log.read_text() == lines(50, 1, 2)


def test_a_clock_that_is_set_back_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    copy(log, [line(9), line(1), line(2)])
    assert log.read_text() == lines(9, 1, 2)


def test_the_next_service_goes_on_and_copies_again_what_was_not_noted(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    copy(log, [line(1), line(2)])
    with log.open("a") as file:
        file.write("line 3\nlin")  # killed between the copy and the note of it
    copy(log, [line(1), line(2), line(3), line(4)])
    assert log.read_text() == lines(1, 2, 3, 4)


def test_what_the_kubelet_says_instead_is_no_line_of_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "run.log"
    with caplog.at_level(logging.WARNING):
        copy(log, [line(1), b"failed to create fsnotify watcher: too many open files"], [line(1), line(2)])
    assert log.read_text() == lines(1, 2)
    assert "fsnotify" in str([record.__dict__.get("error") for record in caplog.records])


@pytest.mark.parametrize("status", [429, 503])
def test_an_api_server_that_is_busy_is_asked_again(tmp_path: Path, status: int) -> None:
    log = tmp_path / "run.log"
    copy(log, status, [line(1)])
    assert log.read_text() == lines(1)


def test_a_log_that_is_gone_before_its_end_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "run.log"
    with caplog.at_level(logging.WARNING):
        copy(log, [line(1), CUT], 404)
    *copied, last = log.read_text().splitlines()
    assert copied == ["line 1"]
    assert last == "trimtab: the rest of this log could not be copied: Pod x/pod-1: answer 404"
    assert "the log of a run cannot be read" in [record.getMessage() for record in caplog.records]


def test_a_pod_that_is_deleted_after_its_end_has_lost_nothing(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    copy(log, [line(1)], 404, is_over=lambda api: api.asked > 0)
    assert log.read_text() == lines(1)


def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "run" / "run.log"
    log.parent.write_text("a file where the folder is to be")

    def make_room(api: Api) -> bool:
        if api.asked == 1:
            with suppress(FileNotFoundError, IsADirectoryError):
                log.parent.unlink()
        return True

    copy(log, [line(1), line(2)], is_over=make_room)
    assert log.read_text() == lines(1, 2)
