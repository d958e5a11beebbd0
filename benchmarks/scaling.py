"""What more generation replicas bring: two cores against one, replicas that come and go, a model beyond this machine.

- `efficiency`: one replica on one core against two replicas on two, each pinned to a core of its own; the dispatcher of
  a run gives out the work and runs on the same cores. 10.5 M parameters, prompts of 32 to 64 tokens, 64 new ones.
- `timeline`: 1 -> 2 -> 4 -> 2 replicas by `trimtab scale` while the dispatcher keeps them busy; tokens a second over
  time as a plot. Four replicas on two cores are no faster than two; what it shows is that nothing stands still.
- `model`: a simulation to 256 replicas, fed with the times measured here and, by option, with those of a publication.
  It is a model, not a measurement.

    python benchmarks/scaling.py [--parts efficiency timeline model] [--plot scaling.png]

Claim: two replicas do at least 95 % of twice the work of one. The last line is one JSON object; `ratio` is that share.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
from workloads.fleet_model import Measured, efficiencies
from workloads.metrics import metric
from workloads.models import VOCAB, make_folders

from trimtab import AsyncClient, Client
from trimtab.local import CHANNELS, LocalServices, read_endpoints, request_scale
from trimtab.resolver import FileResolver
from trimtab.types import SamplingParams, ServiceState, VersionRequirement
from trimtab_models.loading import load_policy
from trimtab_models.versions import publish_folder
from trimtab_services.generation.engines.base import SequenceRequest
from trimtab_services.generation.engines.transformers import TransformersEngine
from trimtab_trainer.fleet import Fleet
from trimtab_trainer.rollouts import RolloutDispatcher, RolloutPrompt

GOAL = 0.95
SLOTS = 16
NEW_TOKENS = 64
SAMPLES = 192
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def make_prompts(count: int, seed: int) -> list[RolloutPrompt]:
    draw = random.Random(seed)
    ids = [tuple(draw.randrange(2, VOCAB) for _ in range(draw.randint(32, 64))) for _ in range(count)]
    return [RolloutPrompt(f"{seed}-{number}", one, seed=number) for number, one in enumerate(ids)]


class Generation:
    """Generation replicas of one model on this machine, and a dispatcher as a run has one.

    Args:
        work: folder of the services.
        policy: folder of the model.
        replicas: how many to begin with.
    """

    def __init__(self, work: Path, policy: Path, replicas: int) -> None:
        settings = {"generation": {"threads": 1, "slots": SLOTS, "max_sequence_tokens": 256}}
        self.services = LocalServices(work, replicas={"generation": replicas}, settings=settings)
        self._policy = policy

    def __enter__(self) -> Generation:
        self.services.start()
        with Client(self.endpoints("weights")[0]["grpc"], timeout_s=60) as weights:
            publish_folder(weights, self._policy, channels=[CHANNELS["generation"]])
        for replica in self.endpoints("generation"):
            with Client(replica["grpc"]) as client:
                while client.info().state is not ServiceState.SERVING:
                    time.sleep(0.05)
        self.dispatcher = RolloutDispatcher(self._fleets, timeout_s=900)
        return self

    def __exit__(self, *exc: object) -> None:
        self.dispatcher.close()
        self.services.stop()

    def endpoints(self, service: str) -> list[dict[str, Any]]:
        """Addresses and process of each replica of a service."""
        return read_endpoints(self.services.directory)[service]

    def collect(self, samples: int, seed: int) -> tuple[float, float]:
        """Tokens a second, and seconds of this process's own time for each sample."""
        sampling = SamplingParams(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
        began, own = time.perf_counter(), time.process_time()
        rollouts = self.dispatcher.collect(make_prompts(samples, seed), sampling, VersionRequirement(), score=False)
        tokens = sum(len(rollout.token_ids) for rollout in rollouts)
        return tokens / (time.perf_counter() - began), (time.process_time() - own) / samples

    def _fleets(self) -> tuple[Fleet, Fleet, Fleet]:
        def fleet(name: str) -> Fleet:
            return Fleet(name, FileResolver(self.services.endpoints_file, name), AsyncClient)

        return fleet("generation"), fleet("reward"), fleet("reference")


def pin(pid: int, cores: Iterable[int]) -> None:
    """Keeps every thread of a process on some cores."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), set(cores))


def efficiency(work: Path, policy: Path, repeats: int, samples: int) -> dict[str, Any]:
    """The part `efficiency`."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("needs two cores")
    rates: dict[int, list[float]] = {1: [], 2: []}
    own: list[float] = []
    with Generation(work / "one", policy, 1) as one, Generation(work / "two", policy, 2) as two:
        pin(one.endpoints("generation")[0]["pid"], cores[:1])
        for replica, core in zip(two.endpoints("generation"), cores[:2], strict=True):
            pin(replica["pid"], [core])
        for turn in range(repeats + 1):
            for count, generation in ((1, one), (2, two)):
                pin(os.getpid(), cores[:count])
                rate, seconds = generation.collect(count * samples, seed=turn)
                if turn:  # the first turn warms up
                    rates[count].append(rate)
                    own.append(seconds)
        pin(os.getpid(), cores)
    # of neighbouring turns: the machine's own speed drifts by several percent
    shares = [double / (2 * single) for single, double in zip(rates[1], rates[2], strict=True)]
    figures = {
        "one_tokens_per_s": round(statistics.median(rates[1]), 1),
        "two_tokens_per_s": round(statistics.median(rates[2]), 1),
        "efficiency": round(statistics.median(shares), 3),
        "efficiency_of_each_turn": [round(share, 3) for share in shares],
        "dispatch_ms_per_sample": round(1000 * statistics.median(own), 3),
    }
    print(f"efficiency: {figures}", flush=True)
    return figures


def timeline(work: Path, policy: Path, hold_s: float, plot: Path) -> dict[str, Any]:
    """The part `timeline`."""
    rows: list[tuple[float, float, int]] = []
    ended = threading.Event()
    with Generation(work / "timeline", policy, 1) as generation:
        pending: list[Exception] = []

        def keep_busy() -> None:
            turn = 0
            try:
                while not ended.is_set():
                    turn += 1
                    generation.collect(4 * SAMPLES, seed=turn)
            except Exception as error:
                pending.append(error)

        busy = threading.Thread(target=keep_busy)
        busy.start()
        counters: dict[str, float] = {}
        began = time.monotonic()
        steps = [(hold_s * number, count) for number, count in enumerate((1, 2, 4, 2))]
        changed: list[tuple[float, int]] = []
        while time.monotonic() - began < 4 * hold_s and not pending:
            now = time.monotonic() - began
            if steps and now >= steps[0][0]:
                _, count = steps.pop(0)
                request_scale(generation.services.directory, "generation", count)
                changed.append((now, count))
            before = sum(counters.values())
            replicas = generation.endpoints("generation")
            for replica in replicas:
                counters[replica["grpc"]] = max(counters.get(replica["grpc"], 0.0), sampled_tokens(replica["metrics"]))
            rows.append((now, sum(counters.values()) - before, len(replicas)))
            time.sleep(1.0)
        ended.set()
        busy.join()
    if pending:
        raise SystemExit(f"a collection failed while replicas came and went: {pending[0]}")
    rates = [(at, tokens / max(1e-3, at - last)) for (last, _, _), (at, tokens, _) in zip(rows, rows[1:], strict=False)]
    draw(rates, rows, changed, plot)
    gaps = [after - before for (before, _), (after, rate) in zip(rates, rates[1:], strict=False) if rate == 0]
    figures = {
        "tokens_per_s": {
            f"{count} from {at:.0f} s": mean_rate(rates, at + hold_s / 3, at + hold_s) for at, count in changed
        },
        "seconds_without_a_token": round(sum(gaps), 1),
        "plot": str(plot),
    }
    print(f"timeline: {figures}", flush=True)
    return figures


def mean_rate(rates: Sequence[tuple[float, float]], start: float, stop: float) -> int:
    return round(statistics.fmean(rate for at, rate in rates if start < at < stop))


def sampled_tokens(address: str) -> float:
    """Tokens that a replica has sampled; 0 where it does not answer any more."""
    try:
        return metric(address, "trimtab_generated_tokens_total")
    except httpx.HTTPError:
        return 0.0


def draw(
    rates: Sequence[tuple[float, float]], rows: Sequence[tuple[float, float, int]], changed: Sequence, plot: Path
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    axes.plot([at for at, _ in rates], [rate for _, rate in rates], color="#2a6f97")
    axes.set(xlabel="seconds", ylabel="tokens a second, all replicas", ylim=(0, None))
    counts = axes.twinx()
    counts.step([at for at, _, _ in rows], [count for *_, count in rows], where="post", color="#bbbbbb")
    counts.set(ylabel="replicas in endpoints.json", ylim=(0, 5))
    for at, count in changed:
        axes.axvline(at, color="#cccccc", linestyle=":")
        axes.annotate(f"scale generation={count}", (at, 0), rotation=90, fontsize=8, va="bottom")
    axes.set_title(f"replicas that come and go, {len(os.sched_getaffinity(0))} cores")
    plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(plot, dpi=120)


def step_times(policy: Path) -> tuple[float, float]:
    """Seconds of a decode step of the bare engine on one thread: fixed, and for each running sequence."""
    torch.set_num_threads(1)
    seconds: dict[int, float] = {}
    for count in (1, SLOTS):
        engine = TransformersEngine(load_policy(policy), version=1, slots=SLOTS, max_sequence_tokens=256)
        for number in range(count):
            sampling = SamplingParams(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
            engine.submit(SequenceRequest(number, tuple(range(5, 45)), sampling, seed=number))
        times = []
        while engine.has_work:
            began = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - began)
        seconds[count] = statistics.median(times[2:])
    each = max(0.0, (seconds[SLOTS] - seconds[1]) / (SLOTS - 1))
    return seconds[1] - each, each


def model(policy: Path, dispatch_s: float, args: argparse.Namespace) -> dict[str, Any]:
    """The part `model`."""
    fixed, each = step_times(policy)
    measured = Measured(
        step_fixed_s=fixed,
        step_sequence_s=each,
        dispatch_s=dispatch_s,
        lengths=tuple(range(8, NEW_TOKENS + 1)),
        slots=SLOTS,
        publish_s=args.publish_s,
        payload_bytes=args.payload_mb * 1e6,
        egress_bytes_per_s=args.egress_mb_per_s * 1e6,
    )
    figures = {
        "simulated": True,
        "fed_with": {key: value for key, value in vars(measured).items() if key != "lengths"},
        "efficiency": efficiencies(measured, COUNTS, samples_per_replica=4 * SLOTS),
    }
    print(f"model, simulated: {figures}", flush=True)
    return figures


def main() -> None:
    """Runs the parts that are asked for and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = ["efficiency", "timeline", "model"]
    parser.add_argument("--parts", nargs="+", choices=everything, default=everything)
    parser.add_argument("--repeats", type=int, default=7, help="measured turns of efficiency, after one that warms up")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="completions of a replica in a turn of efficiency")
    parser.add_argument("--hold", type=float, default=30.0, help="seconds of each step of the timeline")
    parser.add_argument("--plot", type=Path, default=Path("scaling.png"), help="where the timeline's plot goes")
    parser.add_argument("--publish-s", type=float, default=1.0, help="for the model: `publication`'s published_s")
    parser.add_argument("--payload-mb", type=float, default=3.0, help="for the model: megabytes of a publication")
    parser.add_argument("--egress-mb-per-s", type=float, default=1000.0, help="for the model: of the weights service")
    args = parser.parse_args()
    began, load = time.monotonic(), os.getloadavg()[0]
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        policy, _ = make_folders(work)
        if "efficiency" in args.parts:
            figures["efficiency"] = efficiency(work, policy, args.repeats, args.samples)
        if "timeline" in args.parts:
            figures["timeline"] = timeline(work, policy, args.hold, args.plot)
        if "model" in args.parts:
            measured_ms = figures.get("efficiency", {}).get("dispatch_ms_per_sample", 1.0)
            figures["model"] = model(policy, measured_ms / 1000, args)
    result = {
        "benchmark": "scaling",
        "ratio": figures.get("efficiency", {}).get("efficiency"),
        "goal": GOAL,
        **figures,
        "load_1m": round(load, 2),
        "wall_s": round(time.monotonic() - began),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
