"""Accounts, sessions and roles: who may do what, and what a page of another origin cannot."""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
import yaml
from argon2 import PasswordHasher

from certificate_files import make_pair
from running import FREE_PORTS, RunningServer, client, wait_serving
from trimtab import TLSConfig
from trimtab.errors import InvalidRequest, PermissionDenied, Reason, Unauthenticated
from trimtab.v1 import labeling_pb2 as pb
from trimtab_services.labeling import accounts, main
from trimtab_services.labeling.config import LabelingServiceConfig
from trimtab_services.labeling.database import Database

from .people import PASSWORD, Person, Service, in_order, labeling, ranking_task

LABELER_PATHS = ["projects", "projects/p", "projects/p/assignments", "me"]
REVIEWER_PATHS = ["projects/p/progress", "projects/p/agreement", "projects/p/labels"]
ADMIN_PATHS = ["accounts", "audit"]


def test_each_role_reaches_its_own_and_no_more(service: Service) -> None:
    service.project()
    roles = {
        pb.ACCOUNT_ROLE_LABELER: LABELER_PATHS,
        pb.ACCOUNT_ROLE_REVIEWER: LABELER_PATHS + REVIEWER_PATHS,
        pb.ACCOUNT_ROLE_ADMIN: LABELER_PATHS + REVIEWER_PATHS + ADMIN_PATHS,
    }
    everything = LABELER_PATHS + REVIEWER_PATHS + ADMIN_PATHS
    for role, allowed in roles.items():
        person = service.person(f"role-{role}", role)
        for path in everything:
            assert person.get(path).status_code == (200 if path in allowed else 403), (role, path)
    with httpx.Client(base_url=f"{service.url}/labeling/api/", trust_env=False) as stranger:
        assert {stranger.get(path).status_code for path in everything} == {401}


def test_nobody_sees_anothers_assignment(service: Service) -> None:
    service.project()
    service.add(ranking_task(0))
    ann, bob = service.person("ann"), service.person("bob", pb.ACCOUNT_ROLE_ADMIN)
    given = ann.next("p")
    path = f"assignments/{given['id']}"
    ann.submit(given, in_order(given))
    assert bob.get(path).status_code == 404
    for action in ("renew", "undo"):
        assert bob.post(f"{path}/{action}").status_code == 404
    assert bob.submit(given, in_order(given)).status_code == 404
    assert bob.get("projects/p/assignments").json()["assignments"] == []
    (seen,) = bob.get("projects/p/labels").json()["labels"]  # but a reviewer sees labels
    assert (seen["labeler"], seen["label"]["ranking"]) == ("ann", [[0], [1], [2], [3]])


def test_a_change_needs_the_token_of_the_session(service: Service) -> None:
    service.project()
    service.add(ranking_task(0))
    ann, bob = service.person("ann"), service.person("bob")
    own = ann.csrf
    for wrong in ("", bob.csrf, own[:-1]):
        ann.csrf = wrong
        refused = ann.post("projects/p/next")
        assert (refused.status_code, refused.json()["field"]) == (403, "csrf")
    ann.csrf = own
    assert ann.post("projects/p/next").status_code == 200
    form = ann._http.post("projects/p/next", data={"a": "b"}, headers={"x-csrf-token": own})
    assert form.status_code == 200  # its body is not looked at; a page elsewhere has no token


def test_the_cookie_is_opaque_and_out_of_reach_of_scripts(tmp_path: Path) -> None:
    for secure, name in ((False, "trimtab_session"), (True, "__Host-trimtab_session")):
        database = tmp_path / f"{secure}.sqlite"
        with labeling(f"sqlite:///{database}", secure_cookies=secure) as service:
            ann = service.person("ann")
            cookie = ann.answer.headers["set-cookie"]
            assert cookie.startswith(f"{name}=") and ("Secure" in cookie) is secure
            assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/" in cookie
            assert ann.answer.headers["cache-control"] == "no-store"
            secret = re.findall(r"=([^;]+);", cookie)[0]
        assert secret.encode() not in database.read_bytes()
        assert PASSWORD.encode() not in database.read_bytes()
        assert b"$argon2id$" in database.read_bytes()


def test_logout_and_what_ends_sessions(service: Service) -> None:
    ann = service.person("ann")
    assert ann.get("me").json()["csrf_token"] == ann.csrf
    assert ann.post("logout").status_code == 200 and ann.get("me").status_code == 401
    for change in (
        pb.UpdateAccountRequest(name="ann", role=pb.ACCOUNT_ROLE_REVIEWER),
        pb.UpdateAccountRequest(name="ann", password=PASSWORD),
        pb.UpdateAccountRequest(name="ann", enabled=False),
    ):
        again = Person(service.url, "ann")
        assert again.get("me").status_code == 200
        service.program.update_account(change)
        assert again.get("me").status_code == 401
    assert Person(service.url, "ann").answer.status_code == 401


def test_a_person_changes_the_password_and_stays(service: Service) -> None:
    ann, elsewhere = service.person("ann"), None
    elsewhere = Person(service.url, "ann")
    for old, new, status in (("wrong", "x" * 12, 401), (PASSWORD, "short", 400), (PASSWORD, "y" * 12, 200)):
        answer = ann.post("me/password", {"password": old, "new_password": new})
        assert answer.status_code == status, answer.text
        assert old not in answer.text and new not in answer.text
    assert ann.get("me").status_code == 200 and elsewhere.get("me").status_code == 401
    assert Person(service.url, "ann", "y" * 12).answer.status_code == 200


def test_sessions_end_by_themselves(tmp_path: Path) -> None:
    with labeling(f"sqlite:///{tmp_path}/a.sqlite", session_idle_s=0.2) as service:
        ann = service.person("ann")
        for _ in range(6):
            time.sleep(0.1)
            assert ann.get("me").status_code == 200  # used, it goes on
        time.sleep(0.3)
        assert ann.get("me").status_code == 401


def test_failed_logins_are_limited_and_lock_nobody_else_out(tmp_path: Path) -> None:
    with labeling(f"sqlite:///{tmp_path}/a.sqlite", login_tries=2, login_window_s=60) as service:
        service.account("ann")
        service.account("bob")
        failed = [Person(service.url, "ann", "wrong password").answer for _ in range(3)]
        assert [answer.status_code for answer in failed] == [401, 401, 429]
        assert 0 < int(failed[-1].headers["retry-after"]) <= 60
        assert Person(service.url, "ann").answer.status_code == 429  # the right one, too
        assert Person(service.url, "bob").answer.status_code == 200  # a colleague at the same address
        unknown = [Person(service.url, f"nobody-{n}", "wrong password").answer for n in range(19)]
        assert [answer.status_code for answer in unknown] == [401] * 18 + [429]
        assert unknown[0].json()["message"] == failed[0].json()["message"]
        assert Person(service.url, "bob").answer.status_code == 429  # an address that guesses names
    with labeling(f"sqlite:///{tmp_path}/a.sqlite") as service:
        assert Person(service.url, "ann").answer.status_code == 200


def test_logins_at_the_same_time_get_no_more_tries(tmp_path: Path) -> None:
    with labeling(f"sqlite:///{tmp_path}/a.sqlite", login_tries=3, login_window_s=60) as service:
        service.account("ann")
        with ThreadPoolExecutor(20) as threads:
            tries = threads.map(lambda n: Person(service.url, "ann", f"wrong password {n}").answer, range(20))
            codes = Counter(answer.status_code for answer in tries)
        assert codes == {401: 3, 429: 17}
        assert Person(service.url, "ann").answer.status_code == 429


def forwarded(service: Service, addresses: str, name: str, password: str) -> int:
    """Status of a login as a proxy on this machine sends it on."""
    body = {"name": name, "password": password}
    headers = {"x-forwarded-for": addresses}
    return httpx.post(f"{service.url}/labeling/api/login", json=body, headers=headers, trust_env=False).status_code


def test_behind_a_trusted_proxy_strangers_lock_nobody_out(tmp_path: Path) -> None:
    guess = "wrong password"
    proxies = {"trusted_proxies": ["127.0.0.0/8", "10.0.0.0/8"]}
    limits = {"login_tries": 1, "login_window_s": 60}
    with labeling(f"sqlite:///{tmp_path}/a.sqlite", **limits, **proxies) as service:
        service.account("ann")
        # what the stranger writes into the header itself stands before what the proxies saw
        tries = [forwarded(service, f"192.0.2.{n}, 203.0.113.5, 10.1.2.3", f"n{n}", guess) for n in range(11)]
        assert tries == [401] * 10 + [429]
        assert forwarded(service, "198.51.100.7, 10.1.2.3", "ann", PASSWORD) == 200
        assert forwarded(service, "203.0.113.5, 10.1.2.3", "ann", PASSWORD) == 429
    with labeling(f"sqlite:///{tmp_path}/a.sqlite", **limits) as service:  # nobody is trusted: the header is nobody's
        tries = [forwarded(service, f"192.0.2.{n}", f"n{n}", guess) for n in range(11)]
        assert tries == [401] * 10 + [429]


def test_a_person_may_ask_only_so_much_and_others_do_not_feel_it(tmp_path: Path) -> None:
    quota = {"requests_per_s": 0.5, "burst_s": 20.0}
    with labeling(f"sqlite:///{tmp_path}/a.sqlite", people_quota=quota) as service:
        service.project()
        service.add(ranking_task(0))
        ann, bob = service.person("ann"), service.person("bob")
        again = Person(service.url, "ann")  # another session of the same person
        answers = [person.get("projects") for person in (ann, again) for _ in range(6)]
        assert [answer.status_code for answer in answers[:10]] == [200] * 10
        assert answers[-1].status_code == 429 and int(answers[-1].headers["retry-after"]) >= 1
        assert answers[-1].json()["reason"] == "QUOTA_EXCEEDED" and "'ann'" in answers[-1].json()["message"]
        assert ann.post("projects/p/next").status_code == 429
        assert bob.post("projects/p/next").status_code == 200
        again.close()


def test_a_nul_is_refused_by_name(either: Service) -> None:
    either.project()
    root = either.person("root", pb.ACCOUNT_ROLE_ADMIN)
    for path, query, field in (
        ("projects", {"after": "\0"}, "after"),
        ("accounts", {"after": "a\0"}, "after"),
        ("projects/p%00", {}, "project"),
        ("projects/p/labels", {"labeler": "\0"}, "labeler"),
    ):
        refused = root.get(path, **query)
        assert (refused.status_code, refused.json()["field"]) == (400, field), refused.text
    stranger = Person(either.url, "a\0", PASSWORD)
    assert (stranger.answer.status_code, stranger.answer.json()["field"]) == (400, "name")


def test_others_label_while_a_password_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashing, go_on, hash_now = threading.Event(), threading.Event(), PasswordHasher.hash

    def hash_slowly(hasher: PasswordHasher, password: str) -> str:
        hashing.set()
        assert go_on.wait(30)
        return hash_now(hasher, password)

    with labeling(f"sqlite:///{tmp_path}/a.sqlite", database_wait_s=1.0) as service:
        service.project()
        service.add(*(ranking_task(number) for number in range(4)))
        ann, root = service.person("ann"), service.person("root", pb.ACCOUNT_ROLE_ADMIN)
        new = {"name": "bob", "password": PASSWORD, "role": "labeler"}
        update = pb.UpdateAccountRequest(name="bob", password=PASSWORD)
        monkeypatch.setattr(PasswordHasher, "hash", hash_slowly)
        for make in (
            lambda: root.post("accounts", new),
            lambda: root.post("accounts/bob", {"password": PASSWORD}),
            lambda: service.account("cat"),
            lambda: service.program.update_account(update),
        ):
            hashing.clear()
            go_on.clear()
            thread = threading.Thread(target=make)
            thread.start()
            assert hashing.wait(30)
            given = ann.next("p")
            assert ann.submit(given, in_order(given)).status_code == 200
            go_on.set()
            thread.join(30)
        assert [one["name"] for one in root.get("accounts").json()["accounts"]] == ["ann", "bob", "cat", "root"]


def test_accounts_are_made_once_and_checked(service: Service) -> None:
    service.account("ann")
    service.account("ann")  # a retry
    for fields, field in (
        ({"name": "ann", "password": "another password"}, "name"),
        ({"name": "a b", "password": PASSWORD}, "name"),
        ({"name": "bob", "password": "short"}, "password"),
        ({"name": "bob", "password": PASSWORD, "group": "x" * 64}, "group"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            service.program.create_account(pb.CreateAccountRequest(role=pb.ACCOUNT_ROLE_LABELER, **fields))
        assert caught.value.field == field
    with pytest.raises(InvalidRequest) as caught:
        service.program.create_account(pb.CreateAccountRequest(name="bob", password=PASSWORD))
    assert caught.value.reason is Reason.FIELD_MISSING
    for name in ("bob", "cat"):
        service.account(name)
    page = service.program.list_accounts(pb.ListAccountsRequest(page_size=2))
    rest = service.program.list_accounts(pb.ListAccountsRequest(page_size=2, page_token=page.next_page_token))
    assert [one.name for one in (*page.accounts, *rest.accounts)] == ["ann", "bob", "cat"]
    assert not rest.next_page_token


def test_programs_need_a_token_with_the_scope_and_people_need_none(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(
        yaml.safe_dump({"l" * 32: {"name": "lab", "scopes": ["label"]}, "s" * 32: {"name": "s", "scopes": ["score"]}})
    )
    from trimtab_services.labeling import main

    config = LabelingServiceConfig(
        **FREE_PORTS, drain_s=5.0, database=f"sqlite:///{tmp_path}/a.sqlite", tokens_file=tokens
    )
    server = RunningServer(config, "labeling", main.SERVICE, main.build)
    try:
        wait_serving(server)
        with client(server, token="l" * 32) as allowed, client(server, token="s" * 32) as other, client(server) as none:
            allowed.create_account(pb.CreateAccountRequest(name="ann", password=PASSWORD, role=pb.ACCOUNT_ROLE_LABELER))
            with pytest.raises(PermissionDenied):
                other.list_accounts(pb.ListAccountsRequest())
            with pytest.raises(Unauthenticated):
                none.list_accounts(pb.ListAccountsRequest())
            (event,) = allowed.list_audit_events(pb.ListAuditEventsRequest()).events
            assert (event.actor, event.action, event.subject) == ("program:lab", "account.create", "account:ann")
        person = Person(server.server.runtime.http_url, "ann")
        assert person.answer.status_code == 200 and person.get("me").status_code == 200
        person.close()
    finally:
        server.stop()


def test_admins_manage_over_http(service: Service) -> None:
    root = service.person("root", pb.ACCOUNT_ROLE_ADMIN)
    made = root.post("projects", {"name": "q", "kind": "rank", "overlap": 2, "instructions": "# Read"})
    assert made.status_code == 200 and made.json()["overlap"] == 2
    assert root.post("projects/q", {"overlap": 0}).json()["field"] == "overlap"
    assert root.post("projects/q", {"state": "closed"}).json()["state"] == "closed"
    assert root.post("projects", {"name": "r", "kind": "judge"}).json()["field"] == "kind"
    new = {"name": "ann", "password": PASSWORD, "role": "labeler", "group": "heldout"}
    assert root.post("accounts", new).json()["group"] == "heldout"
    assert root.post("accounts/ann", {"enabled": False}).json()["enabled"] is False
    assert [one["name"] for one in root.get("accounts").json()["accounts"]] == ["ann", "root"]
    actions = [event["action"] for event in root.get("audit").json()["events"]]
    assert actions == [
        "account.create",
        "session.begin",
        "project.create",
        "project.update",
        "account.create",
        "account.update",
    ]
    assert PASSWORD not in root.get("audit").text


def test_the_audit_cannot_be_changed(database: str) -> None:
    with labeling(database) as service:
        service.account("ann")
    engine = sa.create_engine(database.replace("postgresql:", "postgresql+psycopg:"))
    for statement in ("DELETE FROM audit", "UPDATE audit SET actor = 'x'"):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), engine.begin() as connection:
            connection.execute(sa.text(statement))
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM audit")).scalar() == 1
    engine.dispose()


def test_an_unknown_account_takes_as_long_as_a_wrong_password(database: str) -> None:
    opened = Database(database)
    opened.migrate()
    with opened.changing() as connection:
        accounts.create(
            connection, "test", name="ann", password=accounts.NewPassword.of(PASSWORD), role=accounts.Role.LABELER
        )
    seconds = {}
    for name in ("ann", "nobody"):
        times = []
        for _ in range(5):
            began = time.perf_counter()
            with opened.reading() as connection:
                assert accounts.kept_password(connection, name).lets_in("wrong password") is None
            times.append(time.perf_counter() - began)
        seconds[name] = min(times)
    opened.close()
    assert 0.3 < seconds["nobody"] / seconds["ann"] < 3, seconds


def test_with_tls_the_cookie_is_for_https_only(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "server")
    tls = {"certificate_file": pair.certificate, "key_file": pair.key}
    config = LabelingServiceConfig(
        **FREE_PORTS, drain_s=5.0, database=f"sqlite:///{tmp_path}/a.sqlite", tls=tls, insecure=True
    )
    server = RunningServer(config, "labeling", main.SERVICE, main.build)
    try:
        wait_serving(server)
        with client(server, tls=TLSConfig(pair.certificate)) as program:
            request = pb.CreateAccountRequest(name="ann", password=PASSWORD, role=pb.ACCOUNT_ROLE_LABELER)
            program.create_account(request)
        url = f"{server.server.runtime.http_url}/labeling/api/"
        with httpx.Client(
            base_url=url, verify=ssl.create_default_context(cafile=pair.certificate), trust_env=False
        ) as page:
            answer = page.post("login", json={"name": "ann", "password": PASSWORD})
            assert answer.headers["set-cookie"].startswith("__Host-") and "Secure" in answer.headers["set-cookie"]
            assert page.get("me").status_code == 200
    finally:
        server.stop()
