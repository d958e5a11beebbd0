"""The protos keep to buf's rules, STANDARD and COMMENTS, and their comments to what the code does."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab import rpcs
from trimtab.rpcs import Rpc
from trimtab.types import shared

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "protos/trimtab/v1").glob("*.proto"))
REPEATABLE = r"retrying elsewhere is (always )?safe|safe to retry|a retry returns"


def commented() -> Iterator[tuple[str, str, str]]:
    """Each message, service, field, value and rpc: what it stands in, its name, its comment as one line."""
    for path in PROTOS:
        comment, scope = "", ""
        for line in path.read_text().splitlines():
            text = line.strip()
            if text.startswith("//"):
                comment += text.removeprefix("//")
                continue
            if found := re.match(r"(?:message|service|enum) (\w+)", text):
                scope = found[1]
                yield "", scope, comment
            elif found := re.match(r"rpc (\w+)|(?:optional |repeated )?[\w.<>, ]+ (\w+) = \d+;|(\w+) = \d+;", text):
                yield scope, next(filter(None, found.groups())), comment
            comment = ""


def test_buf_lint() -> None:
    buf = Path(sys.executable).parent / "buf"
    assert buf.exists(), "buf is not installed; it is in the dependency group `dev`"
    done = subprocess.run([buf, "lint", "protos"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_clients_repeat_is_safe_to_repeat_by_its_comment() -> None:
    comments = {(scope, name): comment for scope, name, comment in commented()}
    for rpc in (rpc for rpc in vars(rpcs).values() if isinstance(rpc, Rpc) and rpc is not rpcs.INFO):
        service, name = rpc.path.removeprefix("/trimtab.v1.").split("/")
        comment = comments["", service] + comments[service, name]
        if rpc.repeatable:
            assert re.search(REPEATABLE, comment, re.IGNORECASE), rpc.path
        else:
            assert not re.search(r"safe to retry\b(?! from)", comment, re.IGNORECASE), rpc.path


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("request_id", "prompt_id", "item_id"), f"{shared.MAX_ID_CHARACTERS} characters"),
        (("priority",), "means PRIORITY_ROLLOUT"),
        (("temperature",), f"[1e-6, {shared.MAX_TEMPERATURE:g}]"),
        (("top_n",), f"[0, {shared.MAX_TOP_N}]"),
        (("stop_strings",), f"At most {shared.MAX_STOP_STRINGS}"),
        (("max_new_tokens",), "0 means"),
        (("page_size",), "[0, 1000]"),
        (("expected_previous_version",), "-1 skips the check"),
        (("publish_id",), "1 to 200 characters"),
        (("ttl_ms",), "[1000, 600000]"),
    ],
)
def test_bounds_and_zero_are_stated_on_every_request(names: tuple[str, ...], words: str) -> None:
    assert shared.MIN_TEMPERATURE == 1e-6
    asked = re.compile(r"(Request|Item|Prompt|Params|Options)$")
    found = [(scope, name, comment) for scope, name, comment in commented() if name in names and asked.search(scope)]
    assert found
    for scope, name, comment in found:
        assert words in comment, f"{scope}.{name}:{comment}"


@pytest.mark.parametrize("request_", ["GetRun", "StopRun", "ResumeRun", "CheckpointRun", "WatchRun", "WatchRunLog"])
def test_an_empty_name_is_spoken_of(request_: str) -> None:
    comment = next(c for scope, name, c in commented() if (scope, name) == (f"{request_}Request", "name"))
    assert "Empty or unknown is NOT_FOUND" in comment
