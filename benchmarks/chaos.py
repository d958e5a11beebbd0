"""A run in which something dies every few seconds ends as the run that nobody disturbed, to the last bit.

Claim: all of it, or the ratio is 0. A tiny deterministic PPO-ptx run goes first on services that are left alone, and
then again and again on fresh ones, under a new seed each time and in turn at `max_lag` 0 and 1, while every 2 to 8
seconds one of these happens: SIGKILL to a replica of generation, reward or reference, to the weights service or to the
trainer (which is resumed); SIGSTOP to a replica for up to 20 s; generation scaled to another number of replicas. Once
the time is over the run under way is finished in peace.

Compared with the undisturbed run are: the trained weights, their running mean, and the last checkpoint (value model,
optimizers and all other state) by SHA-256; the metrics of every iteration, versions among them; the versions that both
stores have kept; and every sample of every batch that the trainer learnt from, in order, with what the services said of
it. What a killed trainer had done after its last checkpoint, and did again, is held to the same. Samples are counted by
prompt_id and sample index: each of its iteration once, none lost, none twice.

    python benchmarks/chaos.py [--seconds 1800] [--seed 1]
    make bench NAME=chaos SECONDS=300

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads import observed_run
from workloads.disturbances import KINDS, Disturbance, Disturber
from workloads.run_record import RunRecord
from workloads.tiny_ppo import PROMPTS, SAMPLES, SERVICE_SETTINGS, make_inputs, write_spec

from trimtab.local import LocalServices, read_endpoints

_FEWEST_ITERATIONS, _MOST_ITERATIONS = 20, 300
_SECONDS_OF_AN_ITERATION = 3.0
"""Of the whole time; an undisturbed run takes a sixth of it or less."""
_PEACE_S = 900.0
"""A run that is left alone and has not ended after so long has failed."""
_POLL_S = 0.05


@dataclass
class Round:
    """One run and what became of it.

    Attributes:
        max_lag: of the run.
        seed: of its disturbances; None for the undisturbed run.
        seconds: from the start of the trainer to its end.
        disturbances: in their order.
        restarts: of service processes that had died.
        resumes: of the trainer.
        record: what it left behind; None when it did not complete.
        error: what ended it.
        differences: from the undisturbed run.
    """

    max_lag: int
    seed: int | None
    seconds: float = 0.0
    disturbances: list[Disturbance] = field(default_factory=list)
    restarts: int = 0
    resumes: int = 0
    record: RunRecord | None = None
    error: str = ""
    differences: list[str] = field(default_factory=list)

    @property
    def lost_and_duplicated(self) -> tuple[int, int]:
        """Samples; (0, 0) for a run that did not complete, which fails for that."""
        return self.record.lost_and_duplicated(PROMPTS, SAMPLES) if self.record else (0, 0)

    @property
    def is_exact(self) -> bool:
        """Whether all that is claimed holds of it."""
        return self.record is not None and not self.differences and self.lost_and_duplicated == (0, 0)


class Chaos:
    """All runs of one call.

    Args:
        directory: of everything.
        iterations: of each run.
        until: `time.monotonic()` at which peace returns.
    """

    def __init__(self, directory: Path, iterations: int, until: float) -> None:
        self.directory = directory
        self._iterations = iterations
        self._until = until
        self._undisturbed: dict[int, Round] = {}
        """By `max_lag`."""
        make_inputs(directory / "inputs")

    def undisturbed(self, max_lag: int) -> Round:
        """The run that the others are held to; made when it is first asked for."""
        if max_lag not in self._undisturbed:
            self._undisturbed[max_lag] = self._run(f"undisturbed-{max_lag}", Round(max_lag, None))
        return self._undisturbed[max_lag]

    def disturbed(self, max_lag: int, seed: int) -> Round:
        """One run under disturbances, compared with the undisturbed one."""
        expected = self.undisturbed(max_lag).record
        done = self._run(f"chaos-{seed}", Round(max_lag, seed))
        if expected is not None and done.record is not None:
            done.differences = expected.differences(done.record)
        return done

    def _run(self, name: str, one: Round) -> Round:
        """Runs to the end on services of its own and notes in `one` how that went."""
        folder = self.directory / name

        def hear(line: str) -> None:
            one.restarts += "; starts again in " in line

        replicas = {"generation": 2, "trainer": 0}
        services = LocalServices(folder / "services", replicas=replicas, settings=SERVICE_SETTINGS, on_event=hear)
        with services:
            spec = write_spec(
                self.directory / "inputs",
                folder / "run",
                services.endpoints_file,
                iterations=self._iterations,
                max_lag=one.max_lag,
            )
            with Trainer(spec, folder) as trainer, Disturber(services, one.seed or 0) as disturber:
                began = time.monotonic()
                while not trainer.has_ended() and time.monotonic() < max(began, self._until) + _PEACE_S:
                    if one.seed is not None and time.monotonic() < self._until:
                        tell_disturbance(disturber.disturb_when_due(trainer.process), time.monotonic() - began)
                    disturber.let_go_on(time.monotonic())
                    time.sleep(_POLL_S)
                one.seconds = time.monotonic() - began
                one.disturbances, one.resumes, one.error = disturber.done, trainer.resumes, trainer.error()
            if not one.error:
                weights = _first_address(services, "weights")
                one.record = RunRecord.read(folder / "run", folder / "batches", weights)
        return one


class Trainer:
    """The trainer's process over all its lives: resumed whenever it was killed.

    Args:
        spec: of the run.
        folder: gets the log of the trainer and the batches that its witness writes down.
    """

    def __init__(self, spec: Path, folder: Path) -> None:
        self.resumes = 0
        self._spec, self._folder = spec, folder
        self._state = folder / "run" / "state.json"
        self.process = self._start()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()

    def has_ended(self) -> bool:
        """Whether it has ended by itself; starts it again where it was killed."""
        if self.process.poll() is None:
            return False
        if self.process.returncode >= 0 or self._succeeded():
            return True
        self.resumes += 1
        self.process = self._start()
        return False

    def error(self) -> str:
        """Why it did not complete; empty when it did."""
        if self._succeeded():
            return ""
        end = self._log.read_text(errors="replace").strip().splitlines()[-3:]
        code = self.process.poll()
        return f"{'did not end' if code is None else f'exit code {code}'}: {' | '.join(end)} ({self._log})"

    @property
    def _log(self) -> Path:
        return self._folder / "trainer.log"

    def _succeeded(self) -> bool:
        return self._state.exists() and json.loads(self._state.read_text())["state"] == "SUCCEEDED"

    def _start(self) -> subprocess.Popen[bytes]:
        batches = self._folder / "batches"
        resume = ["--resume"] if self._state.exists() else []
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, observed_run.__file__, str(batches), "run", str(self._spec), *resume],
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
            )


def _first_address(services: LocalServices, name: str) -> str:
    """Of a service, once it has come back where it was just killed."""
    while not (replicas := read_endpoints(services.directory)[name]):
        time.sleep(_POLL_S)
    return str(replicas[0]["grpc"])


def recovery_seconds(one: Round) -> dict[str, list[float]]:
    """By kind of disturbance, seconds from each to the end of the next iteration, where there was one."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    ends = one.record.step_times if one.record else []
    for disturbance in one.disturbances:
        if later := [at for at in ends if at > disturbance.time]:
            found[disturbance.kind].append(later[0] - disturbance.time)
    return found


def tell_disturbance(done: Disturbance | None, seconds: float) -> None:
    if done is not None:
        print(f"  {seconds:6.1f} s  {done.kind}, {done.detail}", flush=True)


def tell_round(one: Round, normal: Round) -> None:
    lost, duplicated = one.lost_and_duplicated
    print(
        f"seed {one.seed}, max_lag {one.max_lag}: {'exact' if one.is_exact else 'NOT EXACT'}; {one.seconds:.0f} s, "
        f"{one.seconds / normal.seconds:.1f} times the undisturbed {normal.seconds:.0f} s; {len(one.disturbances)} "
        f"disturbances, {one.restarts} restarts, {one.resumes} resumes, "
        f"{one.record.redone if one.record else 0} iterations done again; {lost} samples lost, {duplicated} duplicated",
        flush=True,
    )
    for problem in [*filter(None, [one.error]), *one.differences[:10]]:
        print(f"  {'ended by' if problem == one.error else 'differs in'} {problem}", flush=True)


def print_table(rounds: list[Round]) -> None:
    recoveries = [recovery_seconds(one) for one in rounds]
    print(f"\n{'':<18} times  next iteration after, s: median, worst")
    for kind in KINDS:
        times = sum(disturbance.kind == kind for one in rounds for disturbance in one.disturbances)
        seconds = [value for one in recoveries for value in one[kind]]
        figures = f"{statistics.median(seconds):6.1f} {max(seconds):6.1f}" if seconds else ""
        print(f"{kind:<18} {times:5}  {figures}")


def summary(rounds: list[Round], chaos: Chaos, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    records = [one.record for one in rounds if one.record is not None]
    kinds = Counter(disturbance.kind for one in rounds for disturbance in one.disturbances)
    exact = sum(one.is_exact for one in rounds)
    return {
        "benchmark": "chaos",
        "ratio": float(bool(rounds) and exact == len(rounds) and all(one.disturbances for one in rounds)),
        "goal": 1.0,
        "seconds": round(seconds),
        "kills": {kind: kinds[kind] for kind in KINDS},
        "runs": len(rounds),
        "identical": exact,
        "lost": sum(one.lost_and_duplicated[0] for one in rounds),
        "duplicated": sum(one.lost_and_duplicated[1] for one in rounds),
        "iterations": args.iterations,
        "samples": sum(len(batch) for record in records for tries in record.batches.values() for batch in tries),
        "done_again": sum(record.redone for record in records),
        "restarts": sum(one.restarts for one in rounds),
        "resumes": sum(one.resumes for one in rounds),
        "slowdown": [round(one.seconds / chaos.undisturbed(one.max_lag).seconds, 2) for one in rounds],
        "seed": args.seed,
        "load_1m": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Runs in peace, then in chaos until the time is over, and prints the figures."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("SECONDS") or 1800))
    parser.add_argument("--seed", type=int, default=1, help="of the first disturbed run; each other has the next")
    parser.add_argument("--iterations", type=int, help="of each run; default: as fit into the time")
    parser.add_argument("--keep", action="store_true", help="keep the folder of all runs even where all went well")
    args = parser.parse_args()
    if args.iterations is None:
        fit = int(args.seconds / _SECONDS_OF_AN_ITERATION)
        args.iterations = min(_MOST_ITERATIONS, max(_FEWEST_ITERATIONS, fit))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # nobody stays behind, or stopped
    directory = Path(tempfile.mkdtemp(prefix="trimtab-chaos-"))
    began = time.monotonic()
    until = began + args.seconds
    chaos = Chaos(directory, args.iterations, until)
    rounds: list[Round] = []
    print(f"{args.iterations} iterations of {PROMPTS} prompts, {SAMPLES} samples each; everything is in {directory}")
    while not rounds or time.monotonic() + chaos.undisturbed(rounds[-1].max_lag).seconds < until:
        max_lag = len(rounds) % 2
        normal = chaos.undisturbed(max_lag)
        if normal.record is None:
            raise SystemExit(f"the undisturbed run at max_lag {max_lag} failed: {normal.error}")
        rounds.append(chaos.disturbed(max_lag, args.seed + len(rounds)))
        tell_round(rounds[-1], normal)
    print_table(rounds)
    result = summary(rounds, chaos, args, time.monotonic() - began)
    if result["ratio"] == 1.0 and not args.keep:
        shutil.rmtree(directory)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
