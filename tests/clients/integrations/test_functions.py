"""The functions that other libraries call, in the way that those document, against a real reward service."""

from __future__ import annotations

import json
import math
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from running import running
from tiny_models import make_tokenizer
from trimtab import ChatMessage, Client, ScoreItem, ScoreRequest
from trimtab.errors import (
    ConfigError,
    DataError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    SequenceTooLong,
    VersionUnavailable,
)
from trimtab.integrations.openrlhf import reward_function as openrlhf_reward_function
from trimtab.integrations.rewards import RemoteRewards
from trimtab.integrations.trl import evaluate_preferences, reward_function
from trimtab.integrations.verl import compute_score, compute_score_batch
from trimtab.types import TruncationSide, VersionRequirement

EXAMPLES = Path(__file__).parents[3] / "examples"
PROMPTS = ["What is a trim tab?", "What does the dog do?", "Say something."]
COMPLETIONS = ["A small surface.", "It sleeps.", "Something helpful, honest and harmless."]
CONVERSATIONS = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}] for text in PROMPTS]
REPLIES = [[{"role": "assistant", "content": text, "tool_calls": None}] for text in COMPLETIONS]
TOO_LONG = "much too long " * 300
FORK = """
import os, sys
from trimtab.integrations.rewards import RemoteRewards

remote = RemoteRewards(sys.argv[1], timeout_s=20)
before = remote.of_pairs(["a"], ["b"], ["x"])
child = os.fork()
if child:
    os.waitpid(child, 0)
print("parent" if child else "child", remote.of_pairs(["a"], ["b"], ["x"]) == before, flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def address(reward_folder: Path) -> Iterator[str]:
    with running("reward", model_folder=reward_folder, deterministic=True) as server:
        yield server.target


def direct(address: str, *items: ScoreItem) -> list[float]:
    with Client(address, timeout_s=30) as client:
        return [one.reward for one in client.score(ScoreRequest(items=items)).scores]


def turns(messages: list[dict[str, Any]]) -> tuple[ChatMessage, ...]:
    return tuple(ChatMessage(**message) for message in messages)


def direct_pairs(address: str) -> list[float]:
    return direct(address, *(ScoreItem(prompt=p, completion=c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)))


def test_trl_rewards_of_texts_and_of_conversations(address: str) -> None:
    function = reward_function(address, name="helpfulness")
    assert function.__name__ == "helpfulness"
    # every column of the dataset, and what TRL adds of its own, comes as a keyword
    more: dict[str, Any] = {"completion_ids": [[1]] * 3, "trainer_state": object(), "label": ["x"] * 3}
    texts = function(prompts=PROMPTS, completions=COMPLETIONS, **more)
    assert texts == direct_pairs(address) and len(set(texts)) == 3
    talks = function(prompts=CONVERSATIONS, completions=REPLIES, **more)
    whole = [
        [*before, {"role": "assistant", "content": text}]
        for before, text in zip(CONVERSATIONS, COMPLETIONS, strict=True)
    ]
    assert talks == direct(address, *(ScoreItem(messages=turns(messages)) for messages in whole))
    assert talks != texts
    assert function([], []) == []


def test_many_are_sent_in_several_requests(address: str) -> None:
    rewards = reward_function(RemoteRewards(address, batch=2))(PROMPTS, COMPLETIONS)
    assert rewards == direct_pairs(address)


def test_what_cannot_be_scored_is_named(address: str) -> None:
    function = reward_function(RemoteRewards(address, batch=2))
    with pytest.raises(SequenceTooLong, match=r"^completions\[2\].*: \d+ tokens; allowed: 256"):
        function(PROMPTS, [*COMPLETIONS[:2], TOO_LONG])
    with pytest.raises(InvalidRequest, match=r"^completions\[1\]: it is empty.*empty_reward"):
        function(PROMPTS, [COMPLETIONS[0], "", COMPLETIONS[2]])
    with pytest.raises(InvalidRequest, match=r"^completions\[0\]\.role: .*'tool'"):
        function(CONVERSATIONS[:1], [[{"role": "tool", "content": "3"}, *REPLIES[0]]])
    with pytest.raises(InvalidRequest, match=r"^completions\[0\]\.tool_calls"):
        function(CONVERSATIONS[:1], [[{**REPLIES[0][0], "tool_calls": [{"name": "f"}]}]])
    with pytest.raises(InvalidRequest, match=r"^completions\[0\]\.prompt: .*both must be messages"):
        function(PROMPTS[:1], REPLIES[:1])


def test_the_terms_are_those_of_the_caller(address: str) -> None:
    cut = RemoteRewards(address, truncation=TruncationSide.LEFT, empty_reward=-7.5)
    rewards = reward_function(cut)(PROMPTS, [TOO_LONG, "", COMPLETIONS[2]])
    assert math.isfinite(rewards[0]) and rewards[1:] == [-7.5, direct_pairs(address)[2]]
    assert reward_function(cut)(CONVERSATIONS[:1], [[{"role": "assistant", "content": None}]]) == [-7.5]
    with pytest.raises(NotFound, match="nobody"):
        reward_function(RemoteRewards(address, model="nobody"))(PROMPTS, COMPLETIONS)
    with pytest.raises(VersionUnavailable, match="exactly 9"):
        reward_function(RemoteRewards(address, version=VersionRequirement(exactly=9)))(PROMPTS, COMPLETIONS)
    with pytest.raises(DeadlineExceeded):
        reward_function(RemoteRewards(address, timeout_s=1e-6))(PROMPTS, COMPLETIONS)
    with pytest.raises(ConfigError, match="plaintext"):
        token_file = EXAMPLES / "verl_reward.py"  # any file
        RemoteRewards("trimtab.invalid:1", token_file=token_file).of_items([ScoreItem(token_ids=(5,))], ["x"])


def test_it_works_in_threads_after_pickling_and_on_both_sides_of_a_fork(address: str) -> None:
    remote = RemoteRewards(address)
    expected = direct_pairs(address)
    names = ["a", "b", "c"]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: remote.of_pairs(PROMPTS, COMPLETIONS, names), range(16)))
    assert found == [expected] * 16
    copy: RemoteRewards = pickle.loads(pickle.dumps(remote))
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        assert processes.apply(copy.of_pairs, (PROMPTS, COMPLETIONS, names)) == expected
    done = subprocess.run([sys.executable, "-c", FORK, address], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["child", "True", "parent", "True"], done.stderr


def test_trl_evaluation_by_its_definition(address: str) -> None:
    rows = [
        {"prompt": "a", "chosen": "It sleeps.", "rejected": "A small surface."},
        {"prompt": "b", "chosen": "the dog", "rejected": "the fox", "margin": 0.5},
        {"prompt": "c", "chosen": "the same", "rejected": "the same", "margin": None},
    ]
    found = evaluate_preferences(rows, RemoteRewards(address, batch=4))
    sides = [ScoreItem(prompt=str(r["prompt"]), completion=str(r[s])) for r in rows for s in ("chosen", "rejected")]
    rewards = np.array(direct(address, *sides)).reshape(3, 2)
    difference = rewards[:, 0] - rewards[:, 1]
    assert difference[2] == 0 and found.count == 3
    losses = [-math.log(1 / (1 + math.exp(margin - d))) for d, margin in zip(difference, (0, 0.5, 0), strict=True)]
    assert found.loss == pytest.approx(sum(losses) / 3, abs=1e-12)
    assert found.accuracy == sum(d > 0 for d in difference) / 3  # a tie is no hit
    assert found.margin == pytest.approx(difference.mean(), abs=1e-12)
    assert (found.min_reward, found.max_reward) == (rewards.min(), rewards.max())
    assert found.mean_reward == pytest.approx(rewards.mean(), abs=1e-12)
    columns = ("prompt", "chosen", "rejected")
    table = Dataset.from_list([{key: row[key] for key in columns} for row in rows])
    assert evaluate_preferences(table, address).margin == found.margin


def test_trl_evaluation_of_conversations(address: str) -> None:
    apart = [{"prompt": CONVERSATIONS[0], "chosen": REPLIES[0], "rejected": REPLIES[1]}]
    inside = [{side: [*CONVERSATIONS[0], *apart[0][side]] for side in ("chosen", "rejected")}]
    assert evaluate_preferences(apart, address) == evaluate_preferences(inside, address)


def test_trl_evaluation_names_the_row(address: str) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(DataError, match=r"^rows\[1\]\.rejected: must be a text or messages; found NoneType"):
        evaluate_preferences([good, {"prompt": "a", "chosen": "b"}], address)
    with pytest.raises(DataError, match=r"^rows\[0\]\.prompt"):
        evaluate_preferences([{"chosen": "b", "rejected": "c"}], address)
    with pytest.raises(SequenceTooLong, match=r"^rows\[3\]\.rejected"):
        evaluate_preferences([good, good, good, {**good, "rejected": TOO_LONG}], RemoteRewards(address, batch=2))
    with pytest.raises(DataError, match="none"):
        evaluate_preferences([], address)


def test_openrlhf_scores_the_tokens_of_the_rollout(address: str) -> None:
    tokenizer = make_tokenizer()
    reward_func = openrlhf_reward_function(address, tokenizer)
    texts = [
        str(tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True))
        for p in PROMPTS
    ]
    endings = ["<|end|>", "", "<|end|><|pad|><|pad|>"]
    queries = [text + completion + end for text, completion, end in zip(texts, COMPLETIONS, endings, strict=True)]
    found = reward_func(queries, texts, ["", "", ""])
    assert set(found) == {"rewards", "scores", "extra_logs"}
    # the template and the EOS are control tokens again, so the service sees what it makes of the same pairs itself
    assert found["rewards"].tolist() == direct_pairs(address) and found["rewards"].dtype == torch.float32
    assert torch.equal(found["scores"], torch.sigmoid(found["rewards"]))
    assert torch.equal(found["extra_logs"]["reward"], found["rewards"])
    # as OpenRLHF calls it: one query at a time, from threads
    with ThreadPoolExecutor(8) as pool:
        single = list(pool.map(lambda query: reward_func([query], [""], [""])["rewards"].item(), queries * 4))
    assert single == found["rewards"].tolist() * 4
    with pytest.raises(SequenceTooLong, match=r"^queries\[1\]"):
        reward_func([queries[0], TOO_LONG], texts[:2], ["", ""])


def test_verl_scores_one_and_a_batch(address: str) -> None:
    prompt = np.array(CONVERSATIONS[0], dtype=object)  # as a Parquet file gives messages
    extra_infos = [{"prompt": PROMPTS[0], "index": 3}, {"prompt": PROMPTS[1]}, {"prompt": prompt}]
    expected = direct_pairs(address)[:2]
    expected += direct(address, ScoreItem(prompt=turns(CONVERSATIONS[0]), completion=COMPLETIONS[2]))
    # as verl's reward managers call them
    single = [
        compute_score(
            data_source="x", solution_str=text, ground_truth=None, extra_info=extra_info, address=address, timeout_s=30
        )
        for text, extra_info in zip(COMPLETIONS, extra_infos, strict=True)
    ]
    batch = compute_score_batch(
        data_sources=["x"] * 3,
        solution_strs=COMPLETIONS,
        ground_truths=[None] * 3,
        extra_infos=extra_infos,
        address=address,
    )
    assert single == batch == expected
    other = compute_score("x", COMPLETIONS[0], "", {"question": PROMPTS[0]}, address=address, prompt_key="question")
    assert other == expected[0]
    assert compute_score("x", "", "", {"prompt": "a"}, address=address, empty_reward=-2.0) == -2.0
    # options come from a configuration file, where a side is a word
    assert math.isfinite(compute_score("x", TOO_LONG, "", {"prompt": "a"}, address=address, truncation="RIGHT"))
    for wrong in (None, {}, {"prompt": None}):
        with pytest.raises(DataError, match="solution_str: its extra_info has no 'prompt'"):
            compute_score("x", "b", "c", wrong, address=address)


def test_nothing_heavy_is_imported_before_a_call() -> None:
    modules = [f"trimtab.integrations.{name}" for name in ("openrlhf", "trl", "verl")]
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"torch", "transformers", "trl", "datasets", "openrlhf", "verl"} & set(done.stdout.split())


def test_the_examples_run(address: str, reward_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert json.loads(run_example("trl_evaluate.py", address, tmp_path / "rows.jsonl"))["count"] == 3
    pair = ScoreItem(prompt="What is a trim tab?", completion="A small surface.")
    assert float(run_example("verl_reward.py", address)) == direct(address, pair)[0]
    assert "'rewards': tensor([" in run_example("openrlhf_reward.py", address, reward_folder)


def run_example(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
