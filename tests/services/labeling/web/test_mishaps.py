"""What goes wrong around a task: no connection, an answer that got lost, two tabs, a lease that ends, a session too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimtab.v1 import labeling_pb2 as pb

from ..people import PASSWORD, Person, Service, labeling
from .browsers import Window

pytestmark = pytest.mark.slow
SUBMIT = "**/labeling/api/assignments/*/submit"


def writing(service: Service, window: Callable[..., Window], **fields: Any) -> tuple[Window, Any]:
    """Ann at a task to write, and its text area."""
    service.project(kind=pb.TASK_KIND_DEMONSTRATE, **fields)
    service.add(pb.LabelTask(prompt="What is a tide?"))
    service.account("ann")
    ann = window("ann")
    return ann, open_task(ann, ann.page)


def open_task(ann: Window, page: Any) -> Any:
    ann.go("projects/p/work", page)
    area = page.get_by_label("Ideal answer")
    area.wait_for()
    return area


def submissions(service: Service) -> int:
    """How often a label was taken."""
    events = service.program.list_audit_events(pb.ListAuditEventsRequest(page_size=1000)).events
    return sum(event.action == "label.submit" for event in events)


def draft_at_service(service: Service) -> dict[str, Any] | None:
    person = Person(service.url, "ann")
    (one,) = person.get("projects/p/assignments").json()["assignments"]
    person.close()
    return one["draft"]


def texts(service: Service) -> list[str]:
    person = Person(service.url, "ann")
    found = person.get("projects/p/assignments").json()["assignments"]
    person.close()
    return [one["label"]["completion"] for one in found if one["label"]]


def test_a_while_without_connection_in_mid_task(service: Service, window: Callable[..., Window]) -> None:
    ann, area = writing(service, window)
    area.fill("The sea")
    ann.saved()
    ann.context.set_offline(True)
    area.fill("The sea, rising")
    ann.notice("There is no connection")
    area.fill("The sea, rising and falling.")
    ann.page.locator('.draft-state[data-state="waiting"]').wait_for()
    ann.page.get_by_role("button", name="Send label").click()
    ann.page.get_by_text("goes out when the connection is back").wait_for()
    assert draft_at_service(service)["content"]["label"]["completion"] == "The sea"
    ann.context.set_offline(False)
    ann.notice("Your label was sent")
    assert (texts(service), submissions(service)) == (["The sea, rising and falling."], 1)


def test_who_asks_for_too_much_waits_and_loses_nothing(browser: Any, tmp_path: Path) -> None:
    quota = {"requests_per_s": 3.0, "burst_s": 10.0}
    with labeling(f"sqlite:///{tmp_path}/a.sqlite", people_quota=quota) as service:
        windows: list[Window] = []

        def window(name: str) -> Window:
            windows.append(Window(browser, service))
            windows[-1].sign_in(name)
            return windows[-1]

        ann, area = writing(service, window)
        loop = Person(service.url, "ann")  # another session of hers, in which a program asks on and on
        is_over = threading.Event()

        def ask_on_and_on() -> None:
            while not is_over.is_set():
                loop.get("me")

        thread = threading.Thread(target=ask_on_and_on)
        thread.start()
        area.fill("The sea, rising and falling.")
        ann.page.locator('.draft-state[data-state="waiting"]').wait_for()
        is_over.set()
        thread.join(30)
        loop.close()
        ann.saved()
        assert draft_at_service(service)["content"]["label"]["completion"] == "The sea, rising and falling."
        ann.page.get_by_role("button", name="Send label").click()
        ann.notice("Your label was sent")
        assert (texts(service), submissions(service)) == (["The sea, rising and falling."], 1)
        windows[0].close()


def test_a_draft_typed_without_connection_outlives_the_tab(service: Service, window: Callable[..., Window]) -> None:
    ann, area = writing(service, window)
    ann.context.set_offline(True)
    area.fill("Typed in a tunnel.")
    ann.page.locator('.draft-state[data-state="waiting"]').wait_for()
    ann.page.close()
    ann.context.set_offline(False)
    assert draft_at_service(service) is None
    page = ann.tab()
    assert open_task(ann, page).input_value() == "Typed in a tunnel."
    ann.saved(page)
    assert draft_at_service(service)["content"]["label"]["completion"] == "Typed in a tunnel."


def test_a_label_sent_without_connection_outlives_the_tab(service: Service, window: Callable[..., Window]) -> None:
    ann, area = writing(service, window)
    ann.context.set_offline(True)
    area.fill("Sent in a tunnel.")
    ann.page.get_by_role("button", name="Send label").click()
    ann.page.get_by_text("goes out when the connection is back").wait_for()
    ann.page.close()
    ann.context.set_offline(False)
    page = ann.tab()
    ann.go("", page)
    ann.notice("A label that waited in this browser has been sent", page)
    ann.go("", page)
    ann.heading("Projects", page)
    assert (texts(service), submissions(service)) == (["Sent in a tunnel."], 1)


def test_a_label_whose_answer_got_lost_counts_once(service: Service, window: Callable[..., Window]) -> None:
    ann, area = writing(service, window)
    lost = []

    def lose_first(route: Any) -> None:
        if lost:
            return route.continue_()
        lost.append(route.fetch().status)
        route.abort("connectionreset")

    ann.page.route(SUBMIT, lose_first)
    area.fill("Once.")
    ann.page.get_by_role("button", name="Send label").click()
    ann.notice("Your label was sent")
    assert (lost, texts(service), submissions(service)) == ([200], ["Once."], 1)


def skip(ann: Window) -> None:
    ann.page.get_by_role("button", name="Skip…").click()
    dialog = ann.page.get_by_role("dialog", name="Skip this task")
    dialog.get_by_label("The task is broken").check()
    dialog.get_by_role("button", name="Skip", exact=True).click()


def undo_skip(ann: Window) -> Any:
    ann.notice("Skipped").get_by_role("button", name="Undo").click()
    area = ann.page.get_by_label("Ideal answer")
    area.wait_for()
    return area


def test_a_draft_comes_back_with_the_skip_that_is_taken_back(service: Service, window: Callable[..., Window]) -> None:
    ann, area = writing(service, window)
    area.fill("The sea")
    skip(ann)
    assert undo_skip(ann).input_value() == "The sea"
    ann.context.set_offline(True)
    ann.page.get_by_label("Ideal answer").fill("The sea, rising")
    ann.page.locator('.draft-state[data-state="waiting"]').wait_for()
    skip(ann)
    ann.page.get_by_text("goes out when the connection is back").wait_for()
    ann.context.set_offline(False)
    assert undo_skip(ann).input_value() == "The sea, rising"
    ann.saved()
    assert draft_at_service(service)["content"]["label"]["completion"] == "The sea, rising"


def test_a_refused_label_is_a_draft_before_it_is_forgotten(service: Service, window: Callable[..., Window]) -> None:
    ann, area = writing(service, window)
    ann.context.set_offline(True)
    area.fill("Sent in a tunnel.")
    ann.page.get_by_role("button", name="Send label").click()
    ann.page.get_by_text("goes out when the connection is back").wait_for()
    ann.page.close()
    ann.context.set_offline(False)
    page = ann.tab()
    refused = {"reason": "INVALID_ARGUMENT", "message": "refused for this test"}
    page.route(SUBMIT, lambda route: route.fulfill(status=400, json=refused))
    page.add_init_script(  # the page goes no further than to where it forgets the label
        "const kept = IDBObjectStore.prototype.delete; IDBObjectStore.prototype.delete = function (key) {"
        ' if (this.name === "outbox") { document.body.dataset.at = "the end"; throw new Error("closed"); }'
        " return kept.call(this, key); };"
    )
    ann.go("", page)
    page.locator('body[data-at="the end"]').wait_for()
    kept = page.evaluate(
        'new Promise((resolve) => { indexedDB.open("trimtab-labeling").onsuccess = ({ target }) => {'
        ' target.result.transaction("drafts").objectStore("drafts").getAll().onsuccess ='
        " (event) => resolve(event.target.result.map(({ pending }) => pending.content.label.completion)); }; })"
    )
    assert kept == ["Sent in a tunnel.", "Sent in a tunnel."]  # typed, and sent
    page.close()
    ann.faults.clear()
    page = ann.tab()
    page.route(SUBMIT, lambda route: route.fulfill(status=400, json=refused))
    assert open_task(ann, page).input_value() == "Sent in a tunnel."
    ann.notice("was not taken: refused for this test", page)
    ann.saved(page)
    assert page.locator(".notice", has_text="another draft").count() == 0


def test_two_tabs_on_one_task(service: Service, window: Callable[..., Window]) -> None:
    ann, one = writing(service, window)
    other_tab = ann.tab()
    other = open_task(ann, other_tab)
    one.fill("from the first tab")
    ann.saved()
    other.fill("from the second tab")
    ann.notice("Another tab or device has saved another draft", other_tab)
    assert draft_at_service(service)["content"]["label"]["completion"] == "from the first tab"
    other_tab.get_by_role("button", name="The other one").click()
    other_tab.get_by_role("button", name="Bring back what stood here").wait_for()
    assert other.input_value() == "from the first tab"
    other_tab.get_by_role("button", name="Bring back what stood here").click()
    assert other.input_value() == "from the second tab"
    ann.saved(other_tab)
    one.fill("from the first tab again")
    ann.notice("Another tab or device has saved another draft").get_by_role("button", name="What stands here").click()
    ann.saved()
    assert draft_at_service(service)["content"]["label"]["completion"] == "from the first tab again"
    ann.page.get_by_role("button", name="Send label").click()
    ann.nothing_left()
    other.fill("too late")
    ann.notice("is submitted already", other_tab)
    assert other.input_value() == "too late"
    assert (texts(service), submissions(service)) == (["from the first tab again"], 1)


def test_a_lease_that_is_lost_while_typing(service: Service, window: Callable[..., Window]) -> None:
    ann, area = writing(service, window, lease_ms=2000)
    area.fill("half")
    ann.saved()
    ann.context.set_offline(True)
    area.fill("half a text")
    ann.page.locator('.draft-state[data-state="waiting"]').wait_for()
    ben = service.person("ben")
    give_up = time.monotonic() + 20
    while not (given := ben.next("p")):  # others get the task once ann's lease has ended
        assert time.monotonic() < give_up
        time.sleep(0.2)
    assert ben.submit(given, {"completion": "Ben's."}).status_code == 200
    ann.context.set_offline(False)
    ann.notice("others took it")
    area.press_sequentially(" and more")
    assert area.input_value() == "half a text and more"
    ann.saved()
    assert draft_at_service(service)["content"]["label"]["completion"] == "half a text and more"
    ann.page.get_by_role("button", name="Send label").click()
    ann.notice("your label is kept as the draft").get_by_role("button", name="Next task").click()
    ann.nothing_left()
    assert draft_at_service(service)["content"]["label"] == {"completion": "half a text and more"}
    assert [row.row_json.count("Ben's.") for row in service.export()] == [1]


def test_who_works_keeps_the_lease(service: Service, window: Callable[..., Window]) -> None:
    ann, _ = writing(service, window, lease_ms=3000)
    ben = service.person("ben")
    ended = time.monotonic() + 6
    while time.monotonic() < ended:
        ann.press("ArrowRight")  # reads, types nothing
        assert ben.next("p") is None
        time.sleep(0.3)
    ann.notice("The time for this task is over").get_by_role("button", name="Go on with it").click()
    ann.page.locator(".notice").wait_for(state="detached")
    assert ben.next("p") is None


def test_who_does_nothing_is_asked_before_the_lease_ends(service: Service, window: Callable[..., Window]) -> None:
    ann, _ = writing(service, window, lease_ms=15_000)  # asked 3 s before its end
    ann.notice("This task goes to somebody else soon").get_by_role("button", name="I am still here").click()
    ann.page.locator(".notice").wait_for(state="detached")


def test_a_session_that_ends_while_typing(service: Service, window: Callable[..., Window]) -> None:
    ann, area = writing(service, window)
    service.program.update_account(pb.UpdateAccountRequest(name="ann", password=PASSWORD))  # ends her sessions
    area.fill("The sea, rising.")
    dialog = ann.page.get_by_role("dialog", name="Sign in again")
    dialog.get_by_label("Password").fill("a wrong password")
    dialog.get_by_role("button", name="Sign in").click()
    dialog.get_by_text("No account has this name and password").wait_for()
    dialog.get_by_label("Password").fill(PASSWORD)
    dialog.get_by_role("button", name="Sign in").click()
    dialog.wait_for(state="detached")
    ann.saved()
    assert draft_at_service(service)["content"]["label"]["completion"] == "The sea, rising."


def test_markup_is_text_wherever_it_stands(service: Service, window: Callable[..., Window]) -> None:
    evil = '<img src=x onerror="document.title=1"><script>document.title=2</script><b>bold</b>'
    service.project(instructions=evil + "\n\n[link](javascript:alert(1))\n\n# <svg onload=alert(1)>")
    answers = [f"{number} {evil}" for number in range(4)]
    service.add(pb.LabelTask(prompt=evil, context=evil, category="<i>c</i>", answers=answers))
    service.account("ann")
    ann = window("ann")
    for address, heading in (
        ("projects/p", "p"),
        ("projects/p/work", "Rank the answers"),
        ("projects/p/mine", "My labels"),
    ):
        ann.go(address)
        ann.heading(heading)
        assert evil[:30] in ann.page.locator("main").inner_text()
        assert ann.page.locator("main :is(img, script, svg, b, i)").count() == 0
        assert ann.page.locator('a[href^="javascript"]').count() == 0
        assert ann.page.title().endswith("Labeling")


def test_answers_of_a_megabyte(browser: Any, tmp_path: Any) -> None:
    with labeling(f"sqlite:///{tmp_path}/big.sqlite", max_answer_characters=1_000_100) as service:
        service.project(kind=pb.TASK_KIND_DEMONSTRATE)
        big = "word " * 200_000 + "END"
        service.add(pb.LabelTask(prompt=big))
        service.account("ann")
        ann = Window(browser, service)
        ann.sign_in("ann")
        area = open_task(ann, ann.page)
        assert "END" not in ann.page.locator(".prompt").inner_text()
        ann.page.get_by_role("button", name="Show the other 980,003 characters").click()
        assert ann.page.locator(".prompt").inner_text().endswith("END")
        area.fill(big)
        ann.saved()
        area.fill(big + 1000 * "x")  # more than a label may have
        ann.page.get_by_role("button", name="Send label").click()
        ann.page.get_by_text("903 characters more than the 1,000,100 that are allowed").wait_for()
        area.fill(big)
        ann.page.get_by_role("button", name="Send label").click()
        ann.notice("Your label was sent")
        assert [len(text) for text in texts(service)] == [len(big)]
        ann.close()


def test_a_draft_that_is_too_long_stays_in_the_browser(browser: Any, tmp_path: Any) -> None:
    with labeling(f"sqlite:///{tmp_path}/short.sqlite", max_answer_characters=1000) as service:
        service.project(kind=pb.TASK_KIND_DEMONSTRATE)
        service.add(pb.LabelTask(prompt="Write."))
        service.account("ann")
        ann = Window(browser, service)
        ann.sign_in("ann")
        area = open_task(ann, ann.page)
        area.fill("x" * 20_000)
        ann.page.get_by_text("Kept in this browser only").wait_for()
        area.fill("x" * 1000)
        ann.saved()
        ann.close()
