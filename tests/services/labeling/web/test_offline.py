"""The page is loaded again while the service is away: it is there with what was typed, which is sent once."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab.v1 import labeling_pb2 as pb
from trimtab_services.labeling import web as labeling_page
from trimtab_services.runtime.web import page_routes

from ..people import PASSWORD, Person, Service, labeling
from .browsers import OTHER_NAME, Window

pytestmark = pytest.mark.slow

STATIC = Path(labeling_page.__file__).parent / "static"
OpenWindow = Callable[..., Window]


class Away:
    """A service that can go away and come back, on the same port with the same database."""

    def __init__(self, folder: Path) -> None:
        self._database = f"sqlite:///{folder}/labeling.sqlite"
        self._port = 0
        self.back()

    def back(self) -> None:
        self._running = labeling(self._database, http_port=self._port, drain_s=1.0)
        self.service: Service = self._running.__enter__()
        self._port = self.service.server.server.runtime.ports.http

    def leave(self) -> None:
        self._running.__exit__(None, None, None)


@pytest.fixture
def away(tmp_path: Path) -> Iterator[Away]:
    service = Away(tmp_path)
    yield service
    service.leave()


@pytest.fixture
def open_window(browser: Any, away: Away) -> Iterator[OpenWindow]:
    """Opens windows of people who are signed in; each must have had no fault at the end."""
    opened: list[Window] = []

    def open_one(name: str = "ann", **options: Any) -> Window:
        opened.append(Window(browser, away.service, **options))
        opened[-1].sign_in(name)
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def furnish(service: Service, tasks: int = 1, **fields: Any) -> None:
    service.project(kind=pb.TASK_KIND_DEMONSTRATE, **fields)
    service.add(*(pb.LabelTask(prompt=f"What is tide {number}?") for number in range(tasks)))
    service.account("ann")


def at_task(window: Window) -> Any:
    """The text area of a task, in a page that can be loaded without a connection."""
    window.go("projects/p/work")
    area = window.page.get_by_label("Ideal answer")
    area.wait_for()
    files_are_kept(window)
    return area


def files_are_kept(window: Window) -> None:
    window.page.evaluate("navigator.serviceWorker.ready.then(() => null)")


def own(service: Service) -> list[dict[str, Any]]:
    """Ann's assignments, newest first."""
    person = Person(service.url, "ann")
    found: list[dict[str, Any]] = person.get("projects/p/assignments").json()["assignments"]
    person.close()
    return found


def submissions(service: Service) -> int:
    events = service.program.list_audit_events(pb.ListAuditEventsRequest(page_size=1000)).events
    return sum(event.action == "label.submit" for event in events)


def sent(window: Window) -> list[str]:
    """Drafts and labels that the page sends from now on and the service takes, by the last word of their address."""
    taken: list[str] = []

    def note(response: Any) -> None:
        if response.request.method != "GET" and "/assignments/" in response.url and response.ok:
            taken.append(response.url.rsplit("/", 1)[1])

    window.page.on("response", note)
    return taken


def test_a_draft_outlives_a_reload_without_the_service_and_is_sent_once(away: Away, open_window: OpenWindow) -> None:
    furnish(away.service)
    ann = open_window()
    area = at_task(ann)
    area.fill("The sea")
    ann.saved()
    away.leave()
    area.fill("The sea, rising")
    ann.page.locator('.draft-state[data-state="waiting"]').wait_for()
    for text in ("The sea, rising", "The sea, rising and falling."):
        ann.page.reload()
        ann.page.get_by_text("What is tide 0?").wait_for()
        ann.notice("There is no connection to the service")
        ann.page.locator('.draft-state[data-state="waiting"]').wait_for()
        assert area.input_value() == text
        area.fill("The sea, rising and falling.")
    ann.page.locator('.draft-state[data-state="waiting"]').wait_for()
    taken = sent(ann)
    away.back()
    ann.notice("The connection is back")
    ann.saved()
    ann.page.wait_for_timeout(2000)
    assert taken in (["draft"], ["draft", "draft"])  # what was on its way, then what was typed since
    assert own(away.service)[0]["draft"]["content"]["label"]["completion"] == "The sea, rising and falling."
    assert ann.page.locator(".notice", has_text="another draft").count() == 0
    ann.page.get_by_role("button", name="Send label").click()
    ann.nothing_left()
    assert own(away.service)[0]["label"]["completion"] == "The sea, rising and falling."
    assert submissions(away.service) == 1


def test_what_was_saved_is_shown_without_the_service(away: Away, open_window: OpenWindow) -> None:
    furnish(away.service)
    ann = open_window()
    area = at_task(ann)
    area.fill("first")
    ann.saved()
    area.fill("second")
    ann.page.locator('.draft-state[data-state="changed"]').wait_for()
    ann.saved()
    away.leave()
    ann.page.reload()
    ann.page.get_by_text("What is tide 0?").wait_for()
    assert area.input_value() == "second"
    area.fill("third")
    ann.page.locator('.draft-state[data-state="waiting"]').wait_for()
    away.back()
    ann.saved()
    assert own(away.service)[0]["draft"]["content"]["label"]["completion"] == "third"
    assert ann.page.locator(".notice", has_text="another").count() == 0


def test_a_draft_whose_answer_got_lost_is_no_other_draft(away: Away, open_window: OpenWindow) -> None:
    furnish(away.service)
    ann = open_window()
    area = at_task(ann)
    kept: list[int] = []

    def lose(route: Any) -> None:
        if not kept:
            kept.append(route.fetch().status)
        route.abort("connectionreset")

    ann.page.route("**/assignments/*/draft", lose)
    area.fill("The sea")
    ann.page.locator('.draft-state[data-state="waiting"]').wait_for()
    assert kept == [200]
    away.leave()
    area.fill("The sea, rising")
    ann.page.wait_for_timeout(500)  # until it is in the browser
    ann.page.reload()
    ann.page.get_by_text("What is tide 0?").wait_for()
    assert area.input_value() == "The sea, rising"
    ann.page.unroute("**/assignments/*/draft")
    away.back()
    ann.saved()
    assert own(away.service)[0]["draft"]["content"]["label"]["completion"] == "The sea, rising"
    assert ann.page.locator(".notice", has_text="another").count() == 0


def test_a_label_that_waits_is_sent_once_and_its_task_not_done_twice(away: Away, open_window: OpenWindow) -> None:
    furnish(away.service, tasks=2)
    ann = open_window()
    area = at_task(ann)
    away.leave()
    area.fill("Sent in a tunnel.")
    ann.page.get_by_role("button", name="Send label").click()
    ann.page.get_by_text("goes out when the connection is back").wait_for()
    ann.page.reload()
    ann.notice("A label waits in this browser")
    ann.heading("Waiting for the service")
    away.back()
    ann.notice("A label that waited in this browser has been sent")
    ann.page.get_by_text("What is tide 1?").wait_for()
    labels = [one["label"]["completion"] for one in own(away.service) if one["label"]]
    assert (labels, submissions(away.service)) == (["Sent in a tunnel."], 1)


def test_a_session_that_ended_meanwhile_is_asked_for_again(away: Away, open_window: OpenWindow) -> None:
    furnish(away.service)
    ann = open_window()
    area = at_task(ann)
    away.leave()
    area.fill("The sea")
    ann.page.wait_for_timeout(500)
    ann.page.reload()
    ann.page.get_by_text("What is tide 0?").wait_for()
    away.back()
    away.service.program.update_account(pb.UpdateAccountRequest(name="ann", password=PASSWORD))  # ends her sessions
    area.fill("The sea, rising")
    dialog = ann.page.get_by_role("dialog", name="Sign in again")
    dialog.get_by_label("Password").fill(PASSWORD)
    dialog.get_by_role("button", name="Sign in").click()
    ann.saved()
    assert own(away.service)[0]["draft"]["content"]["label"]["completion"] == "The sea, rising"


def test_who_has_signed_out_has_nothing_to_show(away: Away, open_window: OpenWindow) -> None:
    furnish(away.service)
    ann = open_window()
    at_task(ann)
    ann.page.get_by_role("button", name="Sign out").click()
    ann.heading("Sign in")
    away.leave()
    ann.page.goto("about:blank")
    ann.page.goto(f"{away.service.url}/labeling/#/projects/p/work")
    ann.heading("Waiting for the service")
    assert ann.page.get_by_text("What is tide").count() == 0
    assert ann.page.locator("#header").inner_text() == ""
    away.back()
    ann.heading("Sign in")


def test_another_person_takes_the_place_of_who_was_there(away: Away, open_window: OpenWindow) -> None:
    furnish(away.service)
    away.service.account("ben")
    ann = open_window()
    at_task(ann)
    away.service.program.update_account(pb.UpdateAccountRequest(name="ann", password=PASSWORD))
    ann.page.goto("about:blank")
    ann.sign_in("ben")
    away.leave()
    ann.page.goto("about:blank")
    ann.page.goto(f"{away.service.url}/labeling/#/projects/p/work")
    ann.heading("Waiting for the service")
    assert "ben" in ann.page.locator("#header").inner_text()
    assert ann.page.get_by_text("What is tide").count() == 0


def test_nothing_but_the_files_of_the_page_is_kept(away: Away, open_window: OpenWindow) -> None:
    furnish(away.service)
    ann = open_window()
    at_task(ann)
    kept = ann.page.evaluate(
        "caches.keys().then((names) => Promise.all(names.map(async (name) =>"
        " (await (await caches.open(name)).keys()).map(({url}) => new URL(url).pathname)))).then((all) => all.flat())"
    )
    assert "/labeling/" in kept and len(kept) > 40
    assert [path for path in kept if path != "/labeling/" and not path.startswith("/labeling/assets/")] == []


def test_a_newer_page_is_shown_at_once_and_kept(
    tmp_path: Path, away: Away, open_window: OpenWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    furnish(away.service)
    ann = open_window()
    at_task(ann)
    away.leave()
    newer = tmp_path / "newer"
    shutil.copytree(STATIC, newer)
    page = newer / "pages" / "projects.js"
    page.write_text(page.read_text().replace('"Projects"', '"All newer projects"'))
    monkeypatch.setattr(
        sys.modules["trimtab_services.labeling.http.routes"], "page_routes", lambda: page_routes("/labeling/", newer)
    )
    away.back()
    ann.go("")
    ann.heading("All newer projects")  # by the worker of the page before
    digest = ann.page.evaluate("document.querySelector('script').src.split('/').at(-2)")
    deadline = time.monotonic() + 20
    while [name.split("-")[-1] for name in ann.page.evaluate("caches.keys()")] != [digest]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    away.leave()
    ann.page.reload()
    ann.heading("Waiting for the service")
    away.back()
    ann.heading("All newer projects")


def test_over_plain_http_under_another_name_it_works_without_a_worker(browser: Any, away: Away) -> None:
    furnish(away.service)
    ann = Window(browser, away.service)
    ann.is_at(away.service.url.replace("127.0.0.1", OTHER_NAME))
    ann.sign_in("ann")
    ann.go("projects/p/work")
    area = ann.page.get_by_label("Ideal answer")
    area.fill("The sea")
    ann.saved()
    assert ann.page.evaluate("[isSecureContext, 'serviceWorker' in navigator, typeof caches]") == [
        False,
        False,
        "undefined",
    ]
    away.leave()
    area.fill("The sea, rising")
    ann.page.locator('.draft-state[data-state="waiting"]').wait_for()
    away.back()
    ann.saved()
    assert own(away.service)[0]["draft"]["content"]["label"]["completion"] == "The sea, rising"
    names = ann.page.evaluate("indexedDB.databases().then((all) => all.map(({name}) => name))")
    assert names == ["trimtab-labeling"]
    ann.faults = [fault for fault in ann.faults if "Opener-Policy" not in fault]  # which works over HTTPS alone
    ann.close()
