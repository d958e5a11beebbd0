"""axe-core on every page, light and dark, desktop and phone; nothing is wider than a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from browser import DESKTOP, PHONE, fetch_axe, serious_faults

from ..people import Service, labeling
from .browsers import Window
from .scene import furnish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PAGES = {
    "ann": ["", "projects/poems", "projects/poems/mine", "password", "nothing-here"],
    "rita": ["projects/poems/review", "projects/poems/labels"],
    "ada": ["accounts", "projects/poems/settings", "new-project", "audit"],
}
TASKS = ["projects/poems/work", "projects/winners/work", "projects/demonstrations/work", "projects/own-prompts/work"]


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fetch_axe(tmp_path_factory.mktemp("axe"))


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with labeling(f"sqlite:///{tmp_path_factory.mktemp('scene')}/labeling.sqlite") as service:
        furnish(service)
        yield service


@pytest.fixture(
    params=[(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")],
    ids=["desktop-light", "desktop-dark", "phone-light", "phone-dark"],
)
def open_window(request: pytest.FixtureRequest, browser: Any, furnished: Service) -> Iterator[Callable[[], Window]]:
    viewport, scheme = request.param
    opened: list[Window] = []

    def open_one() -> Window:
        opened.append(Window(browser, furnished, viewport=viewport, color_scheme=scheme))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def test_each_page(axe: str, open_window: Callable[[], Window], furnished: Service) -> None:
    found = []
    for name, addresses in PAGES.items():
        window = open_window()
        window.page.goto(f"{furnished.url}/labeling/")
        window.page.get_by_label("Name").wait_for()
        found += serious_faults(window.page, axe)
        window.sign_in(name)
        for address in addresses:
            window.go(address)
            window.page.locator("main h1").wait_for()
            for summary in window.page.locator("main summary").all()[:1]:
                summary.click()
            found += serious_faults(window.page, axe)
    assert found == []


def test_each_task_and_its_dialogs(axe: str, open_window: Callable[[], Window]) -> None:
    window = open_window()
    window.sign_in("ann")
    found = []
    for address in TASKS:
        window.go(address)
        window.page.get_by_role("button", name="Send label").wait_for()
        for summary in window.page.locator(".flags summary").all()[:1]:
            summary.click()
        if "poems" in address:
            window.page.get_by_role("button", name="Tie with the one above: Answer C").click()
            window.page.locator(".handle").nth(2).focus()
            window.press("Space")
        window.page.get_by_role("button", name="Send label").focus()
        found += serious_faults(window.page, axe)
        for opener, dialog in (("Keys", "Keys"), ("Skip…", "Skip this task")):
            window.page.get_by_role("button", name=opener).click()
            window.page.get_by_role("dialog", name=dialog).wait_for()
            found += serious_faults(window.page, axe)
            window.press("Escape")
    window.context.set_offline(True)
    window.page.get_by_label("Prompt").fill("a change")
    window.notice("There is no connection")
    found += serious_faults(window.page, axe)
    assert found == []
