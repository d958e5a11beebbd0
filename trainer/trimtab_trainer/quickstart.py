"""`trimtab quickstart`: services up, one run from start to end, a table and a report; with `--full` the proof.

It is `trimtab up`, `StartRun` and `WatchRun` in one process, and nothing else: the run is the same process that a
cluster would start, and it talks to the same services. `--full` makes the miniature's run once for each of three seeds
on which no choice was made, beside a base model four times as large, and sets the claims side by side.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Column, Table

from trimtab import Client
from trimtab.cli.display import RunDisplay, follow_run
from trimtab.errors import ConfigError, FailedPrecondition
from trimtab.local import LocalServices, read_endpoints
from trimtab.v1 import trainer_pb2 as pb
from trimtab_trainer.checkpoint import write_file_atomically
from trimtab_trainer.config import STAGES, load_run_spec, preset_path, with_override
from trimtab_trainer.report_comparison import pooled_claims, write_comparison

__all__ = ["quickstart_specs", "run_quickstart"]

_RUN = "quickstart"
_BASE_4X = "base-4x"
_FULL_SEEDS = (1, 2, 3)
"""Settings of the miniature were chosen on seed 0."""
_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {"generation": {"slots": 128}, "reward": {}, "reference": {}},
    "smollm2": {"generation": {"slots": 32}, "reward": {}, "reference": {}},
    "gemma3": {"generation": {"slots": 32, "max_sequence_tokens": 1024}, "reward": {}, "reference": {}},
}


def run_quickstart(
    directory: Path,
    model: str,
    data_directory: Path | None,
    overrides: Sequence[str],
    *,
    processes: int = 1,
    full: bool = False,
) -> int:
    """Runs the whole job; returns the exit code: 0 when it succeeded, 130 when it was stopped, 1 when it failed.

    `processes` of this machine train each run together.

    Raises:
        ConfigError: data is missing or not wanted, an override is wrong, or `full` was asked of another model than
            tiny.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what stops a job elsewhere stops it as Ctrl-C does
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    specs = quickstart_specs(directory, model, data_directory, full=full)
    files = {name: _write_spec(directory, name, spec, overrides) for name, spec in specs.items()}
    console = Console()
    spec = load_run_spec(next(iter(files.values())), endpoints_file=directory / "endpoints.json")
    common = {"threads": 1 if model == "tiny" else 2, "device": spec.device}
    settings = {name: {**values, **common} for name, values in _SETTINGS[model].items()}
    settings["trainer"] = {"launcher": {"kind": "local", "processes": processes}}
    began = time.monotonic()
    with LocalServices(directory, settings=settings, on_event=console.print) as services:
        console.print(
            f"services are live after {time.monotonic() - began:.1f} s; addresses in {services.endpoints_file}",
            soft_wrap=True,
        )
        target = read_endpoints(directory)["trainer"][0]["grpc"]
        with Client(target) as client:
            ended = _run_all(client, files, console, services)
    if ended.state == pb.RUN_STATE_STOPPED:
        console.print("stopped; call the same command again to go on")
        return 130
    if ended.state != pb.RUN_STATE_SUCCEEDED:
        console.print(f"[red]failed:[/red] {ended.error}", markup=True)
        return 1
    made = [directory / "runs" / name for name in files if name != _BASE_4X]
    if full:
        _write_full_report(directory, made, console)
    else:
        for name in ("report.html", "report.json"):
            (directory / name).write_bytes((made[0] / name).read_bytes())
        _print_table(console, json.loads((directory / "report.json").read_text()))
    console.print(
        f"{time.monotonic() - began:.0f} s in all; report: {directory / 'report.html'}; models: "
        f"{', '.join(str(run / 'models') for run in made)}",
        soft_wrap=True,
    )
    return 0


def quickstart_specs(
    directory: Path, model: str, data_directory: Path | None, *, full: bool
) -> dict[str, dict[str, Any]]:
    """Run specs by name, in the order in which they run, each a preset with what differs.

    Raises:
        ConfigError: data is missing or not wanted, or `full` was asked of another model than tiny.
    """
    if model != "tiny":
        return _on_human_data(directory, model, data_directory, full=full)
    if data_directory is not None:
        raise ConfigError("--data: --model tiny writes its own data", field="data", value=data_directory)
    if not full:
        return {_RUN: {"preset": model}}
    large = {"preset": model, "stages": ["pretrain"], "seed": 1, "miniature": {"seed": 1, "width": 128}}
    models = {"base_4x": {"model": str(directory / "runs" / _BASE_4X / "models" / "pretrain" / "model")}}
    specs: dict[str, dict[str, Any]] = {
        f"seed-{seed}": {"preset": model, "seed": seed, "miniature": {"seed": seed}, "evaluate": {"models": models}}
        for seed in _FULL_SEEDS
    }
    # One seed shows over-optimisation, and three would take the whole beyond 20 minutes.
    stages = {*load_run_spec(preset_path(model)).stages, "ppo_without_kl"}
    specs[f"seed-{_FULL_SEEDS[0]}"] |= {
        "stages": sorted(stages, key=STAGES.index),
        "evaluate": {"models": {**models, "ppo_without_kl": {"model": "ppo_without_kl"}}},
    }
    return {_BASE_4X: large, **specs}


def _on_human_data(
    directory: Path, model: str, data_directory: Path | None, *, full: bool
) -> dict[str, dict[str, Any]]:
    if full:
        raise ConfigError("--full: it is the miniature's proof; allowed with --model tiny", field="full", value=model)
    if data_directory is None:
        raise ConfigError(
            f"--data: --model {model} trains on human data: name a folder with demonstrations.jsonl.gz, "
            "comparisons.jsonl.gz, prompts.jsonl.gz and pretrain.jsonl.gz",
            field="data",
        )
    from trimtab_trainer.gguf import gemma3_folder, smollm2_folder

    make = {"smollm2": smollm2_folder, "gemma3": gemma3_folder}[model]
    folder = str(make(directory / model))
    return {_RUN: {"preset": model, "data_directory": str(data_directory.resolve()), "model": folder}}


def _write_spec(directory: Path, name: str, spec: Mapping[str, Any], overrides: Sequence[str]) -> Path:
    written: dict[str, Any] = {**spec, "name": name, "directory": str(directory / "runs" / name)}
    for override in overrides:
        written = with_override(written, override)
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(written, sort_keys=False))
    load_run_spec(path, endpoints_file=directory / "endpoints.json")  # a wrong one ends here, before anything starts
    return path


def _run_all(client: Client, files: Mapping[str, Path], console: Console, services: LocalServices) -> pb.Run:
    """Runs one after another up to the first that does not succeed; returns the last."""
    ended = pb.Run()
    for name, file in files.items():
        ended = _run(client, name, file, console, services)
        if ended.state != pb.RUN_STATE_SUCCEEDED:
            break
    return ended


def _run(client: Client, name: str, spec_file: Path, console: Console, services: LocalServices) -> pb.Run:
    """Starts or resumes a run and follows it to its end.

    Ctrl-C asks it to stop and waits for its checkpoint; a second one ends everything at once.
    """
    text = spec_file.read_text()
    try:
        run = client.start_run(pb.StartRunRequest(name=name, spec_yaml=text), timeout_s=120).run
    except FailedPrecondition as error:
        raise FailedPrecondition(
            f"--dir: {spec_file.parent} holds a run with other settings; take another folder, or call it with the same "
            f"options to go on ({error.message})",
            field="dir",
            value=spec_file.parent,
        ) from error
    if run.state in (pb.RUN_STATE_STOPPED, pb.RUN_STATE_FAILED):
        try:
            run = client.resume_run(pb.ResumeRunRequest(name=name)).run
            console.print(f"run {name} of this folder goes on where it was stopped")
        except FailedPrecondition as error:
            console.print(error.message)
    asked = False
    with RunDisplay(console) as display:
        while True:
            try:
                follow_run(client, name, display)
                break
            except KeyboardInterrupt:
                if asked:
                    services.end_now()
                    raise
                asked = True
                console.print("stopping after this step; a checkpoint is saved. Ctrl-C again ends everything at once")
                client.stop_run(pb.StopRunRequest(name=name))
    return client.get_run(pb.GetRunRequest(name=name)).run


def _write_full_report(directory: Path, runs: Sequence[Path], console: Console) -> None:
    """The runs side by side: DIR/report.html, and DIR/report.json with the claims over all of them."""
    write_comparison(runs, directory / "report.html")
    reports = [json.loads((run / "report.json").read_text()) for run in runs]
    claims = pooled_claims([report["claims"] for report in reports])
    share = sum(claim.holding for claim in claims) / sum(claim.runs for claim in claims)
    written = {
        "runs": [str(run) for run in runs],
        "claims": [asdict(claim) for claim in claims],
        "share_of_claims_that_hold": share,
        "wall_seconds": {run.name: report["wall_seconds"]["all"] for run, report in zip(runs, reports, strict=True)},
    }
    write_file_atomically(directory / "report.json", json.dumps(written, indent=1) + "\n")
    table = Table("claim", "paper", "measured", "holds", title=f"claims over {len(runs)} seeds", show_edge=False)
    for claim in claims:
        measured = f"{claim.measured:.3f} ({claim.low:.3f} to {claim.high:.3f})"
        table.add_row(claim.claim, claim.paper, measured, f"{claim.holding} of {claim.runs}")
    console.print(table)


def _print_table(console: Console, written: dict[str, Any]) -> None:
    models = list(written["models"])
    table = Table("", *(Column(name, justify="right") for name in models), title="held-out prompts", show_edge=False)
    for key in dict.fromkeys(key for figures in written["models"].values() for key in figures):
        figures = [written["models"][name].get(key) for name in models]
        table.add_row(key.replace("_", " "), *("" if one is None else f"{one['value']:.3f}" for one in figures))
    console.print(table)
    claims = Table("claim", "paper", "measured", "holds", title="claims of InstructGPT", show_edge=False)
    for claim in written["claims"]:
        interval = f" ({claim['low']:.3f} to {claim['high']:.3f})" if claim["low"] is not None else ""
        measured = f"{claim['measured']:.3f}{interval}"
        claims.add_row(claim["claim"], claim["paper"], measured, "yes" if claim["holds"] else "no")
    if written["claims"]:
        console.print(claims)
    seconds = ", ".join(f"{stage} {spent:.0f}" for stage, spent in written["wall_seconds"].items() if stage != "all")
    console.print(f"seconds: {seconds}", soft_wrap=True)
