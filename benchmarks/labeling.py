"""The labeling service under 50 people at once: how long its page takes to load, and then to wait.

Each labeler takes a task, saves a draft every two seconds while working on it, and submits; the service is a process of
its own over SQLite (or `--database URL`), asked over HTTP from this one. Once, between two tasks and while the others
work, each loads the page as a browser with an empty cache does: the HTML, what that names, then the modules that
modules import, by six connections, then the session and the project; `page` is the time of all of it. The last line is
one JSON object: `ratio` is the goal of 300 ms over the slowest 95th percentile among the page and the requests of the
work. The logins, all at the same moment and slow on purpose, are told beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import urljoin
from uuid import uuid4

import httpx
from workloads.served import ServedProcess, served

from trimtab import Client
from trimtab.v1 import labeling_pb2 as pb

GOAL_S = 0.3
AUTOSAVE_S = 2.0
PASSWORD = "a password of the benchmark"
PROJECT = "benchmark"

CONNECTIONS = 6
"""Of a browser to one host."""
TASKS_AT_ONCE = 1000
"""In one message of the import."""

_NAMED = re.compile(r'(?:href|src)="(assets/[^"]+)"')
_IMPORTED = re.compile(r'^(?:import|export)\b[^;"]*"(\.[^"]+)"', re.MULTILINE)

Seconds = dict[str, list[float]]


def prepare(service: ServedProcess, names: list[str], tasks: int) -> None:
    """A project to rank seven answers of 800 characters, with an overlap of three, and the accounts."""
    with Client(service.grpc, timeout_s=300) as client:
        project = pb.Project(name=PROJECT, kind=pb.TASK_KIND_RANK, overlap=3)
        client.create_project(pb.CreateProjectRequest(project=project))
        client.import_tasks(
            pb.ImportTasksRequest(
                project=PROJECT,
                import_id="i",
                tasks=[task(number) for number in range(first, min(first + TASKS_AT_ONCE, tasks))],
            )
            for first in range(0, tasks, TASKS_AT_ONCE)
        )
        for name in names:
            client.create_account(pb.CreateAccountRequest(name=name, password=PASSWORD, role=pb.ACCOUNT_ROLE_LABELER))


def task(number: int) -> pb.LabelTask:
    """One of its tasks."""
    return pb.LabelTask(prompt=f"Prompt {number}", answers=[f"{number} {k} {'word ' * 160}" for k in range(7)])


class Labeler:
    """One person at a page.

    Args:
        url: of the service's HTTP side.
        name: of the account.
        seconds: gets the time of every request.
    """

    def __init__(self, url: str, name: str, seconds: Seconds) -> None:
        limits = httpx.Limits(max_connections=CONNECTIONS)
        self._page = httpx.AsyncClient(base_url=f"{url}/labeling/api/", timeout=60, trust_env=False, limits=limits)
        self._address = f"{url}/labeling/"
        self._name = name
        self._seconds = seconds
        self._random = random.Random(name)

    async def log_in(self) -> None:
        """Begins a session."""
        session = await self._send("login", "POST", "login", {"name": self._name, "password": PASSWORD})
        self._page.headers["x-csrf-token"] = session["csrf_token"]

    async def load(self) -> int:
        """Loads the page; returns its files."""
        began = time.perf_counter()
        html = await self._file(self._address)
        files: set[str] = set()
        wanted = {urljoin(self._address, name) for name in _NAMED.findall(html)}
        while wanted:
            files |= wanted
            texts = await asyncio.gather(*(self._file(address) for address in wanted))
            scripts = [(at, text) for at, text in zip(wanted, texts, strict=True) if at.endswith(".js")]
            wanted = {urljoin(at, name) for at, text in scripts for name in _IMPORTED.findall(text)} - files
        for told in ("me", f"projects/{PROJECT}"):
            (await self._page.get(told)).raise_for_status()
        self._seconds["page"].append(time.perf_counter() - began)
        return len(files)

    async def _file(self, address: str) -> str:
        answer = await self._page.get(address)
        answer.raise_for_status()
        return answer.text

    async def work(self, task_s: float, until: float) -> int:
        """Labels until a time of the clock, and loads the page once meanwhile; returns the files of the page.

        A task takes `task_s` seconds, up to half of it more or less.
        """
        files, load_at = 0, self._random.uniform(time.monotonic(), until)
        await asyncio.sleep(task_s * self._random.random())
        while time.monotonic() < until:
            if not files and time.monotonic() > load_at:
                files = await self.load()
            given = (await self._send("next", "POST", f"projects/{PROJECT}/next", {}))["assignment"]
            if given is None:
                raise SystemExit("there are no tasks left; give more --tasks")
            path = f"assignments/{given['id']}"
            label = {"ranking": [[place] for place in self._random.sample(range(7), 7)]}
            done, draft = time.monotonic() + task_s * self._random.uniform(0.5, 1.5), ""
            while time.monotonic() + AUTOSAVE_S < done:
                await asyncio.sleep(AUTOSAVE_S)
                body = {"draft_id": uuid4().hex, "base_draft_id": draft, "content": {"label": label}}
                await self._send("draft", "PUT", f"{path}/draft", body)
                draft = body["draft_id"]
            await asyncio.sleep(max(0.0, done - time.monotonic()))
            await self._send("submit", "POST", f"{path}/submit", {"submission_id": uuid4().hex, "label": label})
        return files or await self.load()

    async def close(self) -> None:
        """Closes the page."""
        await self._page.aclose()

    async def _send(self, what: str, method: str, path: str, body: dict[str, Any]) -> Any:
        began = time.perf_counter()
        answer = await self._page.request(method, path, json=body)
        self._seconds[what].append(time.perf_counter() - began)
        answer.raise_for_status()
        return answer.json()


async def measure(url: str, names: list[str], task_s: float, run_s: float) -> tuple[Seconds, int]:
    """Times of every request, by what was asked, and the files of the page."""
    seconds: Seconds = defaultdict(list)
    people = [Labeler(url, name, seconds) for name in names]
    await asyncio.gather(*(person.log_in() for person in people))
    until = time.monotonic() + run_s
    files = await asyncio.gather(*(person.work(task_s, until) for person in people))
    await asyncio.gather(*(person.close() for person in people))
    return seconds, files[0]


def percentile(values: list[float], percent: int) -> float:
    """In milliseconds."""
    return round(1000 * statistics.quantiles(values, n=100)[percent - 1], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labelers", type=int, default=50)
    parser.add_argument("--task-s", type=float, default=10.0, help="mean seconds that a labeler takes for a task")
    parser.add_argument("--run-s", type=float, default=60.0)
    parser.add_argument("--tasks", type=int, default=2000, help="tasks of the project; nobody may run out of them")
    parser.add_argument("--database", default="", help="postgresql://...; default: a new file of SQLite")
    given = parser.parse_args()
    names = [f"labeler-{number}" for number in range(given.labelers)]
    with tempfile.TemporaryDirectory() as folder:
        database = given.database or f"sqlite:///{folder}/labeling.sqlite"
        with served("labeling", Path(folder), database=database) as service:
            prepare(service, names, given.tasks)
            seconds, files = asyncio.run(measure(f"http://{service.http}", names, given.task_s, given.run_s))
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
    p95 = {what: percentile(values, 95) for what, values in seconds.items()}
    slowest = max(value for what, value in p95.items() if what != "login")
    for what, values in seconds.items():
        print(f"{what:<7} {len(values):>6} requests  p50 {percentile(values, 50):>7} ms  p95 {p95[what]:>7} ms")
    told = {
        "benchmark": "labeling",
        "ratio": round(1000 * GOAL_S / slowest, 2),
        "goal": 1.0,
        "p95_ms": p95,
        "page_files": files,
        "tasks": given.tasks,
        "requests_per_s": round(sum(map(len, seconds.values())) / given.run_s, 1),
        "server_cpu_s": round(used.ru_utime + used.ru_stime, 1),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
