"""What a server logs: one JSON object a line, and never a prompt."""

from __future__ import annotations

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


async def run_out(request: web.Request) -> web.StreamResponse:
    raise RuntimeError("CUDA out of memory")


@contextmanager
def logged(config: LogConfig) -> Iterator[RunningServer]:
    async def build(runtime: Runtime[ServiceConfig]) -> Service:
        return Service(handlers=[], routes=[Route("POST", "/fail", fail), Route("POST", "/run_out", run_out)])

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


def test_messages_of_the_process_are_shown_and_all_of_them_where_that_is_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with logged(LogConfig()) as server:
        httpx.post(f"{server.server.runtime.http_url}/run_out")
    (fault,) = [line for line in map(json.loads, capsys.readouterr().err.splitlines()) if "trace" in line]
    assert fault["trace"].endswith("RuntimeError: CUDA out of memory")
    with logged(LogConfig(prompts=True)) as server:
        httpx.post(f"{server.server.runtime.http_url}/fail", json={"prompt": SECRET})
    assert SECRET in capsys.readouterr().err
