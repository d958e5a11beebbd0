"""A trainer service in this process, and runs whose events are in its store as if they had been reported."""

from __future__ import annotations

import json
import math
import random
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx

from running import FREE_PORTS, RunningServer, client, wait_serving
from trimtab import Token
from trimtab.v1 import info_pb2
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.trainer import main
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.trainer.events import EventStore

MARKUP = '<img src=x onerror="document.title=1"><script>document.title=2</script>&amp;'


class Service:
    """A running trainer service and the store that it serves.

    Attributes:
        url: of its HTTP side.
    """

    def __init__(self, server: RunningServer, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.store = EventStore(directory / "events.sqlite")
        self.url = server.server.runtime.http_url

    def get(self, path: str, *, headers: Mapping[str, str] | None = None, **query: Any) -> httpx.Response:
        """Asks the API."""
        return httpx.get(f"{self.url}/runs/api/{path}", params=query, headers=headers, timeout=30, trust_env=False)

    def run(self, name: str, *events: pb.RunEvent, spec: str = "seed: 1\n") -> Path:
        """Makes a run that has reported events, numbered here; returns its folder."""
        folder = self.directory / name
        folder.mkdir(exist_ok=True)
        self.store.create_run(name, spec, folder)
        self.tell(name, *events)
        return folder

    def tell(self, name: str, *events: pb.RunEvent) -> None:
        """Has a run report further events."""
        number = self.store.last_sequence(name)
        for event in events:
            number += 1
            event.sequence = number
            if not event.HasField("time"):
                event.time.FromNanoseconds(time.time_ns())
            self.store.append(name, event)

    def report(self, name: str, *replicas: pb.RunReplica, token: str | None = None) -> None:
        """Has a run tell how its replicas are."""
        request = pb.ReportEventsRequest(name=name, replicas=pb.RunReplicas(replicas=replicas))
        with client(self.server, token=Token(token) if token else None) as program:
            list(program.report_events(iter([request]), timeout_s=30))


@contextmanager
def trainer(directory: Path, **settings: Any) -> Iterator[Service]:
    """A trainer service whose runs are in a folder."""
    config = TrainerServiceConfig(**{**FREE_PORTS, "drain_s": 5.0, "directory": directory, **settings})
    server = RunningServer(config, "trainer", "trimtab.v1.TrainerService", main.build)
    try:
        wait_serving(server)
        service = Service(server, directory)
        yield service
        service.store.close()
    finally:
        server.stop()


def started(stage: str, total: int, step: int = 0) -> pb.RunEvent:
    return pb.RunEvent(stage=stage, step=step, stage_started=pb.StageStarted(total_steps=total))


def done(stage: str, step: int, total: int, **metrics: float) -> pb.RunEvent:
    return pb.RunEvent(stage=stage, step=step, step_done=pb.StepDone(total_steps=total, metrics=metrics))


def said(text: str, severity: pb.Severity.ValueType = pb.SEVERITY_INFO, stage: str = "ppo") -> pb.RunEvent:
    return pb.RunEvent(stage=stage, message=pb.Message(severity=severity, text=text))


def queue(waiting: int, running: int, replicas: int) -> pb.RunEvent:
    told = pb.RolloutQueue(waiting_rollouts=waiting, running_rollouts=running, replicas=replicas)
    return pb.RunEvent(stage="ppo", rollout_queue=told)


def replica(**changes: Any) -> pb.RunReplica:
    """A generation replica that is well."""
    fields = {"service": "generation", "address": "10.0.0.1:50051", "state": info_pb2.SERVICE_STATE_SERVING}
    return pb.RunReplica(**{**fields, "seconds_since_answer": 1.5, **changes})


def ended(state: pb.RunState.ValueType, error: str = "") -> pb.RunEvent:
    return pb.RunEvent(run_ended=pb.RunEnded(state=state, error=error))


def ppo_step(step: int, total: int, draw: random.Random) -> pb.RunEvent:
    """A step of PPO with every figure that a plot shows."""
    share = step / total
    return done(
        "ppo",
        step,
        total,
        reward=-0.4 + 1.6 * share + 0.15 * draw.gauss(0, 1),
        score=-0.3 + 1.7 * share + 0.15 * draw.gauss(0, 1),
        gold=0.1 + 0.5 * math.sqrt(share) + 0.03 * draw.gauss(0, 1),
        mean_kl=9 * share + 0.3 * draw.random(),
        kl_k3=9.2 * share + 0.3 * draw.random(),
        entropy=2.1 - share,
        completion_tokens=18 + 6 * share + draw.random(),
        ended_fraction=0.9,
        repeated_fraction=0.02 * draw.random(),
        clip_fraction=0.1 * draw.random(),
        explained_variance=0.7 * share,
        ptx_loss=1.9 - 0.1 * share,
        policy_gradient_norm=1.0 + draw.random(),
        ppo_gradient_norm=0.8 + draw.random(),
        ptx_gradient_norm=0.3 + 0.1 * draw.random(),
        mismatch_mean=1e-7,
        mismatch_max=3e-6 * (1 + draw.random()),
        lag=0.0,
        publication_share=0.4,
        seconds_rollouts=3.0 + draw.random(),
        seconds_experience=0.9,
        seconds_update=5.0 + draw.random(),
        seconds_publish=0.4,
        version=step + 3,
        hedged_samples=0.0,
    )


def rollouts(step: int, total: int, *texts: str) -> pb.RunEvent:
    """A step of PPO that tells of rollouts: a prompt and a completion of each text."""
    event = done("ppo", step, total, reward=0.5)
    event.step_done.samples.extend(
        pb.RolloutSample(
            prompt=f"Prompt: {text}", completion=f"Answer: {text}", reward=0.25 * step, ended=step % 2 == 0
        )
        for text in texts
    )
    return event


def furnish(service: Service) -> None:
    """Runs in every state, one of them in the middle of PPO, with samples, output, and markup wherever text can be."""
    draw = random.Random(7)
    sft = [done("sft", step, 40, loss=2.5 * math.exp(-step / 15) + 0.7) for step in range(1, 41)]
    service.run("failed", ended(pb.RUN_STATE_FAILED, f"sft.demonstrations: {MARKUP}: no such file"))
    service.run("succeeded", started("sft", 40), *sft, ended(pb.RUN_STATE_SUCCEEDED))
    service.run("stopped", started("sft", 40), *sft[:12], ended(pb.RUN_STATE_STOPPED))
    told = ppo_step(45, 100, draw)
    told.step_done.samples.extend(rollouts(45, 100, MARKUP, "a lighthouse").step_done.samples)
    folder = service.run(
        "working",
        started("sft", 40),
        *sft,
        pb.RunEvent(stage="sft", step=40, stage_done=pb.StageDone(metrics={"loss": 0.91, "steps": 40}, version=3)),
        started("ppo", 100),
        *[ppo_step(step, 100, draw) for step in range(1, 45)],
        told,
        said(f"{MARKUP} is a prompt that looks like markup", pb.SEVERITY_WARNING),
        said("the judge is another reward model"),
        queue(48, 16, 2),
        spec=f"name: working\nmodel: {MARKUP}\n",
    )
    write_samples(folder, 30)
    (folder / "run.log").write_text(f"sft: begins\n{MARKUP}\nppo: step 45 of 100\n")


def write_samples(folder: Path, prompts: int) -> None:
    """Answers of two models, two of each to every prompt."""
    (folder / "samples").mkdir()
    for model in ("base", "ppo_ptx"):
        rows = [
            {
                "number": number,
                "prompt": f"Question {number}: {MARKUP}?",
                "completion": f"{model} answer {index} to {number}: {MARKUP}",
                "reward": 0.1 * number,
                "gold": 0.5,
                "tokens": 12,
                "ended": number % 7 != 0,
            }
            for number in range(prompts)
            for index in range(2)
        ]
        path = folder / "samples" / f"{model}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def fill_events(service: Service, name: str, steps: int) -> None:
    """A run with so many steps of PPO, written past the store, which takes them one by one."""
    service.run(name, started("ppo", steps))
    draw = random.Random(1)
    few = [ppo_step(step, steps, draw) for step in range(1, 501)]
    number = service.store.run(name).number
    with closing(sqlite3.connect(service.directory / "events.sqlite")) as database:
        database.executemany("INSERT INTO events VALUES (?, ?, ?)", _numbered(number, few, steps))
        database.execute(
            "UPDATE runs SET step = ?, total_steps = ?, stage = 'ppo' WHERE number = ?", (steps, steps, number)
        )
        database.commit()


def _numbered(run: int, few: list[pb.RunEvent], steps: int) -> Iterator[tuple[int, int, bytes]]:
    for step in range(1, steps + 1):
        event = few[step % len(few)]
        event.sequence, event.step = step + 1, step
        event.time.FromSeconds(1_700_000_000 + step)
        event.step_done.metrics["version"] = step + 3
        yield run, event.sequence, event.SerializeToString()


def fill_runs(service: Service, count: int) -> None:
    """So many runs that have ended."""
    names = [f"run-{number:04}" for number in range(count)]
    with closing(sqlite3.connect(service.directory / "events.sqlite")) as database:
        database.executemany(
            "INSERT INTO runs (name, state, error, spec_yaml, create_time, update_time, stage, step, total_steps, "
            "directory, pid) VALUES (?, 5, '', 'seed: 1', 1e9, 1e9, 'ppo', 9, 9, ?, 0)",
            [(name, str(service.directory / name)) for name in names],
        )
        database.commit()
