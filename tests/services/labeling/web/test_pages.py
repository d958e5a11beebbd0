"""What reviewers and admins see and change by the page, and that Markdown becomes elements."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ..people import PASSWORD, Person, Service
from .browsers import Window
from .scene import furnish

pytestmark = pytest.mark.slow


def test_a_reviewer_sees_progress_agreement_and_labels(service: Service, window: Callable[..., Window]) -> None:
    furnish(service)
    rita = window("rita")
    page = rita.page
    rita.go("projects/poems")
    page.get_by_role("link", name="Agreement").click()
    rita.heading("Agreement: poems")
    pairs = page.get_by_role("table", name="Pairs of labelers").get_by_role("row")
    assert pairs.nth(1).inner_text().split("\t")[0] == "ben and cleo"
    # ben and cleo swap the first two and the last two of four: 4 of 6 pairs in each of 3 tasks, tau-b (4 - 2) / 6
    assert "67 %" in pairs.nth(1).inner_text()
    assert "18 pairs" in pairs.nth(1).inner_text()
    assert pairs.nth(1).inner_text().endswith("0.33")
    page.get_by_role("link", name="All labels").click()
    page.get_by_label("Only of labeler").fill("cleo")
    page.get_by_role("button", name="Show").click()
    cards = page.locator("main li.card")
    page.locator("main .badge", has_text="ben").first.wait_for(state="detached")
    assert cards.count() == 3
    cards.first.locator("summary").click()
    ranked = cards.first.locator("ol > li")
    order = ["3: Eddystone", "3: Bishop", "3: Longstone", "3: Fastnet"]
    assert [ranked.nth(rank).inner_text().splitlines()[-1] for rank in range(4)] == order
    assert page.get_by_role("link", name="Accounts").count() == 0


def test_a_labeler_is_refused_what_is_not_theirs(service: Service, window: Callable[..., Window]) -> None:
    furnish(service)
    ann = window("ann")
    for address in ("projects/poems/review", "accounts"):
        ann.go(address)
        ann.page.get_by_text("account 'ann' is a labeler").wait_for()


def test_an_admin_makes_accounts_and_projects(service: Service, window: Callable[..., Window]) -> None:
    furnish(service)
    ada = window("ada")
    page = ada.page
    page.get_by_role("link", name="Accounts").click()
    ada.heading("Accounts")
    page.get_by_label("Name").fill("dora")
    page.get_by_label("Password", exact=True).fill("too short")
    page.get_by_role("button", name="Make account").click()  # the browser says what is wrong
    assert page.get_by_text("Account dora is made.").count() == 0
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    group = page.locator("main section").get_by_label("Group")
    assert group.evaluate("(one) => [...one.list.options].map((option) => option.value)") == ["heldout"]
    group.fill("heldout")
    page.get_by_role("button", name="Make account").click()
    page.get_by_text("Account dora is made.").wait_for()
    card = page.locator("li.card", has=page.locator("strong", has_text="dora"))
    card.locator("summary").click()
    card.get_by_label("Role").select_option("reviewer")
    card.get_by_role("button", name="Change").click()
    card.get_by_text("Changed.", exact=True).wait_for()  # the hint has "unchanged."
    dora = Person(service.url, "dora")
    told = dora.answer.json()["account"]
    dora.close()
    assert (told["role"], told["group"]) == ("reviewer", "heldout")
    page.get_by_role("link", name="Projects").click()
    page.get_by_role("link", name="New project").click()
    page.get_by_label("Name").fill("letters")
    page.get_by_label("What labelers do").select_option("compare")
    page.get_by_label("Instructions").fill("# Which is *kinder*?")
    page.get_by_label("Minutes that a task stays").fill("5")
    page.get_by_role("button", name="Make project").click()
    page.get_by_role("heading", name="Which is kinder?", level=3).wait_for()
    page.get_by_role("link", name="Settings").click()
    page.get_by_label("State").select_option("closed")
    page.get_by_label("Most held-out labels of a task").fill("2")
    page.get_by_role("button", name="Change").click()
    page.get_by_text("Changed.").wait_for()
    ada.go("projects/letters/work")
    page.locator("main").get_by_text("letters is closed and gives out no tasks").wait_for()
    made = Person(service.url, "ada").get("projects/letters").json()
    assert (made["kind"], made["lease_ms"], made["state"]) == ("compare", 300_000, "closed")
    assert (made["held_out_group"], made["held_out_overlap"]) == ("heldout", 2)


def test_instructions_are_rendered(service: Service, window: Callable[..., Window]) -> None:
    furnish(service)
    ann = window("ann")
    ann.go("projects/poems")
    ann.heading("poems")
    shown = ann.page.locator(".instructions")
    assert shown.locator("h3").inner_text() == "What to look for"
    assert shown.locator("ol > li").count() == 2
    assert shown.locator("table th").all_inner_texts() == ["Rating", "Meaning"]
    assert shown.locator("pre").inner_text().rstrip() == '<script>alert("in code")</script>'
    assert shown.get_by_role("link", name="guide").get_attribute("rel") == "noopener noreferrer"
    assert "<img src=x onerror=" in shown.inner_text()


def test_own_password_is_changed_and_who_signs_out_is_out(service: Service, window: Callable[..., Window]) -> None:
    service.account("ann")
    ann = window("ann")
    page = ann.page
    page.get_by_role("link", name="ann").click()
    page.get_by_label("Password now").fill(PASSWORD)
    page.get_by_label("New password").fill("another long password")
    page.get_by_role("button", name="Change").click()
    page.get_by_text("Your password is changed").wait_for()
    page.get_by_role("button", name="Sign out").click()
    ann.heading("Sign in")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.locator("main").get_by_text("No account has this name and password").wait_for()
    page.get_by_label("Password").fill("another long password")
    page.get_by_role("button", name="Sign in").click()
    ann.heading("Projects")
