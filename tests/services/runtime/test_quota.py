"""Quotas: the bucket's arithmetic on a clock of its own, and what callers see of it over gRPC and HTTP."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from running import FREE_PORTS, RunningServer
from trimtab import Client
from trimtab.errors import ConfigError, Overloaded
from trimtab.v1 import weights_pb2
from trimtab_services.runtime.auth import TokenTable
from trimtab_services.runtime.calls import current_call
from trimtab_services.runtime.config import load_config
from trimtab_services.runtime.http import Route
from trimtab_services.runtime.metrics import CallerNames
from trimtab_services.runtime.quota import Quota, Quotas
from trimtab_services.runtime.server import Service
from trimtab_services.runtime.state import Runtime
from trimtab_services.weights.config import WeightsServiceConfig
from trimtab_services.weights.main import SERVICE, build


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def account(clock: Clock, default: Quota | None = None, **own: Quota) -> Quotas:
    return Quotas(default, own.get, lambda resource: None, clock)


def refused_for(quotas: Quotas, caller: str, tokens: int | None = None) -> float:
    """Seconds that a charge is told to wait; 0 when it went through."""
    try:
        if tokens is None:
            quotas.charge_request(caller)
        else:
            quotas.charge_tokens(caller, tokens)
    except Overloaded as error:
        assert error.retry_after_s is not None
        return error.retry_after_s
    return 0.0


def test_a_burst_then_the_rate() -> None:
    clock = Clock()
    quotas = account(clock, Quota(requests_per_s=4, burst_s=2.5))
    assert [refused_for(quotas, "a") for _ in range(10)] == [0.0] * 10
    assert refused_for(quotas, "a") == pytest.approx(0.25)
    assert refused_for(quotas, "a") == pytest.approx(0.25)  # a refusal costs nothing
    clock.now += 0.25
    assert refused_for(quotas, "a") == 0.0
    assert refused_for(quotas, "a") > 0
    assert refused_for(quotas, "b") == 0.0
    clock.now += 1000
    assert [refused_for(quotas, "a") > 0 for _ in range(11)] == [False] * 10 + [True]  # no more than a burst is saved


def test_a_charge_larger_than_the_bucket_waits_for_a_full_one_and_is_paid_off() -> None:
    clock = Clock()
    quotas = account(clock, Quota(tokens_per_s=100, burst_s=1))
    assert refused_for(quotas, "a", 1000) == 0.0
    assert refused_for(quotas, "a", 1) == pytest.approx(9.01)
    assert refused_for(quotas, "a", 5000) == pytest.approx(10.0)
    clock.now += 10
    assert refused_for(quotas, "a", 5000) == 0.0


@settings(max_examples=200, deadline=None)
@given(
    rate=st.floats(0.01, 1e6),
    burst_s=st.floats(0.01, 1000),
    steps=st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 50)), min_size=1, max_size=60),
)
def test_over_any_time_no_more_than_burst_and_rate_and_the_wait_is_exact(
    rate: float, burst_s: float, steps: list[tuple[int, float]]
) -> None:
    clock = Clock()
    quotas = account(clock, Quota(tokens_per_s=rate, burst_s=burst_s))
    start, taken, last = clock.now, 0, 0
    for amount, pause_s in steps:
        wait_s = refused_for(quotas, "a", amount)
        if wait_s:
            clock.now += wait_s * 0.999 - 2e-6
            if wait_s > 1e-4:
                assert refused_for(quotas, "a", amount) > 0  # not earlier than told
            clock.now += wait_s * 0.001 + 2e-6
            assert refused_for(quotas, "a", amount) == 0.0  # and not later
        taken, last = taken + amount, amount
        earned = rate * (clock.now - start + burst_s)
        assert taken - last <= earned * (1 + 1e-6) and taken <= max(earned, earned - rate * burst_s + last) * (1 + 1e-6)
        clock.now += pause_s


def test_callers_that_went_away_are_forgotten_and_memory_is_bounded() -> None:
    clock = Clock()
    quotas = account(clock, Quota(requests_per_s=1, burst_s=2))
    for number in range(20_000):
        quotas.charge_request(f"caller {number}")
        clock.now += 0.01  # each is whole again after a second
    assert len(quotas) < 2100
    for number in range(250_000):  # at one moment: nobody is whole again
        quotas.charge_request(f"address {number}")
    assert len(quotas) <= 100_000
    debtor = refused_for(quotas, "debtor") + refused_for(quotas, "debtor")
    assert debtor == 0.0 and refused_for(quotas, "debtor") > 0
    for number in range(150_000):
        quotas.charge_request(f"later {number}")
    assert refused_for(quotas, "debtor") > 0  # those that used most are remembered


def test_a_caller_s_own_quota_lies_over_the_default() -> None:
    default = Quota(requests_per_s=1, tokens_per_s=10, burst_s=1)
    own = {"fast": Quota(requests_per_s=3), "free": Quota.model_validate({"requests_per_s": None})}
    quotas = account(Clock(), default, **own)
    passed = {name: sum(refused_for(quotas, name) == 0 for _ in range(50)) for name in ("fast", "free", "plain")}
    assert passed == {"fast": 3, "free": 50, "plain": 1}
    assert refused_for(quotas, "fast", 10) == 0.0 and refused_for(quotas, "fast", 1) == pytest.approx(0.1)
    alone = account(Clock(), None, **own)
    assert [refused_for(alone, "plain") for _ in range(50)] == [0.0] * 50
    assert sum(refused_for(alone, "fast") == 0 for _ in range(50)) == 30


def test_a_wrong_quota_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'quota\.requests_per_s' has value -1"):
        load_config(WeightsServiceConfig, "weights", None, {"store": str(tmp_path), "quota.requests_per_s": -1}, {})
    with pytest.raises(ConfigError, match=r"unknown key 'quota\.request_per_s'.*burst_s, requests_per_s, tokens_per_s"):
        load_config(WeightsServiceConfig, "weights", None, {"store": str(tmp_path), "quota.request_per_s": 1}, {})
    file = tmp_path / "tokens"
    for quota, words in (({"rate": 1}, "quota.rate"), ({"tokens_per_s": 0}, "quota.tokens_per_s"), (3, "quota: ")):
        file.write_text(json.dumps({"secret": {"name": "x", "scopes": [], "quota": quota}}))
        with pytest.raises(ConfigError) as caught:
            TokenTable(file)
        assert words in caught.value.message and "(x)" in caught.value.message and "secret" not in caught.value.message
    entries = {f"secret{n}": {"name": "x", "scopes": [], "quota": {"requests_per_s": n}} for n in (1, 2)}
    file.write_text(json.dumps(entries))
    with pytest.raises(ConfigError, match="another token of the same name"):
        TokenTable(file)


def tokens_file(folder: Path, requests_per_s: float) -> Path:
    path = folder / "tokens.json"
    entries = {
        "secret-a": {"name": "a", "scopes": ["weights.read"]},
        "secret-b": {"name": "b", "scopes": ["weights.read"], "quota": {"requests_per_s": requests_per_s}},
    }
    path.write_text(json.dumps(entries))
    return path


def test_over_grpc_a_caller_is_told_when_to_come_back_and_the_client_does(tmp_path: Path) -> None:
    quota = Quota(requests_per_s=2, burst_s=2)
    tokens = tokens_file(tmp_path, 50)
    config = WeightsServiceConfig(**FREE_PORTS, store=str(tmp_path / "store"), quota=quota, tokens_file=tokens)  # type: ignore[arg-type]
    server = RunningServer(config, "weights", SERVICE, build)
    request = weights_pb2.ListChannelsRequest()
    try:
        with Client(server.target, token="secret-a") as a, Client(server.target, token="secret-b") as b:
            began = time.monotonic()
            for _ in range(4):
                a.list_channels(request, timeout_s=20)
            with pytest.raises(Overloaded) as caught:
                a.list_channels(request, timeout_s=0.05)
            assert caught.value.retry_after_s == pytest.approx(0.5 - (time.monotonic() - began), abs=0.3)
            assert caught.value.field == "quota.requests_per_s" and caught.value.limit == "2"
            for _ in range(20):  # of its own quota, untouched by the other's
                b.list_channels(request, timeout_s=20)
                a.info(timeout_s=20)  # no work: never charged
            a.list_channels(request, timeout_s=20)  # the client waits as it is told
            assert time.monotonic() - began > 0.45
            page = httpx.get(server.metrics_url).text
            assert 'trimtab_quota_refusal_total{resource="requests"}' in page
            assert 'trimtab_request_total{caller="a",code="RESOURCE_EXHAUSTED",method="ListChannels"}' in page
            assert 'trimtab_request_total{caller="b",code="OK",method="ListChannels"} 20.0' in page
            tokens_file(tmp_path, 0.01)
            time.sleep(1.1)
            b.list_channels(request, timeout_s=20)
            with pytest.raises(Overloaded) as caught:
                b.list_channels(request, timeout_s=1)
            assert caught.value.retry_after_s is not None and caught.value.retry_after_s > 50
    finally:
        server.stop()


def test_over_http_it_is_a_429_with_retry_after(tmp_path: Path) -> None:
    async def spend(request: web.Request) -> web.StreamResponse:
        call = current_call()
        assert call is not None
        runtimes[0].charge_tokens(call.caller, int(request.query["tokens"]))
        return web.json_response({})

    async def build_it(runtime: Runtime[WeightsServiceConfig]) -> Service:
        runtimes.append(runtime)
        return Service(handlers=[], routes=[Route("GET", "/spend", spend)])

    runtimes: list[Runtime[WeightsServiceConfig]] = []
    quota = Quota(requests_per_s=1, tokens_per_s=10, burst_s=3)
    config = WeightsServiceConfig(**FREE_PORTS, store=str(tmp_path), quota=quota)  # type: ignore[arg-type]
    server = RunningServer(config, "weights", SERVICE, build_it)
    try:
        with httpx.Client(base_url=server.server.runtime.http_url) as http:
            assert http.get("/spend?tokens=20").status_code == 200
            refused = http.get("/spend?tokens=25")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
            assert refused.json()["field"] == "quota.tokens_per_s" and refused.json()["value"] == "25"
            assert http.get("/spend?tokens=5").status_code == 200
            refused = http.get("/spend?tokens=1")
            assert (refused.status_code, refused.json()["field"]) == (429, "quota.requests_per_s")
            assert [http.get("/info").status_code for _ in range(5)] == [200] * 5
    finally:
        server.stop()


def test_labels_of_callers_are_bounded() -> None:
    names = CallerNames(most=2)
    assert [names.label(name) for name in ("a", "b", "c", "a", "")] == ["a", "b", "other", "a", "unidentified"]


def test_what_is_given_back_can_be_used_again() -> None:
    quota = Quota(tokens_per_s=1, burst_s=10)
    quotas = Quotas(quota, own=lambda caller: None, refused=lambda resource: None, clock=float)
    quotas.charge_tokens("a", 100)  # the whole bucket and more: a debt
    quotas.charge_tokens("a", -100)
    quotas.charge_tokens("a", 10)
    with pytest.raises(Overloaded):
        quotas.charge_tokens("a", 1)
