"""Who may look: tokens with scope `runs`, sessions of browsers, other origins; and what the files of the page say."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from .scene import Service, said, trainer

TOKENS = {
    "watcher-token": {"name": "watcher", "scopes": ["runs"]},
    "scorer-token": {"name": "scorer", "scopes": ["score"]},
}


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Service]:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps(TOKENS))
    with trainer(tmp_path / "runs", tokens_file=tokens) as service:
        service.run("a", said("one"))
        yield service


@pytest.fixture
def visitor(guarded: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{guarded.url}/runs/api/", timeout=30, trust_env=False) as client:
        yield client


def sign_in(client: httpx.Client, token: str) -> httpx.Response:
    return client.post("session", json={"token": token})


PATHS = [
    "session",
    "runs",
    "runs/a",
    "runs/a/events",
    "runs/a/log",
    "runs/a/versions",
    "runs/a/rollouts",
    "runs/a/models",
    "runs/a/samples",
    "runs/a/output",
]


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_told_to_who_has_not_signed_in(visitor: httpx.Client, path: str) -> None:
    answer = visitor.get(path)
    assert answer.status_code == 401 and answer.json()["reason"] == "TOKEN_MISSING"
    answer = visitor.get(path, headers={"cookie": "trimtab_runs_session=guessed"})
    assert answer.status_code == 401 and answer.json()["reason"] == "TOKEN_UNKNOWN"


def test_a_session_from_sign_in_to_sign_out(visitor: httpx.Client) -> None:
    assert sign_in(visitor, "wrong").status_code == 401
    answer = sign_in(visitor, " watcher-token\n")
    assert answer.json() == {"name": "watcher"}
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "watcher-token" not in cookie
    for path in ("session", "runs", "runs/a"):
        assert visitor.get(path).status_code == 200
    old = visitor.cookies["trimtab_runs_session"]
    assert visitor.post("session/end", json={}).status_code == 200
    assert visitor.get("runs", headers={"cookie": f"trimtab_runs_session={old}"}).status_code == 401


def test_a_token_without_the_scope_is_refused(guarded: Service, visitor: httpx.Client) -> None:
    answer = sign_in(visitor, "scorer-token")
    assert answer.status_code == 403 and answer.json()["limit"] == "runs" and "set-cookie" not in answer.headers
    assert guarded.get("runs", headers={"authorization": "Bearer scorer-token"}).status_code == 403


def test_guesses_of_tokens_are_limited_by_address(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps(TOKENS))
    limits = {"login_tries": 3, "login_window_s": 60, "trusted_proxies": ["127.0.0.0/8"]}
    with trainer(tmp_path / "runs", tokens_file=tokens, **limits) as service:

        def try_from(address: str, token: str) -> httpx.Response:
            headers = {"x-forwarded-for": address}
            return httpx.post(
                f"{service.url}/runs/api/session", json={"token": token}, headers=headers, timeout=30, trust_env=False
            )

        guesses = [try_from("203.0.113.5", token) for token in ("a", "scorer-token", "b", "c")]
        assert [answer.status_code for answer in guesses] == [401, 403, 401, 429]
        assert 0 < int(guesses[-1].headers["retry-after"]) <= 60
        assert guesses[-1].json()["reason"] == "QUOTA_EXCEEDED"
        assert try_from("203.0.113.5", "watcher-token").status_code == 429  # the right one, too
        right = [try_from("198.51.100.7", "watcher-token") for _ in range(5)]
        assert {answer.status_code for answer in right} == {200}

        def send_from(address: str, authorization: str, path: str = "session") -> int:
            headers = {"x-forwarded-for": address, "authorization": authorization}
            return service.get(path, headers=headers).status_code

        assert send_from("203.0.113.5", "Bearer watcher-token") == 429  # by a program as by a browser
        others = [send_from("192.0.2.1", f"Bearer {token}", "runs") for token in ("a", "scorer-token", "b", "c")]
        assert others == [401, 403, 401, 429]
        assert send_from("192.0.2.1", "Bearer watcher-token", "runs") == 429
        assert [send_from("192.0.2.2", "Basic abc") for _ in range(5)] == [401] * 5  # no token is no guess


def test_a_session_goes_on_where_others_guess(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps(TOKENS))
    with (
        trainer(tmp_path / "runs", tokens_file=tokens, login_tries=2) as service,
        httpx.Client(base_url=f"{service.url}/runs/api/", timeout=30, trust_env=False) as client,
    ):
        assert sign_in(client, "watcher-token").status_code == 200
        guesses = [service.get("runs", headers={"authorization": f"Bearer {n}"}).status_code for n in range(3)]
        assert guesses == [401, 401, 429]
        assert client.get("runs").status_code == 200
        tokens.write_text(json.dumps({"other": TOKENS["watcher-token"]}))
        deadline = time.monotonic() + 30
        while client.get("runs").status_code != 401:  # its token was taken out, which is no guess
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert [client.get("runs").status_code for _ in range(3)] == [401] * 3


def test_a_program_sends_the_token_itself(guarded: Service) -> None:
    answer = guarded.get("runs", headers={"authorization": "Bearer watcher-token"})
    assert [run["name"] for run in answer.json()["runs"]] == ["a"]


def test_a_token_that_was_taken_out_lets_nobody_in_and_ends_what_goes_on(
    guarded: Service, visitor: httpx.Client, tmp_path: Path
) -> None:
    sign_in(visitor, "watcher-token")
    with visitor.stream("GET", "runs/a/events") as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: events"
        (tmp_path / "tokens.json").write_text(json.dumps({"other": TOKENS["watcher-token"]}))
        for _ in lines:
            pass  # it ends
    assert visitor.get("runs").status_code == 401


def test_a_session_ends_with_its_time(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps(TOKENS))
    with (
        trainer(tmp_path / "runs", tokens_file=tokens, session_s=0.01) as service,
        httpx.Client(base_url=f"{service.url}/runs/api/", timeout=30, trust_env=False) as client,
    ):
        cookie = sign_in(client, "watcher-token").headers["set-cookie"].split(";")[0]
        time.sleep(0.05)
        assert client.get("runs", headers={"cookie": cookie}).status_code == 401


def test_a_form_of_another_origin_signs_nobody_in_or_out(visitor: httpx.Client) -> None:
    for path in ("session", "session/end"):
        answer = visitor.post(path, content=b'{"token": "watcher-token"}', headers={"content-type": "text/plain"})
        assert answer.status_code == 400 and answer.json()["field"] == "content-type"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(guarded: Service, method: str) -> None:
    headers = {"authorization": "Bearer watcher-token"}
    for path in ("runs", "runs/a"):
        answer = httpx.request(
            method, f"{guarded.url}/runs/api/{path}", headers=headers, json={}, timeout=30, trust_env=False
        )
        assert answer.status_code == 405


def test_without_tokens_a_name_that_was_bound_to_loopback_is_refused(service: Service) -> None:
    port = service.url.rsplit(":", 1)[1]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert service.get("runs", headers={"host": host}).status_code == 200
    answer = service.get("runs", headers={"host": f"evil.example:{port}"})
    assert answer.status_code == 403 and answer.json()["value"] == "evil.example"


def test_the_cookie_is_for_https_where_tls_is_in_front(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps(TOKENS))
    with trainer(tmp_path / "runs", tokens_file=tokens, secure_cookies=True) as service:
        answer = httpx.post(
            f"{service.url}/runs/api/session", json={"token": "watcher-token"}, timeout=30, trust_env=False
        )
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-trimtab_runs_session=") and "Secure" in cookie and "Path=/" in cookie


def test_the_page_lets_nothing_else_in_and_its_files_are_kept(service: Service) -> None:
    page = httpx.get(f"{service.url}/runs/", timeout=30, trust_env=False)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert page.headers["cache-control"] == "no-cache"
    files = re.findall(r'(?:href|src)="(assets/[^"]+)"', page.text)
    assert {name.rsplit("/", 1)[1] for name in files} == {"icon.svg", "base.css", "runs.css", "main.js"}
    for name in files:
        file = httpx.get(f"{service.url}/runs/{name}", timeout=30, trust_env=False)
        assert file.status_code == 200 and "immutable" in file.headers["cache-control"]
    folder = files[0].rsplit("/", 1)[0]
    for name in ("nothing.js", "../routes.py", "%2e%2e/routes.py"):
        assert httpx.get(f"{service.url}/runs/{folder}/{name}", timeout=30, trust_env=False).status_code == 404
    assert httpx.get(f"{service.url}/runs", timeout=30, trust_env=False).headers["location"] == "/runs/"
