"""The page in short: it is served with its headers, and a label is made in it by mouse."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import httpx

from ..people import Service, ranking_task
from .browsers import Window


def test_the_page_lets_nothing_else_in_and_its_files_are_kept_for_ever(service: Service) -> None:
    page = httpx.get(f"{service.url}/labeling", follow_redirects=True, trust_env=False)
    assert page.status_code == 200
    assert page.headers["cache-control"] == "no-cache"
    addresses = re.findall(r'(?:src|href)="(assets/[^"]+)"', page.text)
    assert len(addresses) == 4
    for address in addresses:
        answer = httpx.get(f"{service.url}/labeling/{address}", trust_env=False)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        for one in (page, answer):
            policy = one.headers["content-security-policy"].split("; ")
            assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "trusted-types worker"} <= set(
                policy
            )
            assert "unsafe" not in one.headers["content-security-policy"]
            assert one.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", page.text)
    folder = addresses[0].rsplit("/", 1)[0]
    for name in ("index.html", "nothing.js", "../assets.py", "..%2fassets.py", "%2e%2e/__init__.py"):
        assert httpx.get(f"{service.url}/labeling/{folder}/{name}", trust_env=False).status_code == 404
    worker = httpx.get(f"{service.url}/labeling/worker.js", trust_env=False)
    assert worker.headers["cache-control"] == "no-cache" and folder.rsplit("/", 1)[1] in worker.text
    assert worker.headers["content-security-policy"] == page.headers["content-security-policy"]
    names = json.loads(worker.text.split("const FILES = ")[1].split(";")[0])
    assert {address.rsplit("/", 1)[1] for address in addresses} < set(names)
    for name in names:
        assert httpx.get(f"{service.url}/labeling/{folder}/{name}", trust_env=False).status_code == 200


def test_a_label_by_mouse(service: Service, window: Callable[..., Window]) -> None:
    service.project(wants_ratings=True)
    service.add(ranking_task(0))
    ann = service.person("ann")
    window_of_ann = window("ann")
    page = window_of_ann.page
    page.get_by_role("link", name="p", exact=True).click()
    page.get_by_role("link", name="Start").click()
    page.get_by_role("heading", name="Rank the answers").wait_for()
    for card in page.locator(".answer").all():
        card.locator(".rating label", has_text="5").click()
    page.get_by_role("button", name="Move down: Answer A").click()
    page.get_by_role("button", name="Send label").click()
    window_of_ann.nothing_left()
    (label,) = ann.get("projects/p/assignments").json()["assignments"]
    assert label["label"]["ranking"] == [[1], [0], [2], [3]]
    assert label["label"]["ratings"] == [5, 5, 5, 5]
