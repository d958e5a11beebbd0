"""The `trimtab` command: one line for each command here, its code loaded only when it is invoked.

Commands that compute (`run`, `quickstart`, `serve`, ...) live in packages of their own extras and are found by name, so
that this package never imports them and `trimtab --help` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Any

import click

from trimtab.errors import TrimtabError

__all__ = ["main"]


@dataclass(frozen=True)
class _Lazy:
    """Where a command lives, the extra that installs it, and its line in `trimtab --help`."""

    module: str
    extra: str
    help: str


COMMANDS = {
    "quickstart": _Lazy("trimtab_trainer.cli", "all", "The whole job on this machine: SFT, reward model, PPO-ptx."),
    "up": _Lazy("trimtab.cli.services", "", "Start the services on this machine; Ctrl-C drains and stops them."),
    "scale": _Lazy(
        "trimtab.cli.services", "", "Set the number of replicas of a service, local or of a release, during a run too."
    ),
    "status": _Lazy("trimtab.cli.status", "", "Services, replicas, versions, lag and queue; runs and their state."),
    "serve": _Lazy("trimtab.cli.services", "", "One service in the foreground: what a container runs."),
    "run": _Lazy("trimtab_trainer.cli", "trainer", "A run in the foreground from a run spec."),
    "runs": _Lazy("trimtab.cli.runs", "", "Start, list, watch, stop and resume runs of the trainer service."),
    "labeling": _Lazy(
        "trimtab.cli.labeling", "", "Projects, tasks, accounts and labels of people; draws answers to be ranked."
    ),
    "weights": _Lazy("trimtab.cli.weights", "", "List, import, export, promote and prune model versions."),
    "generate": _Lazy("trimtab.cli.calls", "", "Completions of prompts by the generation service."),
    "score": _Lazy("trimtab.cli.score", "", "Rewards by the reward service, of one pair or of a file of any length."),
    "logprobs": _Lazy("trimtab.cli.calls", "", "Per-token log-probs by the reference service."),
    "data": _Lazy(
        "trimtab_trainer.data.commands", "trainer", "Check, clean, split, describe and convert dataset files."
    ),
    "eval": _Lazy(
        "trimtab_trainer.eval.commands", "trainer", "Did a model get better: people, benchmarks, safety, cost."
    ),
    "report": _Lazy("trimtab_trainer.cli", "trainer", "Write report.html and report.json of a run's folder."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        try:
            module = importlib.import_module(lazy.module)
        except ModuleNotFoundError as error:
            if lazy.extra and error.name and error.name.split(".")[0] not in sys.stdlib_module_names:
                raise click.ClickException(
                    f"`trimtab {cmd_name}` needs {error.name}: pip install 'trimtab[{lazy.extra}]'"
                ) from error
            raise
        command: Any = getattr(module, cmd_name)
        return command  # type: ignore[no-any-return]  # found by name

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in COMMANDS.items()])


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="trimtab", prog_name="trimtab")
def trimtab() -> None:
    """Trimtab: RLHF by independent services: supervised fine-tuning, reward model, PPO-ptx."""


def main() -> None:
    """Entry point: an error of ours is one line on stderr and exit code 2; Ctrl-C is exit code 130."""
    try:
        code = trimtab.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except TrimtabError as error:
        click.echo(f"error: {error.message}", err=True)
        sys.exit(2)
    except OSError as error:  # a path that cannot be read or written
        click.echo(f"error: {error.filename or 'input or output'}: {error.strerror or error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
