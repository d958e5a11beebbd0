"""A labeler's window of a browser."""

from __future__ import annotations

from typing import Any

from browser import BrowserWindow

from ..people import PASSWORD, Service

OTHER_NAME = "labels.test"
"""Another name of this machine, known to the browser of these tests alone."""


class Window(BrowserWindow):
    """A window in which one person works."""

    def __init__(self, browser: Any, service: Service, **options: Any) -> None:
        super().__init__(browser, **options)
        self._url = service.url

    def is_at(self, url: str) -> None:
        """Goes by another address of the service from now on."""
        self._url = url

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

    def saved(self, page: Any = None) -> None:
        """Waits until the draft is at the service."""
        (page or self.page).locator('.draft-state[data-state="saved"]').wait_for()

    def nothing_left(self) -> None:
        """Waits for the page that says that there is no task."""
        self.page.locator("main").get_by_text("There is no task for you now").wait_for()
