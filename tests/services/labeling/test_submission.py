"""What labelers send: sent again, from two tabs, taken back, and wrong."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from trimtab.v1 import labeling_pb2 as pb
from trimtab_services.labeling.config import LabelingServiceConfig

from .people import Service, in_order, labeling, ranking_task

MARKUP = '<script>alert("x")</script><b>&amp;\u202e\U0001f600'


def label_of(service: Service) -> dict[str, Any]:
    (row,) = service.export()
    return json.loads(row.row_json)["labels"][0]


def draft(draft_id: str, base: str = "", **content: Any) -> dict[str, Any]:
    return {"draft_id": draft_id, "base_draft_id": base, "content": content}


def test_a_label_is_kept_by_answer_whatever_the_order_on_the_page(either: Service) -> None:
    either.project(wants_ratings=True, held_out_group="")
    either.add(ranking_task(0))
    ann = either.person("ann", group="heldout")
    given = ann.next("p")
    places = [given["answers"].index(f"answer {index} to 0") for index in range(4)]
    label = {
        "ranking": [[places[2]], [places[0], places[3]], [places[1]]],
        "ratings": [[5, 1, 7, 4][int(text.split()[1])] for text in given["answers"]],
        "flags": [{"hallucination": "answer 1" in text} for text in given["answers"]],
    }
    answer = ann.post(f"assignments/{given['id']}/submit", {"submission_id": "s", "label": label, "active_ms": 1500})
    assert answer.status_code == 200
    ordered = label | {"ranking": [sorted(group) for group in label["ranking"]]}
    assert answer.json()["label"] == ordered  # read back, it is as it was sent
    kept = label_of(either)
    assert (kept["labeler"], kept["group"], kept["active_seconds"]) == ("ann", "heldout", 1.5)
    assert kept["ranking"] == [[2], [0, 3], [1]]
    assert kept["ratings"] == [5, 1, 7, 4]
    assert [flags["hallucination"] for flags in kept["flags"]] == [False, True, False, False]
    assert 0 < kept["seconds"] < 60


def test_a_submission_sent_again_is_taken_once(either: Service) -> None:
    either.project()
    either.add(ranking_task(0))
    ann = either.person("ann")
    given = ann.next("p")
    first, again = (ann.submit(given, in_order(given), "s") for _ in range(2))
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["label"] == again.json()["label"]
    assert [row.sequence for row in either.export()] == [1]
    events = either.program.list_audit_events(pb.ListAuditEventsRequest(page_size=1000)).events
    assert [event.action for event in events].count("label.submit") == 1


def test_two_tabs_on_one_task_make_one_label(service: Service) -> None:
    service.project()
    service.add(ranking_task(0))
    ann = service.person("ann")
    given = ann.next("p")
    other = in_order(given)
    other["ranking"].reverse()
    assert ann.submit(given, in_order(given), "tab-1").status_code == 200
    refused = ann.submit(given, other, "tab-2")
    assert refused.status_code == 409 and "submitted already" in refused.json()["message"]
    late = ann.send("PUT", f"assignments/{given['id']}/draft", draft("d"))
    assert late.status_code == 409 and "submitted already" in late.json()["message"]
    assert label_of(service)["ranking"] == [[0], [1], [2], [3]]


def test_drafts_replace_what_they_were_made_from_and_nothing_else(either: Service) -> None:
    either.project()
    either.add(ranking_task(0))
    ann = either.person("ann")
    path = f"assignments/{ann.next('p')['id']}"

    def save(body: dict[str, Any]) -> Any:
        return ann.send("PUT", f"{path}/draft", body)

    assert save(draft("a", text="1")).status_code == 200
    assert save(draft("b", "a", text="2")).status_code == 200
    assert save(draft("b", "a", text="2")).status_code == 200  # its answer was lost, so it is sent again
    conflict = save(draft("c", "a", text="of another tab"))
    assert conflict.status_code == 409
    assert (conflict.json()["reason"], conflict.json()["limit"]) == ("VERSION_CONFLICT", "b")
    assert ann.get(path).json()["draft"] == {"draft_id": "b", "content": {"text": "2"}}
    assert save(draft("c", "b", text="of another tab, knowingly")).status_code == 200
    assert ann.next("p")["draft"]["draft_id"] == "c"


def test_the_last_label_can_be_taken_back(either: Service) -> None:
    either.project()
    either.add(ranking_task(0), ranking_task(1))
    ann = either.person("ann")
    first = ann.next("p")
    ann.submit(first, in_order(first))
    second = ann.next("p")
    ann.submit(second, in_order(second))
    refused = ann.post(f"assignments/{first['id']}/undo")
    assert refused.status_code == 409 and "only the last" in refused.json()["message"]
    for _ in range(2):  # sent again, it does not take back a second one
        undone = ann.post(f"assignments/{second['id']}/undo").json()
        assert undone["state"] == "leased" and undone["draft"]["content"]["label"]["ranking"]
    assert [row.task_key for row in either.export()] == ["task-0"]
    assert ann.next("p")["id"] == second["id"]
    ann.submit(second, in_order(second))
    assert [(row.task_key, row.sequence) for row in either.export()] == [("task-0", 1), ("task-1", 3)]
    events = either.program.list_audit_events(pb.ListAuditEventsRequest(page_size=1000)).events
    (taken_back,) = [event for event in events if event.action == "label.undo"]
    assert json.loads(taken_back.detail_json)["label"]["ranking"] == [[0], [1], [2], [3]]


def test_a_skip_can_be_taken_back_and_nothing_once_its_time_is_over(service: Service) -> None:
    service.project()
    service.add(ranking_task(0))
    ann = service.person("ann")
    given = ann.next("p")
    ann.post(f"assignments/{given['id']}/skip", {"submission_id": "s", "reason": "hard"})
    assert ann.post(f"assignments/{given['id']}/undo").json()["state"] == "leased"
    ann.submit(given, in_order(given))
    service.program.update_project(pb.UpdateProjectRequest(name="p", undo_ms=0))
    refused = ann.post(f"assignments/{given['id']}/undo")
    assert refused.status_code == 409 and "can be taken back for 0 s" in refused.json()["message"]


def test_a_skip_that_is_taken_back_brings_the_draft_back(either: Service) -> None:
    either.project()
    either.add(ranking_task(0))
    ann = either.person("ann")
    path = f"assignments/{ann.next('p')['id']}"
    ann.send("PUT", f"{path}/draft", draft("d", text="an hour of work"))
    ann.post(f"{path}/skip", {"submission_id": "s", "reason": "by mistake"})
    assert ann.post(f"{path}/undo").json()["draft"] == {"draft_id": "d", "content": {"text": "an hour of work"}}
    assert ann.send("PUT", f"{path}/draft", draft("e", "d", text="and more")).status_code == 200


def test_a_skip_is_not_taken_back_once_others_took_the_task(either: Service) -> None:
    either.project()
    either.add(ranking_task(0))
    ann, bob = either.person("ann"), either.person("bob")
    given = ann.next("p")
    ann.post(f"assignments/{given['id']}/skip", {"submission_id": "s", "reason": "hard"})
    other = bob.next("p")
    for _ in range(2):  # while bob works on it, and once he has finished it
        refused = ann.post(f"assignments/{given['id']}/undo")
        assert (refused.status_code, refused.json()["reason"]) == (409, "LEASE_LOST"), refused.text
        bob.submit(other, in_order(other))
    assert ann.get(f"assignments/{given['id']}").json()["state"] == "skipped"
    assert [label_of(either)["labeler"]] == ["bob"]


def test_a_label_that_comes_back_as_the_draft_has_the_time_that_it_took(either: Service) -> None:
    either.project(lease_ms=1000)
    either.add(ranking_task(0))
    ann, bob = either.person("ann"), either.person("bob")
    given = ann.next("p")
    sent = {"submission_id": "s", "label": in_order(given), "active_ms": 61_000}
    ann.post(f"assignments/{given['id']}/submit", sent)
    undone = ann.post(f"assignments/{given['id']}/undo").json()
    assert undone["draft"]["content"]["active_ms"] == 61_000
    time.sleep(1.1)
    other = bob.next("p")
    bob.submit(other, in_order(other))
    assert ann.post(f"assignments/{given['id']}/submit", sent).json()["reason"] == "LEASE_LOST"
    kept = ann.get(f"assignments/{given['id']}").json()["draft"]["content"]
    assert kept == {"label": in_order(given), "active_ms": 61_000}


def test_a_label_keeps_the_group_that_its_labeler_had(either: Service) -> None:
    either.project(held_out_group="")
    either.add(ranking_task(0), ranking_task(1))
    ann, root = either.person("ann", group="heldout"), either.person("root", pb.ACCOUNT_ROLE_ADMIN)
    for group in ("heldout", "training"):
        root.post("accounts/ann", {"group": group})
        given = ann.next("p")
        ann.submit(given, in_order(given))
    rows = [json.loads(row.row_json) for row in either.export()]
    assert [row["labels"][0]["group"] for row in rows] == ["heldout", "training"]
    assert [row.task_key for row in either.export(groups=["heldout"])] == ["task-0"]
    assert [one["group"] for one in root.get("projects/p/labels").json()["labels"]] == ["heldout", "training"]
    given = ann.post(f"assignments/{given['id']}/undo").json()
    root.post("accounts/ann", {"group": "heldout"})
    ann.submit(given, in_order(given))
    assert len(either.export(groups=["heldout"])) == 2  # a label that is sent again is one of the group of now


def test_demonstrations_with_and_without_a_prompt(either: Service) -> None:
    either.project(kind=pb.TASK_KIND_DEMONSTRATE)
    either.add(
        pb.LabelTask(task_key="a", prompt="Say hello.", category="chat"),
        pb.LabelTask(task_key="b", category="brainstorming"),
    )
    ann = either.person("ann")
    for _ in range(2):
        given = ann.next("p")
        label = {"completion": MARKUP} | ({"prompt": "What is 2 + 2?"} if given["writes_prompt"] else {})
        assert ann.submit(given, label).status_code == 200
    rows = [json.loads(row.row_json) for row in either.export()]
    assert [(row["prompt"], row["completion"], row["category"], row["labeler"]) for row in rows] == [
        ("Say hello.", MARKUP, "chat", "ann"),
        ("What is 2 + 2?", MARKUP, "brainstorming", "ann"),
    ]


def test_comparisons_are_blind_and_know_their_sources_afterwards(service: Service) -> None:
    service.project(kind=pb.TASK_KIND_COMPARE)
    sources = [pb.AnswerSource(model="sft", version=3), pb.AnswerSource(model="ppo", version=9, temperature=0.5)]
    service.add(pb.LabelTask(prompt="Q?", answers=["one", "two"], sources=sources, user="u7"))
    ann = service.person("ann")
    given = ann.next("p")
    assert not any(secret in json.dumps(given) for secret in ("sft", "ppo", "sources", "u7"))
    assert ann.submit(given, {"ranking": [[0, 1]]}).status_code == 200
    (row,) = (json.loads(row.row_json) for row in service.export())
    assert [source["model"] for source in row["sources"]] == ["sft", "ppo"]
    assert row["labels"][0]["ranking"] == [[0, 1]]


WRONG_LABELS = [
    ({"ranking": [[0], [1], [2]]}, "label.ranking"),
    ({"ranking": [[0], [1], [2], [2]]}, "label.ranking"),
    ({"ranking": [[0], [], [1], [2], [3]]}, "label.ranking"),
    ({"ranking": [[0, 1, 2, 4]]}, "label.ranking"),
    ({"ranking": [[0, 1, 2, 3]], "ratings": [1, 2, 3]}, "label.ratings"),
    ({"ranking": [[0, 1, 2, 3]], "ratings": [1, 2, 3, 8]}, "label.ratings[3]"),
    ({"ranking": [[0, 1, 2, 3]], "flags": [{"nice": True}, {}, {}, {}]}, "label.flags[0].nice"),
    ({"ranking": [[0, 1, 2, 3]], "chosen": 1}, "label.chosen"),
    ({}, "label.ranking"),
]


@pytest.mark.parametrize(("label", "field"), WRONG_LABELS)
def test_a_wrong_label_is_refused_by_field_and_can_be_mended(service: Service, label: Any, field: str) -> None:
    service.project()
    service.add(ranking_task(0))
    ann = service.person("ann")
    given = ann.next("p")
    refused = ann.submit(given, label, "s")
    assert (refused.status_code, refused.json()["field"]) == (400, field), refused.text
    assert ann.submit(given, in_order(given), "s").status_code == 200


def test_ratings_are_asked_for_where_the_project_wants_them(service: Service) -> None:
    service.project(wants_ratings=True)
    service.add(ranking_task(0))
    ann = service.person("ann")
    given = ann.next("p")
    refused = ann.submit(given, in_order(given))
    assert (refused.status_code, refused.json()["field"]) == (400, "label.ratings")


def test_texts_that_are_too_long_or_no_text_are_refused_with_the_limit(service: Service) -> None:
    service.project(kind=pb.TASK_KIND_DEMONSTRATE)
    service.add(pb.LabelTask(prompt="Q?"))
    ann = service.person("ann")
    given = ann.next("p")
    for text, words in (
        ("x" * 1024 * 1024, "label.completion: 1048576 characters; allowed: 100000"),
        (" \n", "label.completion: must not be empty"),
        ("a\0b", "U+0000"),
    ):
        refused = ann.submit(given, {"completion": text})
        assert refused.status_code == 400 and words in refused.json()["message"], refused.text
    half = ann._http.post(
        f"assignments/{given['id']}/submit",
        content=b'{"submission_id": "s", "label": {"completion": "\\ud800"}}',
        headers={"x-csrf-token": ann.csrf, "content-type": "application/json"},
    )
    latin = ann._http.post(
        f"assignments/{given['id']}/submit",
        content='{"submission_id": "s", "label": {"completion": "h\u00e9"}}'.encode("latin-1"),
        headers={"x-csrf-token": ann.csrf, "content-type": "application/json"},
    )
    assert (half.status_code, latin.status_code) == (400, 400)
    assert "not JSON in UTF-8" in latin.json()["message"]
    known = ""
    for letter in ("\U0001f600", "\x01"):  # what a label may have, a draft may have, too
        label = dict.fromkeys(("completion", "prompt"), letter * 100_000)
        kept = ann.send("PUT", f"assignments/{given['id']}/draft", draft(f"d{ord(letter)}", known, label=label))
        assert kept.status_code == 200, kept.text
        known = f"d{ord(letter)}"
    large = ann.send("PUT", f"assignments/{given['id']}/draft", draft("d", known, text="x" * 1_300_000))
    assert large.status_code == 400 and large.json()["limit"] == "1204096"
    longest = ann.submit(given, {"completion": "x" * 100_000})
    assert longest.status_code == 200


def test_drafts_that_could_not_hold_every_label_are_refused_at_the_start() -> None:
    assert LabelingServiceConfig(max_answer_characters=1_000_000).max_draft_bytes == 12_004_096
    with pytest.raises(ValueError, match="max_draft_bytes: 1048576 is too small .* allowed: at least 12004096"):
        LabelingServiceConfig(max_answer_characters=1_000_000, max_draft_bytes=1024 * 1024)


def test_requests_that_could_not_hold_every_draft_are_refused_at_the_start() -> None:
    assert LabelingServiceConfig(max_request_bytes=1_208_192).max_draft_bytes == 1_204_096
    with pytest.raises(ValueError, match="max_request_bytes: 1208191 is too small .* allowed: at least 1208192"):
        LabelingServiceConfig(max_request_bytes=1_208_191)


def test_what_is_kept_survives_a_restart(database: str) -> None:
    with labeling(database) as before:
        before.project()
        before.add(ranking_task(0), ranking_task(1))
        ann = before.person("ann")
        given = ann.next("p")
        ann.send("PUT", f"assignments/{given['id']}/draft", draft("d", text="half"))
        cookies = dict(ann._http.cookies)
        csrf = ann.csrf
    with labeling(database) as after:
        with httpx.Client(base_url=f"{after.url}/labeling/api/", cookies=cookies, trust_env=False) as page:
            again = page.post("projects/p/next", json={}, headers={"x-csrf-token": csrf}).json()["assignment"]
        assert (again["id"], again["answers"]) == (given["id"], given["answers"])
        assert again["draft"]["content"] == {"text": "half"}
