"""Withdrawn tasks, archived projects and a qualification that was not passed, as people see them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trimtab.v1 import labeling_pb2 as pb

from ..people import Person, Service, in_order, ranking_task
from .browsers import Window

pytestmark = pytest.mark.slow
GOLD = [pb.TieGroup(indices=[0]), pb.TieGroup(indices=[1, 2, 3])]


def fail(person: Person) -> None:
    given = person.next("p")
    label = in_order(given)
    label["ranking"].reverse()
    assert person.submit(given, label).status_code == 200


def test_who_did_not_pass_the_qualification_is_told_and_let_in_by_a_reviewer(
    service: Service, window: Callable[..., Window]
) -> None:
    service.project(qualification_pass=0.8)
    service.add(ranking_task(0, gold_ranking=GOLD), ranking_task(1), ranking_task(2, gold_ranking=GOLD))
    person, ben = service.person("ann"), service.person("ben")
    fail(ben)  # one task of two: nobody knows yet whether ben passes
    fail(person)
    service.account("rita", pb.ACCOUNT_ROLE_REVIEWER)
    fail(person)
    told = (
        "You did not pass the qualification: you ordered 0 of 6 pairs as the gold answers, and 80 % of them are needed."
    )
    ann = window("ann")
    ann.go("projects/p")
    ann.page.get_by_text(told).wait_for()
    assert ann.page.get_by_role("link", name="Continue").count() == 0
    ann.go("projects/p/work")
    ann.page.locator("main").get_by_text(told).wait_for()
    rita = window("rita")
    rita.go("projects/p/review")
    rita.page.get_by_role("button", name="Let ann try again").wait_for()
    assert rita.page.get_by_role("button", name="Let ben try again").count() == 0
    rita.page.get_by_role("button", name="Let ann try again").click()
    rita.page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert len(service.program.get_agreement(pb.GetAgreementRequest(project="p")).labelers) == 2
    rita.page.get_by_role("button", name="Let ann try again").click()
    rita.page.get_by_role("dialog").get_by_role("button", name="Let try again").click()
    rita.notice("ann gets the qualification tasks again.")
    assert rita.page.get_by_role("button", name="Let ann try again").count() == 0
    ann.go("projects/p")
    ann.page.get_by_role("link", name="Start").click()
    ann.heading("Rank the answers")


def test_an_admin_withdraws_a_task_and_puts_it_back(service: Service, window: Callable[..., Window]) -> None:
    service.project()
    service.add(ranking_task(0))
    fail(service.person("ann"))
    fail(service.person("hal", group="heldout"))
    service.account("ada", pb.ACCOUNT_ROLE_ADMIN)
    ada = window("ada")
    ada.go("projects/p/labels")
    ada.page.locator("li.card summary").first.click()
    ada.page.get_by_role("button", name="Withdraw the task").click()
    ada.page.get_by_text("The task is withdrawn").wait_for()
    ada.page.locator("li.card summary").nth(1).get_by_text("withdrawn").wait_for()  # the other label is of it, too
    ada.page.locator("li.card summary").nth(1).click()
    assert ada.page.get_by_role("button", name="Put the task back").count() == 2
    assert service.export() == []
    ada.go("projects/p/review")
    ada.page.get_by_text("Withdrawn tasks").wait_for()
    ada.go("projects/p/labels")
    ada.page.locator("li.card summary").first.get_by_text("withdrawn").wait_for()
    ada.page.locator("li.card summary").first.click()
    ada.page.get_by_role("button", name="Put the task back").click()
    ada.page.get_by_text("The task is back, with its labels.").wait_for()
    assert len(service.export()) == 1


def test_who_works_on_a_withdrawn_task_is_told(service: Service, window: Callable[..., Window]) -> None:
    service.project(kind=pb.TASK_KIND_DEMONSTRATE)
    service.add(pb.LabelTask(task_key="0", prompt="Q0"), pb.LabelTask(task_key="1", prompt="Q1"))
    service.account("ann")
    ann = window("ann")
    ann.go("projects/p/work")
    ann.heading("Write the ideal answer")
    service.program.withdraw_tasks(pb.WithdrawTasksRequest(project="p", task_keys=["0"]))
    ann.page.get_by_label("Ideal answer").fill("Begun before")
    ann.notice("This task was taken out of the project.")
    ann.page.get_by_role("button", name="Next task").click()
    ann.page.get_by_text("Q1", exact=True).wait_for()
    ann.go("projects/p/mine")
    ann.page.locator("li.card", has_text="Q0").get_by_text("withdrawn").wait_for()


def test_an_archived_project_is_in_the_list_of_those_who_manage_only(
    service: Service, window: Callable[..., Window]
) -> None:
    service.project()
    service.account("ann")
    service.account("ada", pb.ACCOUNT_ROLE_ADMIN)
    ada = window("ada")
    ada.go("projects/p/settings")
    ada.page.get_by_label("State").select_option("archived")
    ada.page.get_by_role("button", name="Change").click()
    ada.page.get_by_text("Changed.").wait_for()
    ada.go("")
    ada.page.locator("li.card", has_text="archived").get_by_role("link", name="p").wait_for()
    window("ann").page.get_by_text("There are no projects yet.").wait_for()
