"""A release under load is given another configuration, and no call of its clients fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deployed import RELEASE, Deployed, deployed, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_CLIENT = """
import json, sys, threading, time
from pathlib import Path
from trimtab import Client, Token
from trimtab.errors import TrimtabError
from trimtab.types import GenerateRequest, GenerationPrompt, SamplingParams, ScoreItem, ScoreRequest

service, target = sys.argv[1:]
prompt = GenerationPrompt(prompt_id="one", prompt="story : the dog", num_samples=4)
generate = GenerateRequest(prompts=(prompt,), sampling=SamplingParams(max_new_tokens=24))
score = ScoreRequest(items=(ScoreItem(prompt="story : the dog", completion="the dog"),) * 8)
calls, failures = [], []

def generated(client):
    return sum(result.completion is not None for result in client.generate(generate, timeout_s=60)) == 4

def scored(client):
    return len(client.score(score, timeout_s=60).scores) == 8

def work(client):
    while not Path("/tmp/stop").exists():
        try:
            assert {"generation": generated, "reward": scored}[service](client), "an answer is not complete"
            calls.append(time.time())
        except (TrimtabError, AssertionError) as error:
            failures.append(f"{time.time():.3f} {type(error).__name__}: {error}")
        Path("/tmp/calls").write_text(str(len(calls)))

with Client(target, token=Token(file=Path("/etc/trimtab-token/token")), insecure=True) as client:
    threads = [threading.Thread(target=work, args=(client,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
longest = max(after - before for before, after in zip(sorted(calls), sorted(calls)[1:]))
print(json.dumps({"calls": len(calls), "failures": failures, "longest_gap_s": round(longest, 2)}))
"""
"""Four calls at a time over one connection, without pause, until /tmp/stop is there."""

CHANGES = {"generation": {"config": {"slots": 16}}, "reward": {"config": {"max_batch_tokens": 8192}}}
COUNTERS = {"generation": "trimtab_generated_tokens_total", "reward": "trimtab_computed_tokens_total"}


def test_no_call_fails_while_every_replica_is_replaced(kubeconfig: Path) -> None:
    with deployed(kubeconfig, {name: {"replicas": 2} for name in CHANGES}) as release:
        before = {name: release.names(name) for name in CHANGES}
        for name in CHANGES:
            address = f"{RELEASE}-trimtab-{name}:50051"
            release.start_pod(f"calls-{name}", _CLIENT, name, address)
        for name in CHANGES:
            release.place.kubectl("wait", f"pod/calls-{name}", "--for=condition=Ready", "--timeout=60s")
            wait_for(lambda name=name: _calls(release, name) > 20, f"calls of {name}")
        release.upgrade(CHANGES)
        for name, old in before.items():
            wait_for(lambda name=name, old=old: not _left(release, name, old), f"the end of {old}")
        after = {name: _calls(release, name) for name in CHANGES}
        for name in CHANGES:
            wait_for(lambda name=name: _calls(release, name) > after[name] + 20, f"more calls of {name}")
            release.place.kubectl("exec", f"calls-{name}", "--", "touch", "/tmp/stop")
        for name in CHANGES:
            told: dict[str, Any] = json.loads(release.wait_ended(f"calls-{name}"))
            print(f"{name}: {told['calls']} calls through a rolling update, longest gap {told['longest_gap_s']} s")
            assert told["failures"] == []
            assert sum(release.counter(pod, COUNTERS[name]) for pod in release.names(name)) > 0


def _calls(release: Deployed, name: str) -> int:
    """Answers so far."""
    return int(release.place.kubectl("exec", f"calls-{name}", "--", "sh", "-c", "cat /tmp/calls || echo 0") or 0)


def _left(release: Deployed, name: str, old: list[str]) -> set[str]:
    """Those of the old pods that are still there, ending or not."""
    selector = f"--selector=app.kubernetes.io/component={name}"
    listed = release.place.kubectl("get", "pods", selector, "--output=jsonpath={.items[*].metadata.name}")
    return set(listed.split()) & set(old)
