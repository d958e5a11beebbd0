"""The commands of the trainer: `trimtab run`, `quickstart`, `report`. Loaded when one of them is invoked."""

from __future__ import annotations

import json
import os
import shlex
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import click

from trimtab import Client
from trimtab.cli.connect import credentials_of
from trimtab.errors import ConfigError
from trimtab_models.memory import keep_freed_memory
from trimtab_trainer.config import RunSpec, labeling_project, load_run_spec
from trimtab_trainer.places import Place
from trimtab_trainer.preflight import check_inputs, check_services

__all__ = ["quickstart", "report", "run"]

EXIT_STOPPED = 130


@click.command()
@click.argument("spec_file", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, such as ppo.iterations=20."
)
@click.option("--resume", is_flag=True, help="Go on where the run of this folder was stopped or killed.")
@click.option("--check", is_flag=True, help="Only check the spec, the files and the labeling projects that it names.")
@click.option("--offline", is_flag=True, help="With --check: ask no service; labeling projects are not checked.")
@click.option(
    "--check-spec", is_flag=True, help="Only check the spec itself, not the files that it names: for a run elsewhere."
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes of this machine that train together, with device cuda each on a GPU. On several machines each is "
    "told its place by the environment variables of torchrun.",
)
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="The run's own folder; overrides the spec.")
@click.option("--name", help="Name of the run; overrides the spec.")
@click.option(
    "--endpoints", type=click.Path(path_type=Path), help="endpoints.json, for services that the spec does not name."
)
@click.option("--report-to", help="host:port of a trainer service that gets the events.")
@click.option("--report-token-file", type=click.Path(path_type=Path), help="Bearer token for it.")
@click.option("--report-tls", is_flag=True, help="Reach it over TLS, with the system's roots.")
@click.option("--report-ca-file", type=click.Path(path_type=Path), help="PEM roots for it; turns TLS on.")
@click.option("--report-certificate-file", type=click.Path(path_type=Path), help="PEM client certificate, for mTLS.")
@click.option("--report-key-file", type=click.Path(path_type=Path), help="PEM key of the client certificate.")
@click.option("--report-insecure", is_flag=True, help="Allow that token in plaintext beyond this host.")
def run(
    spec_file: Path,
    overrides: tuple[str, ...],
    resume: bool,
    check: bool,
    offline: bool,
    check_spec: bool,
    processes: int,
    directory: Path | None,
    name: str | None,
    endpoints: Path | None,
    report_to: str | None,
    report_token_file: Path | None,
    report_tls: bool,
    report_ca_file: Path | None,
    report_certificate_file: Path | None,
    report_key_file: Path | None,
    report_insecure: bool,
) -> int:
    """Run the stages of SPEC_FILE in the foreground. Ctrl-C ends the step, saves a checkpoint and stops, resumable."""
    place = Place.of(os.environ, processes=processes)
    if place is not None:
        os.environ.update(place.settings(os.environ))
        if place.rank:  # rank 0 has the spec, the data and the services
            keep_freed_memory()
            from trimtab_trainer.ranks import follow

            return follow(place)
    if offline and not check:
        raise ConfigError("offline: only with --check", field="offline")
    given = [*overrides]
    if directory is not None:
        given.append(f"directory={json.dumps(str(directory))}")
    if name is not None:
        given.append(f"name={json.dumps(name)}")
    spec = load_run_spec(spec_file, given, endpoints_file=endpoints)
    if check_spec:
        check_services(spec)
    else:
        check_inputs(spec)
    if check or check_spec:
        _tell_labels(spec, ask=not (check_spec or offline))
        click.echo(f"{spec_file}: all good: {', '.join(spec.stages)}")
        return 0
    if spec.services is not None:  # before torch: spinning OpenMP threads would take the services' cores from them
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    from trimtab_trainer.context import Orders
    from trimtab_trainer.experiment_logs import experiment_logs
    from trimtab_trainer.ranks import leading
    from trimtab_trainer.remote import RemoteSink
    from trimtab_trainer.report import write_report
    from trimtab_trainer.reporter import Reporter, RunState
    from trimtab_trainer.run import run as execute

    orders = Orders()
    follower = [sys.executable, "-m", "trimtab", "run", str(spec_file)] if processes > 1 else None
    sink = None
    if report_to is not None:
        credentials = credentials_of(
            token_file=report_token_file,
            tls=report_tls,
            ca_file=report_ca_file,
            certificate_file=report_certificate_file,
            key_file=report_key_file,
            insecure=report_insecure,
        )
        sink = RemoteSink(Client(report_to, **credentials), spec.name, spec.directory, orders)
    try:
        with (
            experiment_logs(spec) as logs,
            Reporter(
                spec.directory,
                sinks=[*([sink] if sink else []), *logs],
                on_replicas=sink.take_replicas if sink else None,
            ) as reporter,
            leading(place, orders, spec, start=follower) if place is not None else nullcontext(),
        ):
            write = partial(write_report, warn=reporter.warn)
            outcome = execute(spec, resume=resume, reporter=reporter, orders=orders, on_success=write)
    finally:
        if sink is not None:
            sink.close()
    if outcome.state is RunState.STOPPED:
        if report_to is not None:
            click.echo(f"stopped; go on with `trimtab runs resume {spec.name}`")
        else:
            again = [argument for argument in sys.argv[1:] if argument != "--resume"]
            click.echo(f"stopped; go on with `trimtab {shlex.join([*again, '--resume'])}`")
        return EXIT_STOPPED
    click.echo(f"report: {spec.directory / 'report.html'}")
    return 0


def _tell_labels(spec: RunSpec, *, ask: bool) -> None:
    """Prints what labeling projects have for a run, or that they are not asked about."""
    labeled = [(key, path) for key, path in spec.data_paths() if labeling_project(path) is not None]
    if labeled and ask:
        from trimtab_trainer.data.labeling import count_labels  # torch: heavy

        count_labels(spec, tell=click.echo)
        return
    for key, path in labeled:
        click.echo(f"{key}: {path} is not asked about here; the run asks when it begins")


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=Path("quickstart"), show_default=True)
@click.option("--model", type=click.Choice(["tiny", "smollm2", "gemma3"]), default="tiny", show_default=True)
@click.option("--data", "data_directory", type=click.Path(path_type=Path), help="Folder with human data; not for tiny.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the preset.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes of this machine that train together, with device cuda each on a GPU.",
)
@click.option("--full", is_flag=True, help="The proof: tiny over three seeds, beside a base four times as large.")
def quickstart(
    directory: Path,
    model: str,
    data_directory: Path | None,
    overrides: tuple[str, ...],
    processes: int,
    full: bool,
) -> int:
    """The whole job on this machine: start the services, SFT -> reward model -> PPO-ptx, write DIR/report.html.

    tiny: a model of 0.16 M parameters in a closed world that the program writes, about 5 minutes on 2 cores. smollm2
    and gemma3: SmolLM2-135M-Instruct or Gemma 3 270M (pretrained only) on human data, an hour or two. --full: about 20
    minutes. Called again in the same folder, it goes on where it was stopped.
    """
    from trimtab_trainer.quickstart import run_quickstart

    return run_quickstart(directory, model, data_directory, overrides, processes=processes, full=full)


@click.command()
@click.argument("directories", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("comparison.html"),
    show_default=True,
    help="The page on several runs.",
)
def report(directories: tuple[Path, ...], output: Path) -> None:
    """Write report.html and report.json of each run in DIRECTORIES again; of several also a page that compares them."""
    from trimtab_trainer.report import write_report
    from trimtab_trainer.report_comparison import write_comparison

    for directory in directories:
        write_report(directory)
        click.echo(f"{directory / 'report.html'}")
    if len(directories) > 1:
        write_comparison(directories, output)
        click.echo(f"{output}")
