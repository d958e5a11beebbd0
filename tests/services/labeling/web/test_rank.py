"""Ranking: with the mouse, with a finger, and with the keyboard alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from browser import PHONE

from ..people import Service, ranking_task
from .browsers import Window

pytestmark = pytest.mark.slow


def begin(service: Service, window: Callable[..., Window], *, answers: int = 4, **options: Any) -> Window:
    """Ann at a task whose answers she sees as A, B, C, ... in an order of her own."""
    service.project()
    service.add(ranking_task(0, answers))
    service.account("ann")
    ann = window("ann", **options)
    ann.go("projects/p/work")
    ann.heading("Rank the answers")
    return ann


def shown_order(page: Any) -> list[str]:
    """Groups as the page shows them, such as `["A", "B=D", "C"]`."""
    ranks = page.locator(".ranks > li").all()
    return ["=".join(handle.inner_text()[-1] for handle in rank.locator(".handle").all()) for rank in ranks]


def sent_ranking(service: Service) -> list[list[str]]:
    """Groups of texts, as exported."""
    (row,) = service.export(include_unfinished=True)
    content = json.loads(row.row_json)
    (label,) = content["labels"]
    return [[content["answers"][index] for index in group] for group in label["ranking"]]


def texts_of(page: Any) -> dict[str, str]:
    """Text of each answer by its letter."""
    cards = page.locator(".answer").all()
    return {card.get_by_role("heading").inner_text()[-1]: card.locator(".text").inner_text() for card in cards}


def drag(page: Any, letter: str, onto: str, at: float) -> None:
    """Drags an answer by the mouse to a height of another one's rank: 0 its top, 1 its bottom."""
    start = page.locator(f'.rank-row:has(strong:text-is("{letter}")) .snippet').bounding_box()
    target = page.locator(f'.rank:has(strong:text-is("{onto}"))').bounding_box()
    page.mouse.move(start["x"] + 20, start["y"] + start["height"] / 2)
    page.mouse.down()
    y = target["y"] + at * target["height"]
    page.mouse.move(target["x"] + 80, y - 5, steps=5)
    page.mouse.move(target["x"] + 80, y, steps=3)
    page.mouse.up()


def test_dragged_by_mouse(service: Service, window: Callable[..., Window]) -> None:
    ann = begin(service, window)
    page = ann.page
    texts = texts_of(page)
    drag(page, "D", onto="A", at=0.1)  # before the first
    assert shown_order(page) == ["D", "A", "B", "C"]
    drag(page, "A", onto="C", at=0.5)  # its middle ties
    assert shown_order(page) == ["D", "B", "A=C"]
    drag(page, "D", onto="C", at=0.95)  # after the last
    assert shown_order(page) == ["B", "A=C", "D"]
    assert page.locator(".rank.tie").count() == 1
    assert page.locator('.answer:has(h3:text-is("Answer C")) .badge').inner_text() == "Rank 2, tied"
    drag(page, "A", onto="B", at=0.1)  # out of a tie
    assert shown_order(page) == ["A", "B", "C", "D"]
    drag(page, "D", onto="B", at=0.5)
    page.get_by_role("button", name="Send label").click()
    ann.notice("Your label was sent")
    assert sent_ranking(service) == [[texts["A"]], sorted([texts["B"], texts["D"]]), [texts["C"]]]


def test_a_drag_is_given_up_by_escape(service: Service, window: Callable[..., Window]) -> None:
    page = begin(service, window).page
    row = page.locator(".rank-row .snippet").first.bounding_box()
    page.mouse.move(row["x"] + 10, row["y"] + 10)
    page.mouse.down()
    page.mouse.move(row["x"] + 10, row["y"] + 130, steps=5)
    assert page.locator(".ghost").count() == 1
    page.keyboard.press("Escape")
    page.mouse.up()
    assert page.locator(".ghost").count() == 0
    assert shown_order(page) == ["A", "B", "C", "D"]


def test_dragged_by_a_finger_on_a_phone(service: Service, window: Callable[..., Window]) -> None:
    ann = begin(service, window, viewport=PHONE, has_touch=True, is_mobile=True)
    page = ann.page
    page.locator(".ranks").scroll_into_view_if_needed()
    page.locator(".ranks > li").last.scroll_into_view_if_needed()
    start = page.locator(".handle").nth(3).bounding_box()
    end = page.locator(".ranks > li").nth(1).bounding_box()
    touch = ann.context.new_cdp_session(page)
    x, y = start["x"] + 20, start["y"] + 20
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for part in range(1, 11):
        at = y + (end["y"] + end["height"] / 2 - y) * part / 10
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": at}]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert shown_order(page) == ["A", "B=D", "C"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("count", [4, 9])
def test_ranked_by_keyboard_alone(service: Service, window: Callable[..., Window], count: int) -> None:
    service.project(wants_ratings=True)
    service.add(ranking_task(0, count))
    service.account("ann")
    ann = window("ann")
    page = ann.page
    focus_on(ann, page.get_by_role("link", name="p", exact=True))
    ann.press("Enter")
    ann.heading("p")
    focus_on(ann, page.get_by_role("link", name="Start"))
    ann.press("Enter")
    ann.heading("Rank the answers")
    texts = texts_of(page)
    letters = sorted(texts)
    for letter in letters:
        focus_on(ann, page.locator(f'.answer:has(h3:text-is("Answer {letter}")) .rating input').first)
        ann.press("ArrowRight", "ArrowRight")  # from 1 to 3
    focus_on(ann, page.locator(".handle").first)
    said = page.locator("#assertive")
    ann.press("Space")
    said.get_by_text(f"Answer A picked up, rank 1 of {count}.").wait_for(state="attached")
    ann.press("ArrowDown")
    said.get_by_text(f"Answer A: rank 2 of {count}.").wait_for(state="attached")
    ann.press("Shift+T")
    said.get_by_text(f"Answer A: rank 2 of {count - 1}, tied with Answer C.").wait_for(state="attached")
    ann.press("ArrowUp", "t")  # alone between B and C, then with B
    said.get_by_text("tied with Answer B.").wait_for(state="attached")
    ann.press("Space")
    said.get_by_text("Answer A dropped").wait_for(state="attached")
    assert shown_order(page) == ["A=B", *letters[2:]]
    ann.press("ArrowDown", "ArrowDown")  # not picked up: only the focus moves
    assert page.evaluate("document.activeElement.innerText").endswith("C")
    ann.press("Space", "ArrowUp", "ArrowUp")
    assert shown_order(page)[0] == "C"
    ann.press("Escape")
    assert shown_order(page) == ["A=B", *letters[2:]]
    ann.press("Control+Enter")
    ann.notice("Your label was sent")
    expected = [sorted([texts["A"], texts["B"]]), *([texts[letter]] for letter in letters[2:])]
    assert [sorted(group) for group in sent_ranking(service)] == expected


def test_an_order_that_nobody_touched_is_asked_about(service: Service, window: Callable[..., Window]) -> None:
    ann = begin(service, window)
    ann.page.get_by_role("button", name="Send label").click()
    dialog = ann.page.get_by_role("dialog", name="Send this label?")
    dialog.get_by_role("button", name="Cancel").click()
    assert service.export(include_unfinished=True) == []
    ann.page.get_by_role("button", name="Send label").click()
    dialog.get_by_role("button", name="Send").click()
    ann.notice("Your label was sent")
    assert len(sent_ranking(service)) == 4


def test_ratings_and_questions_are_sent_and_a_missing_rating_is_shown(
    service: Service, window: Callable[..., Window]
) -> None:
    service.project(wants_ratings=True)
    service.add(ranking_task(0))
    person = service.person("ann")
    ann = window("ann")
    page = ann.page
    ann.go("projects/p/work")
    page.get_by_role("button", name="Move down: Answer A").click()
    page.get_by_role("button", name="Send label").click()
    assert page.locator(".bar .problem").inner_text() == "Rate Answer A from 1 to 7."
    assert page.evaluate("document.activeElement.closest('.answer').dataset.place") == "0"
    for place, rating in enumerate([7, 1, 4, 4]):
        page.locator(".answer").nth(place).locator(f'.rating label:has(input[value="{rating}"])').click()
    first = page.locator(".answer").first
    first.locator("summary").click()
    first.get_by_role("group", name="Hallucination").locator("label", has_text="Yes").click()
    first.get_by_role("button", name="No to all that are open").click()
    assert first.locator("summary .hint").inner_text() == "11 of 11 answered, 1 yes"
    page.get_by_role("button", name="Send label").click()
    # B is above A, and rated 1 where A has 7; the same of B above C and D
    dialog = page.get_by_role("dialog", name="Send this label?")
    asked = "You ranked Answer B above Answer A, but rated it lower. The same goes for 2 other pairs. Send anyway?"
    assert dialog.locator("p").all_inner_texts() == [asked]
    ann.press("Escape")
    dialog.wait_for(state="detached")
    assert person.get("projects/p/assignments").json()["assignments"][0]["state"] == "leased"
    ann.press("Control+Enter")
    dialog.wait_for()
    ann.press("Tab", "Enter")
    ann.notice("Your label was sent")
    (sent,) = person.get("projects/p/assignments").json()["assignments"]
    assert sent["label"]["ratings"] == [7, 1, 4, 4]
    flags = sent["label"]["flags"]
    assert (len(flags[0]), flags[0]["hallucination"], sum(flags[0].values()), flags[1]) == (11, True, 1, {})


def focus_on(window: Window, element: Any) -> None:
    """Goes on by Tab until an element has the focus."""
    element.wait_for(state="attached")
    for _ in range(150):
        if element.evaluate("(one) => one === document.activeElement"):
            return
        window.press("Tab")
    raise AssertionError("Tab does not get there")
