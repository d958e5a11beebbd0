"""`trimtab quickstart`: services up, one run from start to end, a table and a report.

It is `trimtab up`, `StartRun` and `WatchRun` in one process, and nothing else: the run is the same process that a
cluster would start, and it talks to the same services.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
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
from trimtab_trainer.config import load_run_spec

__all__ = ["run_quickstart"]

_RUN = "quickstart"
_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {"generation": {"slots": 128, "deterministic": False}, "reward": {}, "reference": {}},
    "smollm2": {"generation": {"slots": 16}, "reward": {}, "reference": {}},
}


def run_quickstart(directory: Path, model: str, data_directory: Path | None, overrides: Sequence[str]) -> int:
    """Runs the whole job; returns the exit code: 0 when the run succeeded, 130 when it was stopped, 1 when it failed.

    Raises:
        ConfigError: data for smollm2 is missing, or an override is wrong.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    spec_file = _write_spec(directory, model, data_directory, overrides)
    console = Console()
    settings = {name: {**values, "threads": 1 if model == "tiny" else 2} for name, values in _SETTINGS[model].items()}
    began = time.monotonic()
    with LocalServices(directory, settings=settings, on_event=console.print) as services:
        console.print(
            f"services are live after {time.monotonic() - began:.1f} s; addresses in {services.endpoints_file}"
        )
        target = read_endpoints(directory)["trainer"][0]["grpc"]
        with Client(target) as client:
            ended = _run(client, spec_file, console)
    run_directory = directory / "runs" / _RUN
    if ended.state == pb.RUN_STATE_STOPPED:
        console.print("stopped; call the same command again to go on")
        return 130
    if ended.state != pb.RUN_STATE_SUCCEEDED:
        console.print(f"[red]failed:[/red] {ended.error}", markup=True)
        return 1
    written = json.loads((run_directory / "report.json").read_text())
    for name in ("report.html", "report.json"):
        (directory / name).write_bytes((run_directory / name).read_bytes())
    _print_table(console, written)
    console.print(f"{time.monotonic() - began:.0f} s in all; report: {directory / 'report.html'}")
    return 0


def _write_spec(directory: Path, model: str, data_directory: Path | None, overrides: Sequence[str]) -> Path:
    spec: dict[str, Any] = {"preset": model, "name": _RUN, "directory": str(directory / "runs" / _RUN)}
    if model == "smollm2":
        if data_directory is None:
            raise ConfigError(
                "--data: --model smollm2 trains on human data: name a folder with demonstrations.jsonl.gz, "
                "rankings.jsonl.gz, prompts.jsonl.gz and pretrain.jsonl.gz",
                field="data",
            )
        from trimtab_trainer.gguf import smollm2_folder

        spec["data_directory"] = str(data_directory.resolve())
        spec["model"] = str(smollm2_folder(directory / "smollm2"))
    elif data_directory is not None:
        raise ConfigError("--data: --model tiny writes its own data", field="data", value=data_directory)
    path = directory / "run.yaml"
    for override in overrides:
        key, _, value = override.partition("=")
        section = spec
        *parents, last = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = yaml.safe_load(value)
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    load_run_spec(path, endpoints_file=directory / "endpoints.json")  # a wrong one ends here, before anything starts
    return path


def _run(client: Client, spec_file: Path, console: Console) -> pb.Run:
    """Starts or resumes the run and follows it to its end; Ctrl-C asks it to stop and waits for its checkpoint."""
    text = spec_file.read_text()
    run = client.start_run(pb.StartRunRequest(name=_RUN, spec_yaml=text), timeout_s=120).run
    if run.state in (pb.RUN_STATE_STOPPED, pb.RUN_STATE_FAILED):
        try:
            run = client.resume_run(pb.ResumeRunRequest(name=_RUN)).run
            console.print("the run of this folder goes on where it was stopped")
        except FailedPrecondition as error:
            console.print(error.message)
    with RunDisplay(console) as display:
        while True:
            try:
                follow_run(client, _RUN, display)
                break
            except KeyboardInterrupt:
                console.print("stopping after this step; a checkpoint is saved")
                client.stop_run(pb.StopRunRequest(name=_RUN))
    return client.get_run(pb.GetRunRequest(name=_RUN)).run


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
    console.print(json.dumps({"seconds": {k: round(v, 1) for k, v in written["wall_seconds"].items()}}))
