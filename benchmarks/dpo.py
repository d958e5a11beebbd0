"""DPO beside PPO-ptx in the miniature: the same start, the same rankings, at several betas and so at several KLs.

For each seed one run of the preset `tiny_dpo` trains a reward model, PPO-ptx on it, and DPO at the first beta on the
rankings that the reward model learnt from; a run of `dpo` and `evaluate` alone follows for each other beta. All answer
the same held-out prompts. `trimtab report` sets the runs of a seed side by side. About 5 minutes a seed on 2 cores of
their own; with --dir the folder is kept, and a benchmark that was interrupted goes on.

    python benchmarks/dpo.py [--seeds 1 2 3] [--betas 0.1 0.15 0.2] [--dir DIR]

Prints the table, and as the last line one JSON object: `ratio` is DPO's win rate over PPO-ptx, by gold score, at the
beta whose KL is nearest to PPO-ptx's, as a mean over the seeds. The goal is 0.5: at equal KL neither is preferred.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workloads.miniature_runs import SETTINGS, models_of, run

from trimtab.local import LocalServices
from trimtab_trainer.claim_table import preference
from trimtab_trainer.claims import WinRate
from trimtab_trainer.evaluate import read_evaluated

SAMPLES = 2000
GOAL = 0.5


def whole_run(directory: Path, seed: int, beta: float) -> dict[str, Any]:
    """Spec of every stage, with models of that seed in a world of that seed."""
    return {
        "preset": "tiny_dpo",
        "name": directory.name,
        "directory": str(directory),
        "seed": seed,
        "miniature": {"seed": seed},
        "dpo": {"beta": beta},
        "evaluate": {"models": {"base": None, "few_shot": None}},
    }


def dpo_alone(directory: Path, whole: Path, seed: int, beta: float) -> dict[str, Any]:
    """Spec of DPO at another beta on the models and rankings of a whole run."""
    sft, ppo, reward_model = models_of(whole, "sft", "ppo", "reward_model")
    return {
        **whole_run(directory, seed, beta),
        "stages": ["dpo", "evaluate"],
        "reward_model": {"rankings": str(whole / "data" / "rankings.jsonl")},
        "ppo": {"policy": sft, "reward_model": reward_model},
        "dpo": {"policy": sft, "beta": beta, "cache": str(whole / "reference_logprobs")},
        "evaluate": {"models": {"base": None, "few_shot": None, "sft": {"model": sft}, "ppo_ptx": {"model": ppo}}},
    }


def measured(directory: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Of PPO-ptx and DPO of a run: KL to their start, gold, pretraining loss, and who is preferred, over prompts."""
    models = {name: read_evaluated(directory, name) for name in ("sft", "ppo_ptx", "dpo")}

    def over(ours: str, theirs: str) -> dict[str, float]:
        found: WinRate = preference(models[ours], models[theirs], samples=SAMPLES, seed=seed)[1]
        return {"value": found.value, "low": found.low, "high": found.high}

    rows: dict[str, dict[str, Any]] = {
        name: {
            **{key: dict(models[name].figures[key]) for key in ("kl", "gold", "pretraining_loss")},
            "over_sft": over(name, "sft"),
        }
        for name in ("ppo_ptx", "dpo")
    }
    rows["dpo"]["over_ppo_ptx"] = over("dpo", "ppo_ptx")
    return rows


def cell(figure: dict[str, float] | None, digits: int = 3) -> str:
    if figure is None:
        return ""
    value, low, high = (f"{figure[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| seed | | KL to SFT, nats of an answer | gold | pretraining loss | over SFT | over PPO-ptx |",
        "| --- " * 7 + "|",
    ]
    for row in rows:
        name = "PPO-ptx" if row["beta"] is None else f"DPO, beta {row['beta']:g}"
        loss = f"{row['pretraining_loss']['value']:.3f}"
        figures = [cell(row["kl"], 2), cell(row["gold"]), loss, cell(row["over_sft"]), cell(row.get("over_ppo_ptx"))]
        lines.append(f"| {row['seed']} | {name} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def compare(directory: Path, seeds: Sequence[int], betas: Sequence[float]) -> list[dict[str, Any]]:
    """Runs everything; a row for PPO-ptx of each seed, and one for each beta."""
    rows: list[dict[str, Any]] = []
    with LocalServices(directory / "services", settings=SETTINGS) as services:
        for seed in seeds:
            whole = directory / f"seed-{seed}"
            run(whole_run(whole, seed, betas[0]), services.endpoints_file)
            found = {betas[0]: measured(whole, seed)}
            for beta in betas[1:]:
                alone = directory / f"seed-{seed}-beta-{beta:g}".replace(".", "_")
                run(dpo_alone(alone, whole, seed, beta), services.endpoints_file)
                found[beta] = measured(alone, seed)
            rows.append({"seed": seed, "beta": None, **found[betas[0]]["ppo_ptx"]})
            rows += [{"seed": seed, "beta": beta, **found[beta]["dpo"]} for beta in sorted(found, reverse=True)]
    return rows


def nearest(rows: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The DPO of a seed whose KL is nearest to PPO-ptx's."""
    of_seed = [row for row in rows if row["seed"] == seed]
    target = next(row["kl"]["value"] for row in of_seed if row["beta"] is None)
    return min((row for row in of_seed if row["beta"] is not None), key=lambda row: abs(row["kl"]["value"] - target))


def result(rows: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """What the last line says of the rows."""
    at_equal_kl = {seed: nearest(rows, seed) for seed in seeds}
    return {
        "benchmark": "dpo",
        "ratio": round(statistics.fmean(row["over_ppo_ptx"]["value"] for row in at_equal_kl.values()), 3),
        "goal": GOAL,
        "beta_at_nearest_kl": {seed: row["beta"] for seed, row in at_equal_kl.items()},
        "rows": rows,
    }


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--betas", type=float, nargs="+", default=[0.1, 0.15, 0.2])
    parser.add_argument("--dir", type=Path, help="keeps the runs there")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        rows = compare((args.dir or Path(temporary)).resolve(), args.seeds, args.betas)
    print(table(rows))
    print(json.dumps({**result(rows, args.seeds), "wall_s": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
