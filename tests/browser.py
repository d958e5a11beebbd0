"""A headless Chromium of the system's, windows in it, and axe-core."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

__all__ = ["DESKTOP", "PHONE", "BrowserWindow", "chromium", "fetch_axe", "serious_faults"]

PATIENCE_MS = 20_000
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
AXE = "axe-core@4.14.1"
SERIOUS = {"serious", "critical"}


@contextmanager
def chromium(*options: str) -> Iterator[Any]:
    """A browser, which each window has a profile of its own in; skips where there is none.

    Args:
        options: of its command line, besides those that it always gets.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no browser: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="no browser: playwright is not installed")
    with api.sync_playwright() as playwright:
        args = ["--no-sandbox", "--disable-dev-shm-usage", *options]
        browser = playwright.chromium.launch(executable_path=program, args=args)
        try:
            yield browser
        finally:
            browser.close()


class BrowserWindow:
    """A window with the cookies of one person; further tabs share them.

    Attributes:
        faults: what scripts and the Content-Security-Policy complained about; a test that ends with some fails.
    """

    def __init__(self, browser: Any, **options: Any) -> None:
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

    def heading(self, text: str, page: Any = None) -> None:
        """Waits for a page by its heading."""
        (page or self.page).get_by_role("heading", level=1, name=text).wait_for()

    def notice(self, text: str, page: Any = None) -> Any:
        """Waits for a notice that has a text."""
        found = (page or self.page).locator(".notice", has_text=text)
        found.wait_for()
        return found

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


def fetch_axe(folder: Path) -> str:
    """The script of axe-core, as npm fetches it; where npm cannot the test is skipped, but not in CI."""
    if shutil.which("npm") is None:
        pytest.skip("no npm to fetch axe-core with")
    packed = subprocess.run(
        ["npm", "pack", "--json", AXE], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    if packed.returncode:
        says = f"npm cannot fetch {AXE}: {packed.stderr[-200:]}"
        pytest.fail(says) if os.environ.get("CI") else pytest.skip(says)
    with tarfile.open(folder / json.loads(packed.stdout)[0]["filename"]) as archive:
        script = archive.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode()


def serious_faults(page: Any, axe: str) -> list[str]:
    """Serious and critical faults of the page that is shown, with their elements, and whether it is too wide."""
    page.evaluate(axe)
    result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert len(result["passes"]) > 5  # it has looked at something
    where = page.url
    bad = [
        f"{where}: {one['id']} at {[node['target'] for node in one['nodes']][:3]}: {one['nodes'][0]['failureSummary']}"
        for one in result["violations"]
        if one["impact"] in SERIOUS
    ]
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        bad.append(f"{where}: wider than the window")
    return bad
