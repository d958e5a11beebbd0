"""What `max_lag` brings and what it costs, in the miniature: throughput and learning against lag.

One run of the preset `tiny` makes an SFT model and a reward model; PPO-ptx then starts from them once for each lag,
with the same prompts and seeds and no bound on KL. Sampler and trainer have a thread each: two cores show the overlap.

    python benchmarks/lag.py [--seed 1] [--lags 0 1 2 4 8] [--iterations 30] [--dir DIR] [--plot lag.png]

Prints the table, draws the plot, and as the last line one JSON object. `ratio` is how much of the possible gain the
best lag has: at lag 0 an iteration takes sampling and the rest in turn; beside each other it cannot take less than the
longer of them. With --dir the folder is kept, and a benchmark that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workloads.miniature_runs import SETTINGS, models_of, run

from trimtab.local import LocalServices
from trimtab_trainer.claim_table import preference
from trimtab_trainer.evaluate import read_evaluated
from trimtab_trainer.reporter import step_metrics

GOAL = 0.9
SAMPLES = 2000
WARM_UP = 3
"""First iterations that do not count: the value model trains alone, and nothing is old yet."""

Steps = Sequence[Mapping[str, float]]


def start_spec(directory: Path, seed: int) -> dict[str, Any]:
    """Everything before PPO, of a world and models of that seed."""
    return {
        "preset": "tiny",
        "name": directory.name,
        "directory": str(directory),
        "seed": seed,
        "miniature": {"seed": seed},
        "stages": ["pretrain", "sft", "collect_rankings", "reward_model"],
    }


def lag_spec(directory: Path, start: Path, seed: int, lag: int, iterations: int) -> dict[str, Any]:
    """PPO-ptx at one lag from the models of `start`, and its evaluation."""
    sft, reward_model = models_of(start, "sft", "reward_model")
    return {
        **start_spec(directory, seed),
        "stages": ["ppo", "evaluate"],
        "ppo": {
            "policy": sft,
            "reward_model": reward_model,
            "max_lag": lag,
            "iterations": iterations,
            "kl_stop": None,
            "checkpoint_every": iterations,
        },
        "evaluate": {
            "models": {name: None for name in ("base", "few_shot", "ppo", "ptx_control")}
            | {"sft": {"model": sft}, "ppo_ptx": {"model": "ppo"}}
        },
    }


def steps_of(directory: Path) -> Steps:
    """Metrics of every iteration of PPO."""
    return list(step_metrics(directory / "events.jsonl", "ppo").values())


def seconds(step: Mapping[str, float]) -> float:
    """Wall time of an iteration."""
    return step["completion_tokens"] * step["sequences_sampled"] / step["tokens_per_second"]


def measured(directory: Path, lag: int, seed: int) -> dict[str, Any]:
    """One row of the table: times as medians over the steady iterations, learning on held-out prompts."""
    steps = steps_of(directory)
    steady = steps[WARM_UP + lag : len(steps) - lag] or steps[WARM_UP:]
    sft, ppo = (read_evaluated(directory, name) for name in ("sft", "ppo_ptx"))
    over_sft = preference(ppo, sft, samples=SAMPLES, seed=seed)[1]
    return {
        "lag": lag,
        "iteration_s": statistics.median(map(seconds, steady)),
        "waiting_for_rollouts_s": statistics.median(step["seconds_rollouts"] for step in steady),
        "mean_lag": statistics.fmean(step["mean_lag"] for step in steady),
        "mixed_fraction": statistics.fmean(step["mixed_fraction"] for step in steady),
        "importance_weight": statistics.fmean(step["importance_weight"] for step in steady),
        "over_sft": {"value": over_sft.value, "low": over_sft.low, "high": over_sft.high},
        "gold": dict(ppo.figures["gold"]),
        "kl": dict(ppo.figures["kl"]),
    }


def compare(directory: Path, seed: int, lags: Sequence[int], iterations: int) -> list[dict[str, Any]]:
    """Runs everything; a row for each lag."""
    start = directory / "start"
    with LocalServices(directory / "services", settings=SETTINGS) as services:
        run(start_spec(start, seed), services.endpoints_file)
        for lag in lags:
            run(lag_spec(directory / f"lag-{lag}", start, seed, lag, iterations), services.endpoints_file)
    return [measured(directory / f"lag-{lag}", lag, seed) for lag in lags]


def possible_gain(row: Mapping[str, Any]) -> float:
    """Largest gain from overlap, of the row at lag 0."""
    sampling, whole = row["waiting_for_rollouts_s"], row["iteration_s"]
    return whole / max(sampling, whole - sampling)


def result(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the last line says of the rows."""
    first, *others = rows
    gains = {row["lag"]: first["iteration_s"] / row["iteration_s"] for row in others}
    best = max(gains, key=lambda lag: gains[lag])
    return {
        "benchmark": "lag",
        "ratio": round(gains[best] / possible_gain(first), 3),
        "goal": GOAL,
        "best_lag": best,
        "gain": {lag: round(gain, 3) for lag, gain in gains.items()},
        "possible_gain": round(possible_gain(first), 3),
        "rows": rows,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| max_lag | iteration, s | of it waiting for rollouts | gain | mean lag | mixed | over SFT | gold | KL |",
        "| --- " * 9 + "|",
    ]
    for row in rows:
        over, gold, kl = ({key: f"{of[key]:.3f}" for key in of} for of in (row["over_sft"], row["gold"], row["kl"]))
        cells = [
            f"{row['lag']}",
            f"{row['iteration_s']:.2f}",
            f"{row['waiting_for_rollouts_s']:.2f}",
            f"{rows[0]['iteration_s'] / row['iteration_s']:.2f}",
            f"{row['mean_lag']:.2f}",
            f"{row['mixed_fraction']:.2f}",
            *(f"{one['value']} ({one['low']} to {one['high']})" for one in (over, gold)),
            kl["value"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(directory: Path, rows: Sequence[Mapping[str, Any]], plot: Path) -> None:
    """Throughput against lag, what was learnt against lag, and gold over time at each lag."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (speed, learnt, course) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    lags = [row["lag"] for row in rows]
    places = range(len(rows))
    speed.bar(places, [rows[0]["iteration_s"] / row["iteration_s"] for row in rows], color="#2a6f97")
    speed.axhline(possible_gain(rows[0]), color="#888888", linestyle=":", label="all that overlap can bring")
    speed.set(ylabel="iterations a second, over those at 0", title="Throughput")
    speed.legend()
    for key, colour, aside in (("over_sft", "#2a6f97", -0.1), ("gold", "#bc6c25", 0.1)):
        values = [row[key]["value"] for row in rows]
        spread = [
            [row[key]["value"] - row[key]["low"] for row in rows],
            [row[key]["high"] - row[key]["value"] for row in rows],
        ]
        label = {"over_sft": "preferred to SFT, by gold score", "gold": "gold score"}[key]
        learnt.errorbar(
            [place + aside for place in places], values, yerr=spread, fmt="o", capsize=3, color=colour, label=label
        )
    learnt.set(title="Learning, after equal iterations")
    learnt.margins(y=0.3)
    learnt.legend(loc="upper left")
    for axes in (speed, learnt):
        axes.set(xlabel="max_lag", xticks=list(places), xticklabels=lags)
    for row, shade in zip(rows, pyplot.colormaps["viridis"]([n / len(rows) for n in places]), strict=True):
        steps = steps_of(directory / f"lag-{row['lag']}")
        times = [sum(map(seconds, steps[: number + 1])) for number in range(len(steps))]
        smooth = [statistics.fmean(step["gold"] for step in steps[max(0, n - 2) : n + 3]) for n in range(len(steps))]
        course.plot(times, smooth, color=shade, label=f"max_lag {row['lag']}")
    course.set(
        xlabel="seconds of PPO", ylabel="gold score of rollouts, mean of 5 iterations", title="Learning over time"
    )
    course.legend()
    plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(plot, dpi=120)


def main() -> None:
    """Runs the comparison, prints and draws it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 1, 2, 4, 8])
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--dir", type=Path, help="keeps the runs there")
    parser.add_argument("--plot", type=Path, default=Path("lag.png"))
    args = parser.parse_args()
    if args.lags[:1] != [0] or len(args.lags) < 2:
        parser.error("--lags: begin with 0, and give another")
    with tempfile.TemporaryDirectory() as temporary:
        directory = (args.dir or Path(temporary)).resolve()
        rows = compare(directory, args.seed, args.lags, args.iterations)
        draw(directory, rows, args.plot)
    print(table(rows))
    print(json.dumps(result(rows)))


if __name__ == "__main__":
    main()
