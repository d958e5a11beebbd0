"""`/v1`, `/get_reward` and `/openapi.json` of a real server: equal to the gRPC calls, and as strict."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest

from running import RunningServer, client, running
from trimtab.types import ChatMessage, RankRequest, ScoreItem, ScoreRequest, TruncationSide
from trimtab_models.tokenizer import load_tokenizer

CHAT = [{"role": "user", "content": "the dog"}, {"role": "assistant", "content": "sleeps"}]
ITEMS: list[dict[str, Any]] = [
    {"item_id": "a", "prompt": "say something", "completion": "helpful"},
    {"item_id": "b", "prompt": [5, 6, 7], "completion": [8, 9]},
    {"item_id": "c", "prompt": CHAT[:1], "completion": "sleeps"},
    {"item_id": "d", "messages": CHAT},
    {"item_id": "e", "token_ids": [1, 2, 3, 4]},
    {"token_ids": [7]},
]
RECORDS = (
    ScoreItem(item_id="a", prompt="say something", completion="helpful"),
    ScoreItem(item_id="b", prompt=(5, 6, 7), completion=(8, 9)),
    ScoreItem(item_id="c", prompt=(ChatMessage(role="user", content="the dog"),), completion="sleeps"),
    ScoreItem(item_id="d", messages=tuple(ChatMessage(**turn) for turn in CHAT)),
    ScoreItem(item_id="e", token_ids=(1, 2, 3, 4)),
    ScoreItem(token_ids=(7,)),
)


def http_of(server: RunningServer, **options: Any) -> httpx.Client:
    runtime = server.server.runtime
    return httpx.Client(base_url=f"http://{runtime.address(runtime.ports.http)}", timeout=30, **options)


@pytest.fixture(scope="module")
def served(reward_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    code = tmp_path_factory.mktemp("functions")
    (code / "lengths.py").write_text(
        "def length(prompts, completions):\n    return [len(c) / 10 for c in completions]\n"
    )
    models = {
        "length": {"kind": "function", "function": "lengths:length", "directory": str(code)},
        "both": {"kind": "ensemble", "members": ["reward", "reward-2"]},
        "reward-2": {"kind": "model", "model_folder": str(reward_folder)},
        "broken": {"kind": "formula", "formula": "exp(1000 * (1 + abs(reward)))"},
    }
    settings = {
        "models": models,
        "max_items_per_request": 8,
        "deterministic": True,
    }  # so bit-equal
    with running("reward", model_folder=reward_folder, **settings) as server:
        yield server


@pytest.fixture(scope="module")
def http(served: RunningServer) -> Iterator[httpx.Client]:
    with http_of(served) as session:
        yield session


def refused(http: httpx.Client, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_every_form_scores_as_over_grpc(served: RunningServer, http: httpx.Client) -> None:
    with client(served) as grpc:
        expected = grpc.score(ScoreRequest(items=RECORDS))
    answer = http.post("/v1/score", json={"items": ITEMS, "request_id": "r", "version": {"exactly": 0}}).json()
    assert [score["reward"] for score in answer["scores"]] == [score.reward for score in expected.scores]
    assert [score["item_id"] for score in answer["scores"]] == ["a", "b", "c", "d", "e", ""]
    assert [score["token_count"] for score in answer["scores"]] == [score.token_count for score in expected.scores]
    assert answer["scores"][2]["reward"] == answer["scores"][3]["reward"]  # one conversation, told in two ways
    assert answer["served"]["tokenizer_digest"] == expected.served.tokenizer_digest
    assert answer["timing"]["compute_ms"] > 0 and set(answer) == {"scores", "served", "timing"}


def test_rank_orders_as_over_grpc(served: RunningServer, http: httpx.Client) -> None:
    answers = ["no", "It sleeps, twice.", "perhaps"]
    with client(served) as grpc:
        expected = grpc.rank(RankRequest(prompt="the dog", answers=tuple(answers)))
    answer = http.post("/v1/rank", json={"prompt": "the dog", "answers": answers}).json()
    assert answer["order"] == list(expected.order) and sorted(answer["order"]) == [0, 1, 2]
    np.testing.assert_array_equal(
        np.array(answer["pairwise_probabilities"], np.float32), expected.pairwise_probabilities
    )


def test_truncation_says_what_was_cut(served: RunningServer, http: httpx.Client) -> None:
    long = {"prompt": "a ship", "completion": "quick " * 200}
    error = refused(http, "/v1/score", {"items": [ITEMS[0], long]})
    assert (error["reason"], error["field"], error["limit"]) == ("SEQUENCE_TOO_LONG", "items[1].token_ids", "256")
    with client(served) as grpc:
        item = ScoreItem(prompt="a ship", completion="quick " * 200)
        expected = grpc.score(ScoreRequest(items=(item,), truncation=TruncationSide.LEFT)).scores[0]
    score = http.post("/v1/score", json={"items": [long], "truncation": "LEFT"}).json()["scores"][0]
    assert score["reward"] == expected.reward
    assert (score["token_count"], score["truncated_token_count"]) == (256, expected.truncated_token_count)
    assert score["truncated_token_count"] > 0


LONGEST = 256 * 64
LONGEST_CUT = 256 * 1024
SECOND = "quick brown " * (LONGEST_CUT // 12)
"""Takes a good part of one to cut into tokens."""


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"prompt": "x", "completion": "y" * (LONGEST + 1)}, "completion"),
        ({"prompt": "x" * (LONGEST + 1), "completion": "y"}, "prompt"),
        ({"messages": [*CHAT[:1], {"role": "assistant", "content": "y" * LONGEST}]}, "messages"),
    ],
)
def test_a_text_that_is_far_too_long_is_not_even_read(http: httpx.Client, item: dict[str, Any], field: str) -> None:
    error = refused(http, "/v1/score", {"items": [ITEMS[0], item]})
    assert (error["reason"], error["field"], error["limit"]) == ("SEQUENCE_TOO_LONG", f"items[1].{field}", str(LONGEST))
    assert "characters" in error["message"] and int(error["value"]) > LONGEST
    score = http.post("/v1/score", json={"items": [item], "truncation": "RIGHT"}).json()["scores"][0]
    assert score["token_count"] == 256 and score["truncated_token_count"] > 0


def test_what_may_be_cut_is_bounded_too(http: httpx.Client) -> None:
    item = {"prompt": "x", "completion": "y" * (LONGEST_CUT + 1)}
    for side in ("LEFT", "RIGHT"):
        error = refused(http, "/v1/score", {"items": [item], "truncation": side})
        assert (error["field"], error["limit"]) == ("items[0].completion", str(LONGEST_CUT))
    error = refused(http, "/get_reward", {"query": ["x", item["completion"]], "truncation": "LEFT"})
    assert (error["reason"], error["field"], error["limit"]) == ("SEQUENCE_TOO_LONG", "query[1]", str(LONGEST_CUT))


@contextmanager
def posting(served: RunningServer, path: str, body: dict[str, Any]) -> Iterator[threading.Thread]:
    """A request under way, in a thread that ends with its answer."""

    def post() -> None:
        with http_of(served) as http:
            http.post(path, json=body, timeout=120)

    thread = threading.Thread(target=post)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(120)


LARGE: list[tuple[str, dict[str, Any]]] = [
    ("/v1/score", {"items": [{"prompt": "x", "completion": SECOND}] * 8, "truncation": "LEFT"}),
    ("/get_reward", {"query": [SECOND] * 8, "truncation": "LEFT"}),
]


@pytest.mark.parametrize(("path", "body"), LARGE)
def test_large_texts_keep_nobody_waiting(
    served: RunningServer, http: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    with posting(served, path, body) as large:
        waits = []
        while large.is_alive():
            began = time.monotonic()
            assert http.get("/health").status_code == 200
            waits.append(time.monotonic() - began)
    assert len(waits) > 10 and max(waits) < 1.0  # all of it takes several seconds to read


def test_control_tokens_stay_text_while_others_read(served: RunningServer, http: httpx.Client) -> None:
    """One tokenizer reads for all, once with control tokens and once without."""
    spelled = {"items": [{"prompt": "<|user|>x<|end|>", "completion": "y<|end|>"}]}
    rendered = {"query": ["<|user|>x<|end|><|assistant|>y<|end|>"]}

    def ask() -> tuple[float, float]:
        text = http.post("/v1/score", json=spelled, timeout=120).json()["scores"][0]["reward"]
        return text, http.post("/get_reward", json=rendered, timeout=120).json()["rewards"][0]

    alone = ask()
    with posting(served, *LARGE[0]), posting(served, *LARGE[1]):
        assert [ask() for _ in range(5)] == [alone] * 5
    assert ask() == alone


def test_errors_of_items_are_told_where_much_text_is_read(http: httpx.Client) -> None:
    good, long = {"prompt": "x", "completion": "sleeps " * 20}, {"prompt": "x", "completion": "y" * LONGEST}
    body = {"items": [good, long, {"token_ids": [99_999]}, good], "per_item_errors": True}
    first, second, third, last = http.post("/v1/score", json=body).json()["scores"]
    assert first["error"] is None and first["token_count"] > 0
    assert (last["reward"], last["token_count"]) == (first["reward"], first["token_count"])
    assert (second["error"]["reason"], second["error"]["field"]) == ("SEQUENCE_TOO_LONG", "items[1].token_ids")
    assert third["error"]["field"] == "items[2].token_ids[0]"


def test_a_bad_item_is_told_and_the_others_are_scored(http: httpx.Client) -> None:
    body = {"items": [ITEMS[0], {"token_ids": [99_999]}], "per_item_errors": True}
    good, bad = http.post("/v1/score", json=body).json()["scores"]
    assert good["error"] is None and good["token_count"] > 0
    assert (bad["error"]["reason"], bad["error"]["field"]) == ("TOKEN_ID_OUT_OF_RANGE", "items[1].token_ids[0]")


def test_a_combined_model_tells_its_parts(http: httpx.Client) -> None:
    score = http.post("/v1/score", json={"items": ITEMS[:1], "model": "both"}).json()["scores"][0]
    assert set(score["parts"]) == {"reward", "reward-2"} and score["spread"] == 0
    assert score["reward"] == score["parts"]["reward"]


def test_a_score_that_is_not_finite_is_an_error_with_its_reason(http: httpx.Client) -> None:
    error = refused(http, "/v1/score", {"items": ITEMS[:1], "model": "broken"}, 500)
    assert error["reason"] == "NOT_FINITE"


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        ({}, "items", "FIELD_MISSING"),
        ({"items": []}, "items", "FIELD_INVALID"),
        ({"items": {}}, "items", "FIELD_INVALID"),
        ({"items": [{"token_ids": [1]}] * 9}, "items", "TOO_MANY_ITEMS"),
        ({"items": [{"prompt": "x"}]}, "items[0].input", "FIELD_MISSING"),
        ({"items": [{"token_ids": [1]}, {"prompt": 3, "completion": "x"}]}, "items[1].prompt", "FIELD_INVALID"),
        ({"items": [{"prompt": "", "completion": "x"}]}, "items[0].prompt", "FIELD_INVALID"),
        ({"items": [{"prompt": "x", "completion": ""}]}, "items[0].completion", "FIELD_INVALID"),
        ({"items": [{"prompt": "x", "completion": [1, "2"]}]}, "items[0].completion[1]", "FIELD_INVALID"),
        ({"items": [{"token_ids": [True]}]}, "items[0].token_ids[0]", "FIELD_INVALID"),
        ({"items": [{"token_ids": [-1]}]}, "items[0].token_ids[0]", "FIELD_INVALID"),
        ({"items": [{"token_ids": [1.0]}]}, "items[0].token_ids[0]", "FIELD_INVALID"),
        ({"items": [{"messages": CHAT[:1] * 2}]}, "items[0].messages", "FIELD_INVALID"),
        ({"items": [{"messages": CHAT[1:]}]}, "items[0].messages", "FIELD_INVALID"),
        ({"items": [{"messages": [*CHAT[:1], {"role": "bot", "content": "x"}]}]}, "items[0].messages[1].role", ""),
        ({"items": [{"prompt": [CHAT[0], {"role": "user"}], "completion": "x"}]}, "items[0].prompt[1].content", ""),
        ({"items": [{"token_ids": [1], "weight": 2}]}, "items[0].weight", "FIELD_INVALID"),
        ({"items": [{"token_ids": [1]}], "modle": "x"}, "modle", "FIELD_INVALID"),
        ({"items": [{"token_ids": [1], "item_id": "x"}] * 2}, "items[1].item_id", "DUPLICATE_ID"),
        ({"items": [{"token_ids": [1]}], "truncation": "MIDDLE"}, "truncation", "FIELD_INVALID"),
        ({"items": [{"token_ids": [1]}], "version": {"exactly": 1, "at_least": 1}}, "version.at_least", ""),
    ],
)
def test_what_is_wrong_is_named_by_its_path(http: httpx.Client, body: Any, field: str, reason: str) -> None:
    error = refused(http, "/v1/score", body)
    assert error["field"] == field and error["message"].startswith(f"{field}: ")
    assert error["reason"] == (reason or error["reason"])


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"items": ITEMS[:1], "model": "nobody"}, 404, "NOT_FOUND"),
        ({"items": ITEMS[:1], "version": {"at_least": 3}}, 409, "VERSION_UNAVAILABLE"),
    ],
)
def test_statuses_are_those_of_the_grpc_codes(http: httpx.Client, body: Any, status: int, reason: str) -> None:
    assert refused(http, "/v1/score", body, status)["reason"] == reason


def test_models_are_listed_with_the_default_first(http: httpx.Client) -> None:
    models = http.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["reward", "length", "both", "reward-2", "broken"]
    assert [model["is_default"] for model in models] == [True, False, False, False, False]
    assert models[0]["max_sequence_tokens"] == 256 and models[0]["architecture"] == "LlamaForSequenceClassification"


def test_openrlhf_reads_control_tokens_and_nobody_else_does(
    served: RunningServer, http: httpx.Client, reward_folder: Path
) -> None:
    query = ["<|user|>the dog<|end|><|assistant|>sleeps<|end|>", "<|user|>a ship<|end|><|assistant|>unfinished"]
    tokenizer = load_tokenizer(reward_folder)
    token_ids = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in query]
    with client(served) as grpc:
        expected = grpc.score(ScoreRequest(items=tuple(ScoreItem(token_ids=ids) for ids in token_ids)))
        conversation = grpc.score(ScoreRequest(items=(RECORDS[3],)))
    rewards = [score.reward for score in expected.scores]
    answer = http.post("/get_reward", json={"query": query, "prompts": ["the dog", "a ship"], "labels": [None, "x"]})
    assert answer.json() == {"rewards": rewards, "scores": rewards, "extra_logs": {}}
    assert rewards[0] == conversation.scores[0].reward  # the text is that conversation, rendered
    as_text = http.post("/v1/score", json={"items": [{"prompt": query[0], "completion": "x"}]}).json()["scores"][0]
    assert as_text["token_count"] > len(token_ids[0]) + 20  # the control tokens were spelled out, letter by letter


def test_openrlhf_refuses_what_is_too_long_unless_told_which_end_may_go(http: httpx.Client) -> None:
    query = ["short", "quick " * 300]
    error = refused(http, "/get_reward", {"query": query})
    assert (error["field"], error["reason"], error["limit"]) == ("query[1]", "SEQUENCE_TOO_LONG", "256")
    rewards = http.post("/get_reward", json={"query": query, "truncation": "LEFT"}).json()["rewards"]
    assert len(rewards) == 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"query": "text"}, "query"),
        ({"query": [""]}, "query[0]"),
        ({"query": ["x"], "prompts": ["x", "y"]}, "prompts"),
        ({"query": ["x"], "labels": []}, "labels"),
        ({"query": ["x"] * 9}, "query"),
        ({"query": ["x", "y"], "model": "length"}, "query[0]"),
        ({"query": ["x"], "reference": ["x"]}, "reference"),
    ],
)
def test_openrlhf_bodies_are_checked(http: httpx.Client, body: Any, field: str) -> None:
    assert refused(http, "/get_reward", body)["field"] == field


def test_the_document_is_the_schema_that_requests_are_parsed_by(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    schema = {"$ref": "#/components/schemas/ScoreBody", "components": document["components"]}
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate({"items": ITEMS, "version": {"exactly": 0}})
    for wrong in ({}, {"items": []}, {"items": [{"token_ids": ["1"]}]}, {"items": ITEMS, "modle": ""}):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(wrong)
        assert http.post("/v1/score", json=wrong).status_code == 400
    answer = http.post("/v1/score", json={"items": ITEMS}).json()
    jsonschema.validate(answer, {"$ref": "#/components/schemas/ScoreAnswer", "components": document["components"]})
    assert set(document["paths"]) == {
        "/v1/score",
        "/v1/rank",
        "/v1/models",
        "/get_reward",
        "/v2/models/{model}/infer",
    }


def test_tokens_and_scopes_hold_for_every_route(reward_folder: Path, tmp_path: Path) -> None:
    tokens = {
        "good": {"name": "trainer", "scopes": ["score"]},
        "other": {"name": "dashboard", "scopes": ["runs"]},
    }
    (tmp_path / "tokens").write_text(json.dumps(tokens))
    inputs = [{"name": "token_ids", "datatype": "INT32", "shape": [1, 1], "data": [5]}]
    bodies = {
        "/v1/score": {"items": [{"token_ids": [5]}]},
        "/v1/rank": {"prompt": "x", "answers": ["y", "z"]},
        "/get_reward": {"query": ["x"]},
        "/v2/models/reward/infer": {"inputs": inputs},
    }
    with (
        running("reward", model_folder=reward_folder, tokens_file=tmp_path / "tokens") as server,
        http_of(server) as http,
    ):
        for path, body in bodies.items():
            statuses = [
                http.post(path, json=body, headers={"authorization": f"Bearer {token}"}).status_code
                for token in ("good", "other", "unknown")
            ]
            assert statuses == [200, 403, 401], path
        for path in ("/v1/models", "/openapi.json", "/v2", "/v2/health/live", "/v2/models/reward"):
            assert http.get(path).status_code == 401
            assert http.get(path, headers={"authorization": "Bearer other"}).status_code == 200


def test_a_front_is_counted_like_every_call(served: RunningServer, http: httpx.Client) -> None:
    refused(http, "/v1/rank", {"prompt": "x"})
    metrics = httpx.get(served.metrics_url, timeout=10).text
    assert any("POST /v1/rank" in line and "INVALID_ARGUMENT" in line for line in metrics.splitlines())
