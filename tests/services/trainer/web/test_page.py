"""The page in headless Chromium: live, by keyboard, on a phone, after a lost connection, with text that is markup."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from browser import DESKTOP, PHONE, BrowserWindow, chromium, fetch_axe, serious_faults
from running import client
from trimtab.v1 import info_pb2
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer import reported_replicas

from .scene import (
    MARKUP,
    Service,
    ended,
    fill_events,
    fill_runs,
    furnish,
    ppo_step,
    replica,
    rollouts,
    said,
    started,
    trainer,
    write_samples,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PAGES = ["", "runs/working", "runs/failed", "nothing-here"]

OpenWindow = Callable[..., BrowserWindow]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def open_window(browser: Any) -> Iterator[OpenWindow]:
    """Opens windows; each must have had no fault at the end."""
    opened: list[BrowserWindow] = []

    def open_one(**options: Any) -> BrowserWindow:
        opened.append(BrowserWindow(browser, **options))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def go(window: BrowserWindow, service: Service, address: str = "") -> None:
    """Goes to a part of the page, with a fresh load."""
    window.page.goto("about:blank")
    window.page.goto(f"{service.url}/runs/#/{address}")
    window.page.locator("main h1").wait_for()


def legend(window: BrowserWindow, title: str) -> Any:
    """The legend of a plot, which tells its values."""
    return window.page.locator("figure.plot", has=window.page.get_by_role("heading", name=title, exact=True)).locator(
        ".legend"
    )


def wait_for(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_real_run_while_it_works(tmp_path: Path, llama_folder: Path, open_window: OpenWindow) -> None:
    rows = [{"prompt": f"the dog {number}", "completion": "It sleeps."} for number in range(64)]
    data = tmp_path / "demonstrations.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"demonstrations": str(data), "pretraining": None, "rl_init": None, "epochs": 3, "batch_size": 4}
    spec = {
        "name": "real",
        "directory": str(tmp_path / "unused"),
        "model": str(llama_folder),
        "data_directory": str(tmp_path),
        "stages": ["sft"],
        "sft": {**section, "held_out_fraction": 0.0},
    }
    window = open_window()
    with trainer(tmp_path / "runs") as service, client(service.server) as program:
        go(window, service)
        window.page.get_by_text("There are no runs yet.").wait_for()
        request = pb.StartRunRequest(name="real", spec_yaml=yaml.safe_dump(spec))
        program.start_run(request, timeout_s=120)
        window.page.get_by_role("link", name="real").click()
        window.heading("real")
        line = window.page.locator("figure.plot", has_text="SFT: loss").locator("path.line-0").last
        line.wait_for(timeout=120_000)
        before = line.get_attribute("d") or ""
        wait_for(lambda: len(line.get_attribute("d") or "") > len(before))  # the curve grows, and nobody loads the page
        window.page.locator(".badge.state-succeeded").wait_for(timeout=120_000)
        assert "step 48" in legend(window, "SFT: loss").inner_text()
        events = [event for event in service.store.events("real", 0) if event.HasField("step_done")]
        last = legend(window, "SFT: loss").locator("b").inner_text()
        assert float(last) == pytest.approx(events[-1].step_done.metrics["loss"], rel=1e-3)
        window.page.get_by_text("run SUCCEEDED").wait_for()
        window.page.get_by_text("Output of the process").click()
        window.page.get_by_role("region", name="Output of the process").get_by_text("sft").first.wait_for()


def test_what_comes_is_shown(empty: Service, open_window: OpenWindow) -> None:
    draw = Random(1)
    empty.run("a", started("ppo", 9), *[ppo_step(step, 9, draw) for step in (1, 2)])
    window = open_window()
    go(window, empty, "runs/a")
    legend(window, "entropy, nats of a token").get_by_text("step 2").wait_for()
    empty.tell("a", ppo_step(3, 9, draw), said("look here", pb.SEVERITY_WARNING))
    legend(window, "entropy, nats of a token").get_by_text("step 3").wait_for()
    window.page.locator(".log li.warning", has_text="look here").wait_for()
    window.page.locator(".badge", has_text="1 problem").wait_for()
    empty.tell("a", ended(pb.RUN_STATE_FAILED, "out of memory"))
    window.page.locator(".run-error", has_text="out of memory").wait_for()


def test_a_service_that_goes_away_and_comes_back(tmp_path: Path, open_window: OpenWindow) -> None:
    window = open_window()
    with trainer(tmp_path) as service:
        port = service.server.server.runtime.ports.http
        service.run("a", said("before"))
        go(window, service, "runs/a")
        window.page.get_by_text("before").wait_for()
    window.notice("There is no connection to the service")
    with trainer(tmp_path, http_port=port) as service:
        service.tell("a", said("after"))
        window.page.get_by_text("after").wait_for()
        window.page.locator(".notice", has_text="no connection").wait_for(state="detached")
        assert window.page.locator(".log li").count() == 2  # nothing twice


def test_text_is_never_markup(service: Service, open_window: OpenWindow) -> None:
    window = open_window()
    go(window, service)
    window.page.get_by_text(MARKUP).first.wait_for()
    go(window, service, "runs/working")
    for title in ("Rollouts", "Samples", "Output of the process", "Spec"):
        window.page.locator("summary", has_text=title).click()
    window.page.locator("article").first.wait_for()
    window.page.get_by_role("region", name="Spec").wait_for()
    wait_for(lambda: window.page.get_by_text(MARKUP).count() >= 12)
    assert window.page.locator("main img, main script").count() == 0
    assert window.page.title() == "working · Runs"


def test_samples_are_searched(service: Service, open_window: OpenWindow) -> None:
    window = open_window()
    go(window, service, "runs/working")
    window.page.locator("summary", has_text="Samples").click()
    window.page.get_by_text("30 prompts").wait_for()
    assert window.page.locator("article").count() == 10
    window.page.get_by_role("button", name="Show more").last.click()
    wait_for(lambda: window.page.locator("article").count() == 20)
    window.page.get_by_role("searchbox").fill("base answer 0 to 29")
    window.page.get_by_text("1 prompt found").first.wait_for()
    assert window.page.locator("article").count() == 1


def test_rollouts_are_shown_as_they_come(empty: Service, open_window: OpenWindow) -> None:
    empty.run("a", started("ppo", 99))
    window = open_window()
    go(window, empty, "runs/a")
    summary = window.page.locator("summary", has_text="Rollouts")
    assert not summary.is_visible()  # it has told of none
    empty.tell("a", rollouts(1, 99, "one", MARKUP))
    summary.click()
    window.page.locator("article").nth(1).wait_for()
    empty.tell("a", rollouts(2, 99, "two"))
    newest = window.page.locator("article").first
    newest.get_by_text("Answer: two").wait_for()
    assert "ppo, step 2 reward 0.5" in newest.inner_text() and "not ended" not in newest.inner_text()
    assert "reward 0.25 · not ended" in window.page.locator("article").last.inner_text()
    empty.tell("a", *[rollouts(step, 99, "x", "y") for step in range(3, 40)])
    window.page.get_by_text("ppo, step 39").first.wait_for()
    assert window.page.locator("article").count() == 40  # the oldest have gone
    assert window.page.locator("main img").count() == 0


def test_replicas_are_shown_with_their_age(
    empty: Service, open_window: OpenWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty.run("a", started("ppo", 99))
    window = open_window()
    go(window, empty, "runs/a")
    summary = window.page.locator("summary", has_text="Replicas")
    assert not summary.is_visible()  # it has told of none
    empty.report("a", replica(version=7, channel_version=7))
    summary.get_by_text("1 of 1 serving").wait_for()
    summary.click()
    rows = window.page.locator("table", has_text="Last answer").locator("tbody tr")
    assert rows.all_inner_texts()[0].split("\t")[:5] == ["generation", "10.0.0.1:50051", "serving", "7", "0"]
    window.page.get_by_text("As the run told 2 s ago.").wait_for()  # nobody loads the page
    lost = replica(service="reward", state=info_pb2.SERVICE_STATE_UNSPECIFIED, note=MARKUP)
    monkeypatch.setattr(reported_replicas, "time", SimpleNamespace(time=lambda: time.time() - 300))  # 5 minutes ago
    empty.report("a", replica(version=7, channel_version=8), lost)
    monkeypatch.undo()
    summary.get_by_text("1 of 2 serving").wait_for()
    window.page.get_by_text("The run has told nothing of them for").wait_for()
    empty.report("a", replica(version=8, channel_version=8), lost)
    window.page.get_by_text("The run has told nothing of them for").wait_for(state="detached")
    assert window.page.get_by_text(MARKUP).count() == 1 and window.page.locator("main img").count() == 0
    empty.tell("a", ended(pb.RUN_STATE_FAILED, "out of memory"))
    summary.wait_for(state="hidden")


def test_output_is_shown_as_it_comes_as_text_and_no_more_than_its_end(empty: Service, open_window: OpenWindow) -> None:
    folder = empty.run("a", started("sft", 4))
    window = open_window()
    go(window, empty, "runs/a")
    window.page.locator("summary", has_text="Output of the process").click()
    window.page.get_by_text("There is none on the volume").wait_for()
    log = (folder / "run.log").open("a", encoding="utf-8", buffering=1)
    log.write(f"sft: begins\n{MARKUP}\n")
    shown = window.page.get_by_role("region", name="Output of the process")
    shown.get_by_text(MARKUP).wait_for()
    window.page.get_by_text("all of it").wait_for()
    log.write("caf\N{LATIN SMALL LETTER E WITH ACUTE}\n")
    shown.get_by_text("caf\N{LATIN SMALL LETTER E WITH ACUTE}").wait_for()
    assert shown.inner_text().startswith("sft: begins\n")
    for block in range(4):
        log.write(f"block {block}\n" + 500 * f"{'x' * 99}\n")
        shown.get_by_text(f"block {block}").wait_for()
    log.write("the newest line\n")
    shown.get_by_text("the newest line").wait_for()
    assert len(shown.inner_text()) < 130_000 and "sft: begins" not in shown.inner_text()
    assert shown.evaluate("one => one.scrollTop + one.clientHeight >= one.scrollHeight - 8")
    assert window.page.locator("main img").count() == 0
    log.close()


def test_samples_appear_once_a_model_is_evaluated(empty: Service, open_window: OpenWindow) -> None:
    folder = empty.run("a", started("evaluate", 2))
    window = open_window()
    go(window, empty, "runs/a")
    assert not window.page.locator("summary", has_text="Samples").is_visible()
    write_samples(folder, 3)
    window.page.locator("summary", has_text="Samples").click()
    window.page.get_by_text("3 prompts").wait_for()
    (folder / "samples" / "sft.jsonl").write_text(
        json.dumps({"number": 0, "prompt": "Question 0", "completion": "answer of sft"}) + "\n"
    )
    window.page.get_by_text("answer of sft").wait_for()


def test_a_plot_is_read_by_keyboard(service: Service, open_window: OpenWindow) -> None:
    window = open_window()
    go(window, service, "runs/working")
    plot = window.page.get_by_role("slider", name="KL to the reference, nats of a sequence")
    plot.focus()
    assert (plot.get_attribute("aria-valuetext") or "").startswith("step 45: mean kl ")
    window.press("ArrowLeft", "ArrowLeft")
    assert (plot.get_attribute("aria-valuetext") or "").startswith("step 43: ")
    window.press("Home")
    told = service.get("runs/working").json()["curves"]["ppo"]["figures"]["mean_kl"]["last"][0]
    assert f"step 1: mean kl {told:.4g}" in (plot.get_attribute("aria-valuetext") or "")
    window.press("Escape")
    assert (plot.get_attribute("aria-valuetext") or "").startswith("step 45: ")


def test_the_list_follows_and_keeps_the_focus(empty: Service, open_window: OpenWindow) -> None:
    empty.run("a", started("sft", 4))
    window = open_window()
    go(window, empty)
    link = window.page.get_by_role("link", name="a", exact=True)
    link.focus()
    empty.run("b", ended(pb.RUN_STATE_FAILED, "no such file"))
    empty.tell("a", ended(pb.RUN_STATE_SUCCEEDED))
    window.page.locator(".problem", has_text="no such file").wait_for()
    window.page.locator("tr", has=link).locator(".state-succeeded").wait_for()
    assert link.evaluate("node => node === document.activeElement")
    assert window.page.locator("tbody th a").all_inner_texts() == ["b", "a"]
    empty.store.delete_run("b")
    wait_for(lambda: window.page.locator("tbody th a").all_inner_texts() == ["a"])


def test_a_run_that_is_deleted_while_it_is_looked_at(empty: Service, open_window: OpenWindow) -> None:
    empty.run("a", started("sft", 4))
    window = open_window()
    go(window, empty, "runs/a")
    empty.store.delete_run("a")
    window.notice("This run has been deleted.")


def test_who_has_a_token_signs_in_and_out(tmp_path: Path, open_window: OpenWindow) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({"a-token": {"name": "ann", "scopes": ["runs"]}}))
    with trainer(tmp_path / "runs", tokens_file=tokens) as service:
        service.run("a", said("one"))
        window = open_window()
        go(window, service, "runs/a")
        window.page.get_by_label("Token").fill("wrong")
        window.press("Enter")
        window.page.get_by_text("This token is not known.").wait_for()
        window.page.get_by_label("Token").fill("a-token")
        window.press("Enter")
        window.heading("a")
        assert window.page.evaluate("document.cookie + JSON.stringify(localStorage)") == "{}"
        tokens.write_text(json.dumps({"b-token": {"name": "bob", "scopes": ["runs"]}}))
        window.page.get_by_label("Token").fill("b-token")  # what was shown goes with the token
        window.press("Enter")
        window.heading("a")
        window.page.get_by_role("button", name="Sign out").click()
        window.heading("Sign in")


def test_1000_runs_and_100_000_steps_stay_quick(empty: Service, open_window: OpenWindow) -> None:
    fill_runs(empty, 1000)
    fill_events(empty, "long", 100_000)
    empty.get("runs/long")  # the first look at a run reads its events
    window = open_window()
    go(window, empty)
    for _ in range(20):
        window.page.get_by_role("button", name="Show more").click()
        window.page.wait_for_timeout(50)
    wait_for(lambda: window.page.locator("tbody tr").count() == 1001)
    began = time.monotonic()
    window.page.get_by_role("link", name="long").click()
    legend(window, "entropy, nats of a token").get_by_text("step 100,000").wait_for()
    assert time.monotonic() - began < 5.0
    assert (window.page.locator("path.line").first.get_attribute("d") or "").count("L") <= 400
    empty.tell("long", ppo_step(100_001, 100_001, Random(1)))
    legend(window, "entropy, nats of a token").get_by_text("step 100,001").wait_for()


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fetch_axe(tmp_path_factory.mktemp("axe"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_serious_fault_of_accessibility(
    tmp_path: Path, axe: str, open_window: OpenWindow, viewport: dict[str, int], scheme: str
) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({"a-token": {"name": "ann", "scopes": ["runs"]}}))
    with trainer(tmp_path / "runs", tokens_file=tokens) as service:
        furnish(service)
        lost = replica(service="reward", state=info_pb2.SERVICE_STATE_UNSPECIFIED, note=MARKUP)
        service.report("working", replica(version=48, channel_version=48), lost, token="a-token")
        window = open_window(viewport=viewport, color_scheme=scheme)
        go(window, service)
        found = serious_faults(window.page, axe)
        window.page.get_by_label("Token").fill("a-token")
        window.press("Enter")
        window.heading("Runs")
        for address in PAGES:
            go(window, service, address)
            for summary in window.page.locator("main .folded > summary:visible").all():
                summary.click()
            window.page.wait_for_timeout(500)
            found += serious_faults(window.page, axe)
    assert found == []
