"""Comparing and writing: by mouse and by keyboard alone; skip, undo, help."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trimtab.v1 import labeling_pb2 as pb

from ..people import Person, Service
from .browsers import Window

pytestmark = pytest.mark.slow


def compare(service: Service) -> Person:
    service.project(kind=pb.TASK_KIND_COMPARE)
    service.add(*(pb.LabelTask(prompt=f"Which, {number}?", answers=["this one", "that one"]) for number in range(2)))
    return service.person("ann")


def demonstrate(service: Service, **task: str) -> Person:
    service.project(kind=pb.TASK_KIND_DEMONSTRATE)
    service.add(pb.LabelTask(task_key="only", **task))
    return service.person("ann")


def sent(person: Person) -> list[dict]:
    found = person.get("projects/p/assignments").json()["assignments"]
    return [one["label"] for one in found if one["state"] == "submitted"]


def test_compared_by_mouse(service: Service, window: Callable[..., Window]) -> None:
    person = compare(service)
    ann = window("ann")
    ann.go("projects/p/work")
    ann.page.get_by_role("button", name="Send label").click()
    assert ann.page.locator(".bar .problem").inner_text() == "Say which answer is better."
    ann.page.locator(".verdict label", has_text="B is better").click()
    ann.page.get_by_role("button", name="Send label").click()
    ann.notice("Your label was sent")
    ann.page.get_by_text("Which, 1?").wait_for()
    assert [label["ranking"] for label in sent(person)] == [[[1], [0]]]


def test_compared_by_keyboard(service: Service, window: Callable[..., Window]) -> None:
    person = compare(service)
    ann = window("ann")
    ann.go("projects/p/work")
    ann.heading("Compare two answers")
    ann.press("a", "Control+Enter")
    ann.page.get_by_text("Which, 1?").wait_for()
    ann.press("b", "=", "Control+Enter")
    ann.nothing_left()
    assert [label["ranking"] for label in sent(person)] == [[[0, 1]], [[0], [1]]]


def test_single_keys_can_be_turned_off(service: Service, window: Callable[..., Window]) -> None:
    compare(service)
    ann = window("ann")
    ann.go("projects/p/work")
    ann.heading("Compare two answers")
    ann.press("?")
    dialog = ann.page.get_by_role("dialog", name="Keys")
    dialog.get_by_text("Answer A is better").wait_for()
    dialog.get_by_label("Single keys work").uncheck()
    ann.press("Escape")
    dialog.wait_for(state="detached")
    ann.press("a", "?")
    assert ann.page.locator(".verdict input:checked").count() == 0
    assert ann.page.locator("dialog").count() == 0


def test_written_by_keyboard(service: Service, window: Callable[..., Window]) -> None:
    person = demonstrate(service)
    ann = window("ann")
    ann.go("projects/p/work")
    ann.heading("Write the ideal answer")
    ann.page.get_by_label("Prompt").focus()
    ann.page.keyboard.type("What is a tide?")
    ann.press("Tab")
    ann.page.keyboard.type("The sea, rising?")  # a question mark is a letter here
    ann.press("Control+Enter")
    ann.notice("Your label was sent")
    assert sent(person) == [{"prompt": "What is a tide?", "completion": "The sea, rising?"}]


def test_written_by_mouse_after_a_reload(service: Service, window: Callable[..., Window]) -> None:
    person = demonstrate(service, prompt="What is a tide?")
    ann = window("ann")
    ann.go("projects/p/work")
    ann.page.get_by_role("button", name="Send label").click()
    assert ann.page.locator(".bar .problem").inner_text() == "Write an answer."
    ann.page.get_by_label("Ideal answer").fill("The sea, rising.")
    ann.saved()
    ann.page.reload()
    ann.page.get_by_role("button", name="Send label").wait_for()
    assert ann.page.get_by_label("Ideal answer").input_value() == "The sea, rising."
    ann.page.get_by_role("button", name="Send label").click()
    ann.notice("Your label was sent")
    assert sent(person) == [{"completion": "The sea, rising."}]
    rita = service.person("rita", pb.ACCOUNT_ROLE_REVIEWER)
    (label,) = rita.get("projects/p/labels").json()["labels"]
    assert 0 < label["active_ms"] <= 1000 * label["seconds"] + 1000


def test_undone_and_sent_again(service: Service, window: Callable[..., Window]) -> None:
    person = demonstrate(service, prompt="What is a tide?")
    ann = window("ann")
    ann.go("projects/p/work")
    ann.page.get_by_label("Ideal answer").fill("The see.")
    ann.page.get_by_role("button", name="Send label").click()
    ann.notice("Your label was sent").get_by_role("button", name="Undo").click()
    area = ann.page.get_by_label("Ideal answer")
    area.wait_for()
    assert (area.input_value(), sent(person)) == ("The see.", [])
    area.fill("The sea.")
    ann.page.get_by_role("button", name="Send label").click()
    ann.nothing_left()
    assert sent(person) == [{"completion": "The sea."}]


def test_skipped_with_a_reason(service: Service, window: Callable[..., Window]) -> None:
    person = demonstrate(service, prompt="What is a tide?")
    ann = window("ann")
    ann.go("projects/p/work")
    ann.page.get_by_role("button", name="Skip…").click()
    dialog = ann.page.get_by_role("dialog", name="Skip this task")
    dialog.get_by_role("button", name="Skip", exact=True).click()  # nothing happens without a reason
    dialog.get_by_label("I do not understand the task").check()
    dialog.get_by_label("More, if you like").fill("which sea?")
    dialog.get_by_role("button", name="Skip", exact=True).click()
    ann.notice("Skipped")
    (one,) = person.get("projects/p/assignments").json()["assignments"]
    assert one["skip_reason"] == "I do not understand the task: which sea?"
