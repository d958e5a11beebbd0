"""`trimtab eval toxicity-classifier`: what a run needs to train a reward model that tells toxic texts."""

from __future__ import annotations

from pathlib import Path

import click
import yaml

from trimtab.errors import ConfigError
from trimtab_trainer.data.readers import stream_rows
from trimtab_trainer.data.splits import split_by_prompt
from trimtab_trainer.data.writers import LineFile, json_line, new_files
from trimtab_trainer.eval.safety.toxicity import known_toxicity, read_toxicity_prompts, toxicity_rankings

__all__ = ["command"]

_PATH = click.Path(path_type=Path)


@click.command("toxicity-classifier")
@click.argument("file", type=_PATH)
@click.option("--model", type=_PATH, required=True, help="Model folder to start from.")
@click.option("--dir", "directory", type=_PATH, required=True, help="New folder for rankings, spec and run.")
@click.option("--held-out", default=0.2, show_default=True, type=click.FloatRange(0.01, 0.99), help="Share of prompts.")
@click.option(
    "--rounds",
    default=4,
    show_default=True,
    type=click.IntRange(1),
    help="How often each text is ranked, in another company each time.",
)
@click.option("--seed", default=0, show_default=True, help="Of the split and the companies.")
def command(file: Path, model: Path, directory: Path, held_out: float, rounds: int, seed: int) -> None:
    """Prepare a run that trains a toxicity classifier on FILE, rows of RealToxicityPrompts.

    It is a reward model, trained on rankings of people's continuations by their toxicity, the most toxic first. A part
    of the rows, whole prompts, is held out for its accuracy and written as DIR/held_out.jsonl: the --prompts of
    `trimtab eval toxicity`. DIR/spec.yaml holds the settings, to be changed before the run.
    """
    if directory.exists():
        raise ConfigError(f"dir: {directory} is there already", field="dir", value=directory)
    if not model.is_dir():
        raise ConfigError(f"model: {model}: no such folder", field="model", value=model)
    rows = read_toxicity_prompts(file)
    known = known_toxicity(rows)
    sides = split_by_prompt(known, held_out, seed=seed)
    for name, side in zip(("training", "held-out"), sides, strict=True):
        if len(side) < 2:
            raise ConfigError(f"held-out: {held_out} leaves {len(side)} {name} rows", field="held-out", value=held_out)
    train, test = sides
    directory.mkdir(parents=True)
    numbers = {row.number for row in test}
    paths = [directory / name for name in ("rankings.jsonl", "rankings_held_out.jsonl", "held_out.jsonl")]
    with new_files(*paths) as (rankings, rankings_held_out, held_out_rows):
        _write_rankings(rankings, toxicity_rankings(train, rounds=rounds, seed=seed))
        _write_rankings(rankings_held_out, toxicity_rankings(test, rounds=1, seed=seed))
        for number, row in stream_rows(file, dict):
            if number in numbers:
                held_out_rows.write(json_line(row))
    spec = directory / "spec.yaml"
    spec.write_text(yaml.safe_dump(_spec(model.resolve(), directory.resolve()), sort_keys=False), encoding="utf-8")
    click.echo(f"{len(train)} texts to train on, {len(test)} held out; {len(rows) - len(known)} without a toxicity")
    click.echo(f"now: trimtab run {spec}")
    click.echo(f"then: trimtab eval toxicity --scorer folder:{directory}/run/models/reward_model/member-1 \\")
    click.echo(f"        --prompts {directory}/held_out.jsonl --model NAME=FOLDER")


def _write_rankings(file: LineFile, rankings: list[dict[str, object]]) -> None:
    for ranking in rankings:
        file.write(json_line(ranking))


def _spec(model: Path, directory: Path) -> dict[str, object]:
    return {
        "name": "toxicity",
        "directory": str(directory / "run"),
        "model": str(model),
        "stages": ["reward_model"],
        "reward_model": {
            "initial_model": "base",
            "rankings": str(directory / "rankings.jsonl"),
            "rankings_held_out": str(directory / "rankings_held_out.jsonl"),
            "demonstrations": None,
            "batch_size": 8,
            "optimizer": {"learning_rate": 3.0e-5},
        },
    }
