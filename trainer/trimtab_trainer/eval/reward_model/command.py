"""`trimtab eval reward-model`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from trimtab.cli.connect import async_client_of, connection_options
from trimtab.errors import ConfigError, DataError
from trimtab_trainer.eval.options import Output, findings_options
from trimtab_trainer.eval.reward_model.data import RankingFormat

if TYPE_CHECKING:
    from trimtab_trainer.data import Ranking
    from trimtab_trainer.eval.reward_model.agreement import Judged
    from trimtab_trainer.eval.reward_model.data import Item
    from trimtab_trainer.eval.reward_model.scores import Scored, Scorer
    from trimtab_trainer.eval.reward_model.training import Folds

__all__ = ["command"]

_PATH = click.Path(path_type=Path)


@click.command("reward-model")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=_PATH)
@click.option("--model", type=_PATH, help="Folder of the reward model.  [default: the service of --target or --dir]")
@click.option("--served-model", default="", help="Reward model of the service by name.  [default: the service's own]")
@click.option(
    "--format", "kind", type=click.Choice(get_args(RankingFormat)), default="trimtab", show_default=True,
    help="Of the rows: all forms that the trainer reads, comparisons too, or LLMBar's.",
)  # fmt: skip
@click.option("--held-out-groups", multiple=True, metavar="GROUP", help="Labelers not trained on; may be given again.")
@click.option(
    "--held-out-fraction", type=click.FloatRange(0, 1, min_open=True),
    help="Only the prompts that a run with this reward_model.held_out_fraction held out.  [default: all]",
)  # fmt: skip
@click.option("--split-seed", type=int, default=0, show_default=True, help="Seed of that run.")
@click.option("--gold", type=click.Choice(["miniature"]), help="Prompts whose gold score is known, for the oracle.")
@click.option(
    "--too-long", type=click.Choice(["error", "leave_out"]), default="error", show_default=True,
    help="A ranking with an answer beyond the model's context: an error, or left out and counted.",
)  # fmt: skip
@click.option("--folds", "folds_directory", type=_PATH, metavar="DIR", help="Run with stage reward_model_folds.")
@click.option("--folds-from", type=_PATH, metavar="MODEL", help="Where there is none in --folds: trains it from MODEL.")
@click.option("--fold-count", type=click.IntRange(2, 20), default=5, show_default=True, help="Parts of the labelers.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Of the spec of --folds-from's run.")
@click.option("--device", default="cpu", show_default=True, help="Of --model: cpu, cuda or cuda:N.")
@click.option("--micro-batch-tokens", type=click.IntRange(1), default=8192, show_default=True, help="Of --model.")
@click.option("--skip-bad-rows", type=click.IntRange(0), default=0, show_default=True, help="Tolerated in each file.")
@connection_options
@findings_options("reward-model")
def command(
    files: tuple[Path, ...],
    model: Path | None,
    served_model: str,
    kind: RankingFormat,
    held_out_groups: tuple[str, ...],
    held_out_fraction: float | None,
    split_seed: int,
    gold: str | None,
    too_long: str,
    folds_directory: Path | None,
    folds_from: Path | None,
    fold_count: int,
    overrides: tuple[str, ...],
    device: str,
    micro_batch_tokens: int,
    skip_bad_rows: int,
    resamples: int,
    seed: int,
    output: Output,
    **connection: Any,
) -> None:
    """A reward model against the rankings of labelers in FILE....

    How often it orders a pair as labelers did: all of them, held-out groups of them, by source and group; beside it the
    rule "the longer answer wins", how often labelers agree with each other, its calibration, with --gold the oracle,
    and with --folds the accuracy on labelers whom the model never saw.
    """
    from trimtab_trainer.digests import content_digest
    from trimtab_trainer.eval.reward_model.agreement import measure
    from trimtab_trainer.eval.reward_model.data import held_out_items, read_items
    from trimtab_trainer.eval.reward_model.findings import reward_model_findings
    from trimtab_trainer.eval.reward_model.scores import FolderScorer, ServiceScorer

    _check_folds(folds_directory, folds_from, files, kind)
    items = read_items(files, kind, skip_bad_rows=skip_bad_rows, warn=_warn)
    digests = {str(path): content_digest(path) for path in files}
    groups = {one.group for item in items for one in item.ranking.labelings}
    _check_groups(held_out_groups, groups)
    trained_on = sorted(groups - set(held_out_groups)) if held_out_groups else None
    folds = _folds(folds_directory, folds_from, files[0], trained_on, fold_count, overrides)
    if held_out_fraction is not None:
        items = held_out_items(items, held_out_fraction, seed=split_seed)
    scorer: Scorer = (
        FolderScorer(model, device, micro_batch_tokens)
        if model is not None
        else ServiceScorer(lambda: async_client_of("reward", **connection), served_model)
    )
    scored = scorer.score(items)
    judged = _fitting(items, scored, leave_out=too_long == "leave_out")
    found = measure(
        judged,
        held_out_groups=held_out_groups,
        gold=_miniature_gold if gold else None,
        samples=resamples,
        seed=seed,
    )
    if not found.by_side["reward model"]:
        raise DataError(f"{files[0]}: no labeler decided a pair of {len(judged)} rankings", field="rankings")
    left = len(items) - len(judged)
    findings = reward_model_findings(
        found,
        folds,
        {
            "files": digests,
            "model": scored.model,
            "format": kind,
            "held_out_groups": held_out_groups,
            "held_out_fraction": held_out_fraction,
            "split_seed": split_seed,
            "gold": gold,
            "too_long": too_long,
            "folds": str(folds_directory) if folds_directory else None,
            "folds_from": str(folds_from) if folds_from else None,
            "fold_count": fold_count if folds_from else None,
            "overrides": overrides,
            "bootstrap_samples": resamples,
            "seed": seed,
        },
        [f"{left} of {len(items)} rankings are too long for the model and left out."] if left else [],
    )
    output.tell(findings)


def _check_folds(directory: Path | None, start: Path | None, files: Sequence[Path], kind: RankingFormat) -> None:
    if start is None:
        return
    if directory is None:
        raise ConfigError("folds-from: --folds names the folder of the run", field="folds-from", value=start)
    if kind != "trimtab" or len(files) != 1:
        raise ConfigError(
            f"folds-from: a run trains on one file of the trainer's format; found {len(files)} of format {kind}",
            field="folds-from",
            value=len(files),
            limit="1 file of format trimtab",
        )


def _check_groups(asked: Sequence[str], present: set[str]) -> None:
    for group in asked:
        if group not in present:
            there = ", ".join(sorted(one or '""' for one in present))
            raise DataError(
                f"held-out-groups: no label is of group {group!r}; there are {there}",
                field="held-out-groups",
                value=group,
                limit=there,
            )


def _fitting(items: Sequence[Item], scored: Scored, *, leave_out: bool) -> list[Judged]:
    from trimtab_trainer.eval.reward_model.agreement import Judged

    judged = []
    for item, scores in zip(items, scored.scores, strict=True):
        if scores is not None:
            judged.append(Judged(item.ranking, scores))
        elif not leave_out:
            raise DataError(
                f"{item}: answers: the prompt with one of them is longer than the model's context; --too-long "
                "leave_out goes on without such rankings",
                field="answers",
            )
    if not judged:
        raise DataError(f"{items[0].path}: all {len(items)} rankings are too long for the model", field="answers")
    return judged


def _folds(
    directory: Path | None,
    start: Path | None,
    rankings: Path,
    groups: Sequence[str] | None,
    count: int,
    overrides: Sequence[str],
) -> Folds | None:
    if directory is None:
        return None
    from trimtab_trainer.eval.reward_model.training import FoldsPlan, read_folds, train_folds

    if start is None:
        return read_folds(directory)
    return train_folds(directory, FoldsPlan(start, rankings, groups, count, overrides))


def _miniature_gold(ranking: Ranking) -> list[float]:
    from trimtab_trainer.miniature.gold import gold

    return [gold(str(ranking.prompt), answer).score for answer in ranking.answers]


def _warn(message: str) -> None:
    click.echo(f"warning: {message}", err=True)
