"""A headless Chromium of the system's, and a labeler's window in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ..people import PASSWORD, Service

PATIENCE_MS = 20_000
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, which each window has a profile of its own in; skips where there is none."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no browser: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="no browser: playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


class Window:
    """A window with the cookies of one person; further tabs share them.

    Attributes:
        faults: what scripts and the Content-Security-Policy complained about; a test that ends with some fails.
    """

    def __init__(self, browser: Any, service: Service, **options: Any) -> None:
        self._url = service.url
        self.context = browser.new_context(**{"viewport": DESKTOP, "reduced_motion": "reduce", **options})
        self.context.set_default_timeout(PATIENCE_MS)
        self.faults: list[str] = []
        self.page = self.tab()

    def tab(self) -> Any:
        """Another tab."""
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda message: self._note(message))
        return page

    def sign_in(self, name: str) -> None:
        """Signs in by the page."""
        self.page.goto(f"{self._url}/labeling/")
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Sign in").click()
        self.heading("Projects")

    def go(self, address: str, page: Any = None) -> None:
        """Goes to a part of the page, with a fresh load."""
        page = page or self.page
        page.goto("about:blank")
        page.goto(f"{self._url}/labeling/#/{address}")

    def heading(self, text: str, page: Any = None) -> None:
        """Waits for a page by its heading."""
        (page or self.page).get_by_role("heading", level=1, name=text).wait_for()

    def saved(self, page: Any = None) -> None:
        """Waits until the draft is at the service."""
        (page or self.page).locator('.draft-state[data-state="saved"]').wait_for()

    def notice(self, text: str, page: Any = None) -> Any:
        """Waits for a notice that has a text."""
        found = (page or self.page).locator(".notice", has_text=text)
        found.wait_for()
        return found

    def nothing_left(self) -> None:
        """Waits for the page that says that there is no task."""
        self.page.locator("main").get_by_text("There is no task for you now").wait_for()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def close(self) -> None:
        self.context.close()
        assert self.faults == []

    def _note(self, message: Any) -> None:
        # a refused or dropped request is logged by the browser itself; the page says what it means
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.faults.append(message.text)
