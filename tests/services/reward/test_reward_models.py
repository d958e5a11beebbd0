"""Reward models of every kind behind one real server: by name, equal to their libraries, and apart from each other."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from processes import serving
from running import FREE_PORTS, RunningServer, client, running
from tiny_models import make_tokenizer
from trimtab import Client
from trimtab.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    Overloaded,
    Reason,
    TrimtabError,
    Unavailable,
    VersionUnavailable,
)
from trimtab.types import (
    ChatMessage,
    RankRequest,
    ScoreItem,
    ScoreRequest,
    ServiceState,
    TruncationSide,
    VersionRequirement,
)
from trimtab_models.loading import reward_model_from_policy, save_model
from trimtab_models.tokenizer import encode_completion, encode_prompt, load_tokenizer

PAIRS = (("say something", "helpful"), ("the dog", "It sleeps, twice."), ("a ship", "a rudder"), ("x", "y" * 40))
ITEMS = tuple(ScoreItem(prompt=prompt, completion=completion) for prompt, completion in PAIRS)

FUNCTIONS = """
import os, time

def length(prompts, completions):
    return [len(completion) / 10 for completion in completions]

def chat(prompts, completions):
    assert all(isinstance(message, dict) for prompt in prompts for message in prompt)
    return [float(len(prompt)) + len(completion[0]["content"]) for prompt, completion in zip(prompts, completions)]

def picky(prompts, completions):
    if any("rudder" in completion for completion in completions):
        raise ValueError("no rudders")
    return [1.0] * len(prompts)

def slow(prompts, completions):
    time.sleep(60)

def deadly(prompts, completions):
    os._exit(7)

def strange(prompts, completions):
    return ["one"] * len(prompts)

def infinite(prompts, completions):
    return [1e300] * len(prompts)

def each_hangs(prompts, completions):
    if len(prompts) > 1:
        raise ValueError("no")
    time.sleep(60)
"""

HEAVY = """
import time
time.sleep(1.5)

def hangs_on_request(prompts, completions):
    if "hang" in completions:
        time.sleep(60)
    return [1.0] * len(prompts)
"""


class Remote(ThreadingHTTPServer):
    """A reward server as others write them; `answer` is what it does with a request."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.status, self.delay_s = 200, 0.0
        self.padding, self.piece, self.pause_s = b"", 1 << 20, 0.0
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/get_reward"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server.asked.append(body)
        time.sleep(server.delay_s)
        content = json.dumps({"rewards": [float(len(query)) for query in body["query"]]}).encode() + server.padding
        self.send_response(server.status)
        self.end_headers()
        with suppress(OSError):
            for piece in (content[at : at + server.piece] for at in range(0, len(content), server.piece)):
                self.wfile.write(piece)
                time.sleep(server.pause_s)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> dict[str, Path]:
    """Three reward models with heads of their own."""
    tokenizer, directory = make_tokenizer(), tmp_path_factory.mktemp("rewards")
    for seed, name in enumerate("abc"):
        model = reward_model_from_policy(llama_folder, tokenizer=tokenizer, seed=seed)
        save_model(model, tokenizer, directory / name)
    return {name: directory / name for name in "abc"}


@pytest.fixture(scope="module")
def remote() -> Iterator[Remote]:
    server = Remote()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def server(
    folders: dict[str, Path], remote: Remote, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("functions")
    (directory / "my_rewards.py").write_text(FUNCTIONS)
    (directory / "heavy_rewards.py").write_text(HEAVY)

    def function(name: str, module: str = "my_rewards", **settings: Any) -> dict[str, Any]:
        return {"kind": "function", "function": f"{module}:{name}", "directory": str(directory), **settings}

    declared: dict[str, Any] = {
        **{name: {"kind": "model", "model_folder": str(folder)} for name, folder in folders.items()},
        "mean": {"kind": "ensemble", "members": ["a", "b", "c"]},
        "least": {"kind": "ensemble", "members": ["a", "b", "c"], "combine": "min"},
        "careful": {"kind": "ensemble", "members": ["a", "b", "c"], "combine": "mean_minus_std", "k": 0.5},
        "short": {"kind": "formula", "formula": "a - 0.01 * completion_tokens + max(length, 0.5)"},
        "count": {"kind": "formula", "formula": "0 * a + completion_tokens"},
        "broken": {"kind": "formula", "formula": "a / (completion_characters - 8)"},
        "length": function("length"),
        "chat": function("chat"),
        "picky": function("picky"),
        "slow": function("slow", timeout_s=0.5),
        "deadly": function("deadly"),
        "strange": function("strange"),
        "infinite": function("infinite"),
        "each_hangs": function("each_hangs", timeout_s=1.0),
        "heavy": function("hangs_on_request", "heavy_rewards", timeout_s=0.5),
        "remote": {"kind": "remote", "url": remote.url, "timeout_s": 1.0},
        "nobody": {"kind": "remote", "url": "http://127.0.0.1:9/get_reward"},
    }
    with running("reward", models=declared) as started:
        yield started


@pytest.fixture
def rewards(server: RunningServer) -> Iterator[Client]:
    with client(server) as connection:
        yield connection


def score(rewards: Client, model: str, *, items: tuple[ScoreItem, ...] = ITEMS, **options: Any) -> list[float]:
    return [one.reward for one in rewards.score(ScoreRequest(items=items, model=model, **options)).scores]


def test_models_have_names_and_the_first_is_the_default(rewards: Client, folders: dict[str, Path]) -> None:
    found = {name: score(rewards, name) for name in "abc"}
    assert score(rewards, "") == found["a"] != found["b"] != found["c"]
    info = {model.served.name: model for model in rewards.info().models}
    assert len(info) == 20 and info["b"].architecture == "LlamaForSequenceClassification"
    assert info["mean"].architecture == "ensemble: mean of a, b, c"
    with pytest.raises(NotFound, match="model: 'd' is not served; served are 'a', 'b'"):
        score(rewards, "d")


def test_ensembles_tell_their_spread_and_their_parts(rewards: Client) -> None:
    members = {name: score(rewards, name) for name in "abc"}
    of_item = list(zip(*members.values(), strict=True))
    means, spreads = [statistics.fmean(one) for one in of_item], [statistics.pstdev(one) for one in of_item]
    result = rewards.score(ScoreRequest(items=ITEMS, model="mean"))
    assert [one.reward for one in result.scores] == pytest.approx(means, abs=1e-6)
    assert [one.spread for one in result.scores] == pytest.approx(spreads, abs=1e-6)
    assert [one.parts for one in result.scores] == [dict(zip("abc", one, strict=True)) for one in of_item]
    assert result.served.name == "mean" and result.served.version == 0 and len(result.served.weights_digest) == 64
    assert score(rewards, "least") == pytest.approx([min(one) for one in of_item], abs=1e-6)
    careful = [mean - 0.5 * spread for mean, spread in zip(means, spreads, strict=True)]
    assert score(rewards, "careful") == pytest.approx(careful, abs=1e-6)
    with pytest.raises(VersionUnavailable, match="'mean' has no versions of its own"):
        score(rewards, "mean", version=VersionRequirement(exactly=3))


def test_a_formula_counts_tokens_and_asks_other_models(rewards: Client, folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(folders["a"])
    tokens = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for _, text in PAIRS]
    expected = [
        reward - 0.01 * count + max(len(text) / 10, 0.5)
        for reward, count, (_, text) in zip(score(rewards, "a"), tokens, PAIRS, strict=True)
    ]
    assert score(rewards, "short") == pytest.approx(expected, abs=1e-5)
    result = rewards.score(ScoreRequest(items=ITEMS, model="broken", per_item_errors=True))
    assert [one.error is None for one in result.scores] == [True, True, False, True]  # "a rudder" has 8 characters
    with pytest.raises(InternalError, match=r"items\[2\].formula: the formula .* has no value here: .*zero"):
        score(rewards, "broken")


def test_functions_are_called_as_trl_calls_them(rewards: Client) -> None:
    assert score(rewards, "length") == pytest.approx([len(text) / 10 for _, text in PAIRS])
    turns = (ChatMessage(role="system", content="s"), ChatMessage(role="user", content="u"))
    messages = (*turns, ChatMessage(role="assistant", content="four"))
    items = (ScoreItem(messages=messages), ScoreItem(prompt=turns, completion="two"))
    assert score(rewards, "chat", items=items) == [6.0, 5.0]
    with pytest.raises(InvalidRequest, match=r"items\[0\].input: 'length' reads text, not token ids"):
        score(rewards, "length", items=(ScoreItem(token_ids=(5, 6)),))


def test_what_a_function_does_wrong_stays_its_own(rewards: Client) -> None:
    result = rewards.score(ScoreRequest(items=ITEMS, model="picky", per_item_errors=True))
    assert [one.reward for one in result.scores] == [1.0, 1.0, 0.0, 1.0]
    assert result.scores[2].error is not None and "raised ValueError: no rudders" in result.scores[2].error.message
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="my_rewards:slow was not done within 0.5 s and was ended"):
        score(rewards, "slow")
    assert time.monotonic() - began < 5  # not once more for each item
    with pytest.raises(InternalError, match="the process of my_rewards:deadly died with exit code 7"):
        score(rewards, "deadly")
    with pytest.raises(InternalError, match="the reward is a str; it must be a number"):
        score(rewards, "strange")
    with pytest.raises(InternalError, match=r"the score is 1e\+300; scores must be finite"):
        score(rewards, "infinite")
    assert score(rewards, "length")[0] == pytest.approx(0.7) and score(rewards, "a") == score(rewards, "")


def test_a_function_that_was_ended_imports_again_within_the_time_of_imports(rewards: Client) -> None:
    assert score(rewards, "heavy") == [1.0] * len(PAIRS)
    with pytest.raises(DeadlineExceeded):
        score(rewards, "heavy", items=(ScoreItem(prompt="x", completion="hang"),))
    assert score(rewards, "heavy") == [1.0] * len(PAIRS)


def test_items_that_hang_one_by_one_do_not_hold_up_their_neighbours(rewards: Client) -> None:
    began = time.monotonic()
    result = rewards.score(ScoreRequest(items=2 * ITEMS, model="each_hangs", per_item_errors=True))
    assert all(isinstance(one.error, DeadlineExceeded) for one in result.scores)
    assert time.monotonic() - began < 5  # eight times a second, one after the other, before


def test_a_remote_reward_has_one_limit_for_all_of_its_answer(rewards: Client, remote: Remote) -> None:
    remote.piece, remote.pause_s = 1, 0.3
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="did not answer within 1 s"):
        score(rewards, "remote")
    assert time.monotonic() - began < 4
    remote.piece, remote.pause_s, remote.padding = 1 << 20, 0.0, b" " * (1 << 20)
    with pytest.raises(InternalError, match="answered more than 81920 bytes"):
        score(rewards, "remote")
    remote.padding, remote.status = b"", 404
    with pytest.raises(InternalError, match="answered 404"):
        score(rewards, "remote")
    remote.status = 422
    with pytest.raises(InvalidRequest, match="refused the items: 422"):
        score(rewards, "remote")
    remote.status = 200


@pytest.mark.parametrize("side", [TruncationSide.LEFT, TruncationSide.RIGHT])
def test_a_formula_counts_what_is_left_of_a_completion(
    side: TruncationSide, rewards: Client, folders: dict[str, Path]
) -> None:
    prompt, completion = "x" * 100, "y" * 200
    tokenizer = load_tokenizer(folders["a"])
    read = len(encode_completion(tokenizer, completion))
    left = read if side is TruncationSide.LEFT else 256 - len(encode_prompt(tokenizer, prompt))
    assert read < 256 and left <= read
    items = (ScoreItem(prompt=prompt, completion=completion),)
    assert score(rewards, "count", items=items, truncation=side) == [float(left)]


def test_a_formula_refuses_what_it_cannot_know(rewards: Client) -> None:
    result = rewards.score(
        ScoreRequest(items=(*ITEMS[:1], ScoreItem(token_ids=(5, 6, 7))), model="broken", per_item_errors=True)
    )
    assert result.scores[0].error is None and result.scores[1].error is not None
    assert "reads completion_characters, which is known of" in result.scores[1].error.message


def test_a_remote_reward_speaks_openrlhf(rewards: Client, remote: Remote) -> None:
    remote.asked.clear()
    assert score(rewards, "remote") == [float(len(prompt + completion)) for prompt, completion in PAIRS]
    assert remote.asked[0].keys() == {"query", "prompts", "labels"}
    remote.delay_s = 2.0
    with pytest.raises(DeadlineExceeded, match="did not answer within 1 s"):
        score(rewards, "remote")
    remote.delay_s, remote.status = 0.0, 503
    with pytest.raises(Unavailable, match="answered 503"):
        score(rewards, "remote")
    remote.status = 200
    with pytest.raises(Unavailable, match="cannot be reached"):
        score(rewards, "nobody")
    assert len(score(rewards, "remote")) == len(PAIRS)


def test_rank_works_with_every_kind(rewards: Client) -> None:
    result = rewards.rank(RankRequest(prompt="x", answers=("yy", "yyyy", "y"), model="length"))
    assert result.order == (1, 0, 2)


def test_an_ensemble_is_charged_once_and_other_code_by_characters(folders: dict[str, Path], remote: Remote) -> None:
    declared: dict[str, Any] = {name: {"kind": "model", "model_folder": str(folders[name])} for name in "ab"}
    declared["both"] = {"kind": "ensemble", "members": ["a", "b"]}
    declared["remote"] = {"kind": "remote", "url": remote.url}
    item = (ScoreItem(token_ids=(5,) * 13),)
    quota = {"tokens_per_s": 0.001, "burst_s": 20_000}
    with running("reward", models=declared, quota=quota) as server, client(server) as rewards:
        assert len(score(rewards, "both", items=item)) == 1
        with pytest.raises(Overloaded, match="quota of '127.0.0.1': 13 tokens now would be more") as refused:
            rewards.score(ScoreRequest(items=item, model="a"), timeout_s=2)
        assert refused.value.reason is Reason.QUOTA_EXCEEDED
        assert score(rewards, "remote", items=(ScoreItem(prompt="1234", completion="5678"),)) == [8.0]
        with pytest.raises(Overloaded, match="25 tokens now"):
            rewards.score(ScoreRequest(items=(ScoreItem(prompt="x" * 50, completion="y" * 50),), model="remote"))


def test_a_function_ends_with_its_service(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(
        "import os, pathlib, time\n"
        f"def f(prompts, completions):\n    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )
    declared = {"f": {"kind": "function", "function": "endless:f", "directory": str(tmp_path), "timeout_s": 600}}
    with serving("reward", tmp_path / "service", models=declared) as service, service.client() as rewards:
        until(lambda: rewards.info().state is ServiceState.SERVING)
        asking = threading.Thread(target=lambda: suppressed(lambda: score(rewards, "f")))
        asking.start()
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        pid = int((tmp_path / "pid").read_text())
        service.kill()
        until(lambda: not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text())
        asking.join()


def suppressed(work: Callable[[], object]) -> None:
    with suppress(TrimtabError):
        work()


def until(condition: Callable[[], bool], *, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_function_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    models_ = {"f": {"kind": "function", "function": "my_missing:f"}}
    file = tmp_path / "reward.yaml"
    file.write_text(yaml.safe_dump({**FREE_PORTS, "models": models_}))
    command = [sys.executable, "-m", "trimtab", "serve", "reward", "--config", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "models.f.function: my_missing:f" in ended.stderr and "No module named 'my_missing'" in ended.stderr
