"""What a server logs: one JSON object a line, and never a prompt."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pydantic
import pytest
from aiohttp import web

from running import FREE_PORTS, RunningServer
from trimtab_services.runtime.config import LogConfig, ServiceConfig
from trimtab_services.runtime.http import Route
from trimtab_services.runtime.json_body import read_json
from trimtab_services.runtime.logs import configure_logs
from trimtab_services.runtime.server import Service
from trimtab_services.runtime.state import Runtime

SECRET = "what the user wrote"


class Body(pydantic.BaseModel):
    prompt: int


async def fail(request: web.Request) -> web.StreamResponse:
    """Fails as the code below a handler might: every message quotes the prompt."""
    prompt = (await read_json(request))["prompt"]
    try:
        Body(prompt=prompt)
    except pydantic.ValidationError as error:
        try:
            {}[prompt]  # noqa: B018
        except KeyError as missing:
            raise ValueError(f"cannot read {prompt!r}") from ExceptionGroup(prompt, [error, missing])
    return web.Response()


class Refused(OSError):
    """A library's own."""


RAISED = [
    RuntimeError(SECRET),
    TypeError(SECRET),
    AttributeError(SECRET),
    NameError(SECRET),
    ImportError(SECRET),
    MemoryError(SECRET),
    OSError(SECRET),
    OSError(errno.ENOENT, SECRET, SECRET),
    Refused(errno.ENOENT, SECRET),
    ExceptionGroup(SECRET, [RuntimeError(SECRET), KeyError(SECRET)]),
]


async def raise_one(request: web.Request) -> web.StreamResponse:
    """As a user's own code may, with a prompt in its message."""
    raise RAISED[int(request.query["which"])]


async def fail_beside(request: web.Request) -> web.StreamResponse:
    """Faults that asyncio logs: of a callback with its arguments, and of a task that nobody waits for."""

    def fail_with(prompt: str) -> None:
        raise RuntimeError(prompt)

    async def fail_alone() -> None:
        raise RuntimeError(SECRET)

    loop = asyncio.get_running_loop()
    loop.call_soon(fail_with, SECRET)
    task = asyncio.create_task(fail_alone())
    await asyncio.wait([task])
    del task
    return web.Response()


async def run_out(request: web.Request) -> web.StreamResponse:
    raise PermissionError(errno.EACCES, "not this text", "not this name")


HANDLERS = (fail, raise_one, fail_beside, run_out)


@contextmanager
def logged(config: LogConfig) -> Iterator[RunningServer]:
    async def build(runtime: Runtime[ServiceConfig]) -> Service:
        return Service(handlers=[], routes=[Route("POST", f"/{handler.__name__}", handler) for handler in HANDLERS])

    before = logging.getLogger().handlers[:]
    server = RunningServer(ServiceConfig(**FREE_PORTS, log=config), "reward", "trimtab.v1.RewardService", build)  # type: ignore[arg-type]
    try:
        configure_logs(config, "reward-1")
        yield server
    finally:
        logging.getLogger().handlers = before
        server.stop()


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_fault_is_traced_without_what_the_user_wrote(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    with logged(LogConfig(format=form)) as server:  # type: ignore[arg-type]
        answer = httpx.post(f"{server.server.runtime.http_url}/fail", json={"prompt": SECRET})
    assert answer.status_code == 500 and SECRET not in answer.text
    told = capsys.readouterr().err
    assert SECRET not in told
    for part in (
        "ValueError: ",
        "pydantic_core._pydantic_core.ValidationError: ",
        "test_logs.py",
        "KeyError: ",
        "in fail",
        "led to",
    ):
        assert part in told
    assert answer.headers["x-request-id"] in told


@pytest.mark.parametrize("which", range(len(RAISED)), ids=[type(error).__name__ for error in RAISED])
def test_no_message_of_an_exception_is_shown(which: int, capsys: pytest.CaptureFixture[str]) -> None:
    with logged(LogConfig()) as server:
        answer = httpx.post(f"{server.server.runtime.http_url}/raise_one", params={"which": which})
    assert answer.status_code == 500 and SECRET not in answer.text
    told = capsys.readouterr().err
    assert SECRET not in told and type(RAISED[which]).__qualname__ in told and "in raise_one" in told


def test_what_asyncio_logs_is_cut_to_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    with logged(LogConfig()) as server:
        assert httpx.post(f"{server.server.runtime.http_url}/fail_beside").status_code == 200
    told = capsys.readouterr().err
    assert SECRET not in told
    messages = [json.loads(line)["message"] for line in told.splitlines() if '"asyncio"' in line]
    assert set(messages) == {
        "Exception in callback fail_beside.<locals>.fail_with",
        "Task exception was never retrieved",
    }


def test_errors_of_the_system_are_explained_and_all_messages_are_shown_where_that_is_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with logged(LogConfig()) as server:
        httpx.post(f"{server.server.runtime.http_url}/run_out")
    (fault,) = [line for line in map(json.loads, capsys.readouterr().err.splitlines()) if "trace" in line]
    assert fault["trace"].endswith("PermissionError: [Errno 13] Permission denied")
    with logged(LogConfig(prompts=True)) as server:
        httpx.post(f"{server.server.runtime.http_url}/fail", json={"prompt": SECRET})
    assert SECRET in capsys.readouterr().err
