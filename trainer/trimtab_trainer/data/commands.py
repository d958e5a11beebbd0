"""`trimtab data`: check, clean, split, describe and convert dataset files. Heavy code is loaded where it is needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click

from trimtab.errors import ConfigError
from trimtab_trainer.data.records import KINDS, Row
from trimtab_trainer.data.rules import PREFIX_CHARACTERS, PROMPTS_PER_USER, WithoutUser

__all__ = ["data"]

_KIND = click.Choice(list(KINDS))
_PATH = click.Path(path_type=Path)
_FORMAT = click.Choice(["hh-rlhf", "openassistant", "summarize-from-feedback", "trl"])


@click.group()
def data() -> None:
    """Check, clean, split, describe and convert dataset files of any size.

    A file is JSON lines (.gz too), Parquet or a folder of the library datasets. Outputs are JSON lines, compressed
    where their name ends in .gz; they appear when they are whole, and nothing that is there is replaced.
    """


def _skip_bad_rows(command: Callable[..., Any]) -> Callable[..., Any]:
    text = "Bad rows tolerated in each file; each is told."
    return click.option("--skip-bad-rows", type=click.IntRange(0), default=0, show_default=True, help=text)(command)


def _json(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="One JSON object.")(command)


def _output(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--output", type=_PATH, required=True, help="The file to write.")(command)


def _by_user(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--without-user",
            type=click.Choice(get_args(WithoutUser)),
            default="refuse",
            show_default=True,
            help="A row without a user is a bad row, or each prompt is a user of its own.",
        ),
        click.option(
            "--user-field", default="user", show_default=True, help="Field that names the user or organisation."
        ),
    ):
        command = option(command)
    return command


class _BadRows:
    """Tells bad rows on stderr as they come, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, text: str) -> None:
        self.count += 1
        click.echo(text, err=True)


def _tell(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, default=str))
        return
    for key, value in found.items():
        click.echo(f"{key:<27} {value}")


@data.command("check")
@click.argument("kind", type=_KIND)
@click.argument("file", type=_PATH)
@click.option(
    "--against",
    type=(_KIND, _PATH),
    multiple=True,
    metavar="KIND FILE",
    help="Another file whose prompts FILE must not share, such as a test set; may be given again.",
)
@_skip_bad_rows
@_json
def check(kind: str, file: Path, against: tuple[tuple[str, Path], ...], skip_bad_rows: int, as_json: bool) -> int:
    """Read every row of FILE and say what is in it; a bad row is told with its line, field and reason.

    Exit code 1 when FILE shares prompts with a file of --against.
    """
    from trimtab_trainer.data.check import SharedPrompts, describe_dataset
    from trimtab_trainer.data.readers import stream_rows

    bad, shared = _BadRows(), SharedPrompts()

    def rows(place: int, kind: str, path: Path, warn: Callable[[str], None]) -> Iterator[Row]:
        for _, row in stream_rows(path, KINDS[kind].from_row, skip_bad_rows=skip_bad_rows, warn=warn):
            if against:
                shared.add(place, row)
            yield row

    found = describe_dataset(rows(0, kind, file, bad))
    found["bad_rows"] = bad.count
    leaks = {}
    for place, (other_kind, path) in enumerate(against, 1):
        for _ in rows(place, other_kind, path, bad):
            pass
        leaks[str(path)] = shared.leaks(0, place)
    if as_json:
        found["shared"] = {path: asdict(leak) for path, leak in leaks.items()}
    _tell(found, as_json)
    for path, leak in () if as_json else leaks.items():
        click.echo(f"prompts shared with {path}: {leak.prompts} equal, {leak.similar_prompts} alike but for case,")
        click.echo(f"  spaces and marks; in {leak.rows} rows of {file} and {leak.other_rows} of the other")
    return int(any(leak.rows for leak in leaks.values()))


@data.command("stats")
@click.argument("kind", type=_KIND)
@click.argument("file", type=_PATH)
@click.option("--tokenizer", type=_PATH, help="Model folder whose tokenizer counts tokens too.")
@click.option("--samples", type=click.IntRange(100), default=1000, show_default=True, help="Bootstrap resamples.")
@click.option("--seed", default=0, show_default=True, help="Of the bootstrap.")
@_skip_bad_rows
@_json
def stats(
    kind: str, file: Path, tokenizer: Path | None, samples: int, seed: int, skip_bad_rows: int, as_json: bool
) -> None:
    """Categories beside InstructGPT's, length tables, agreement between labelers with 95 % intervals over prompts."""
    from trimtab_trainer.data.file_statistics import describe_file
    from trimtab_trainer.data.tables import statistics_tables

    bad = _BadRows()
    found = describe_file(
        kind,
        file,
        tokenizer=_tokenizer(tokenizer),
        samples=samples,
        seed=seed,
        skip_bad_rows=skip_bad_rows,
        warn=bad,
    )
    if as_json:
        _tell({**asdict(found), "bad_rows": bad.count}, as_json)
        return
    _tell({"rows": found.rows, "bad_rows": bad.count}, as_json)
    for table in statistics_tables(found):
        click.echo(f"\n{table.text()}")


@data.command("clean")
@click.argument("kind", type=_KIND)
@click.argument("file", type=_PATH)
@_output
@click.option("--report", type=_PATH, help="What personal data was found.  [default: OUTPUT.personal-data.jsonl]")
@click.option(
    "--personal-data",
    "mode",
    type=click.Choice(["drop", "mask", "report", "ignore"]),
    default="drop",
    show_default=True,
    help="Leave such rows out, mask what was found, write them as they are, or do not look.",
)
@click.option(
    "--phone-region",
    "regions",
    multiple=True,
    default=("US",),
    show_default=True,
    help="Country whose phone numbers are found without country code too; may be given again.",
)
@click.option(
    "--prefix-characters",
    default=PREFIX_CHARACTERS,
    show_default=True,
    help="Prompts that share so many characters at the start are duplicates; 0 keeps them.",
)
@click.option(
    "--per-user", default=PROMPTS_PER_USER, show_default=True, help="Prompts kept of each user; 0 is no limit."
)
@_by_user
@_skip_bad_rows
@_json
def clean(
    kind: str,
    file: Path,
    output: Path,
    report: Path | None,
    mode: Any,
    regions: tuple[str, ...],
    prefix_characters: int,
    per_user: int,
    user_field: str,
    without_user: Any,
    skip_bad_rows: int,
    as_json: bool,
) -> None:
    """Leave out personal data, duplicates by long common prefix, and more than 200 prompts of one user.

    These are InstructGPT's rules (section 3.2). E-mail addresses, phone numbers, payment cards, IBANs and IP addresses
    are found by patterns with checksums; names are not. Every finding is a line of the report, without what was found.
    """
    from trimtab_trainer.data.cleaning import CleaningRules
    from trimtab_trainer.data.cleaning import clean as clean_file

    rules = CleaningRules(mode, regions, prefix_characters, per_user, user_field, without_user)
    report = report or output.with_name(f"{output.name}.personal-data.jsonl")
    bad = _BadRows()
    done = clean_file(kind, file, output, report, rules, skip_bad_rows=skip_bad_rows, warn=bad)
    found = {**asdict(done), "bad_rows": bad.count}
    if as_json:
        _tell(found, as_json)
        return
    findings = ", ".join(f"{kind} {count}" for kind, count in done.findings.items()) or "none"
    shown = {key: value for key, value in found.items() if isinstance(value, int)}
    _tell({**shown, "findings": findings} if mode != "ignore" else shown, as_json)
    if mode != "ignore":
        click.echo(f"findings are in {report}; not detected: {'; '.join(done.not_detected)}")


@data.command("split")
@click.argument("kind", type=_KIND)
@click.argument("file", type=_PATH)
@click.option("--dir", "directory", type=_PATH, required=True, help="Gets train.jsonl, valid.jsonl and test.jsonl.")
@click.option("--valid", default=0.1, show_default=True, help="Share of users.")
@click.option("--test", default=0.1, show_default=True, help="Share of users.")
@click.option("--seed", default=0, show_default=True, help="Of the split.")
@click.option("--gzip", "compress", is_flag=True, help="Write .jsonl.gz.")
@_by_user
@_skip_bad_rows
@_json
def split(
    kind: str,
    file: Path,
    directory: Path,
    valid: float,
    test: float,
    seed: int,
    compress: bool,
    user_field: str,
    without_user: Any,
    skip_bad_rows: int,
    as_json: bool,
) -> None:
    """Split FILE by user: all rows of a user are on one side.

    The side depends on seed and user alone, so rows added later move nobody, and other files agree.
    """
    from trimtab_trainer.data.user_split import split_by_user

    bad = _BadRows()
    made = split_by_user(
        kind,
        file,
        directory,
        valid=valid,
        test=test,
        seed=seed,
        compress=compress,
        user_field=user_field,
        without_user=without_user,
        skip_bad_rows=skip_bad_rows,
        warn=bad,
    )
    if as_json:
        _tell({**asdict(made), "bad_rows": bad.count}, as_json)
        return
    sides = {name: f"{side.rows} rows of {side.users} users in {side.file}" for name, side in made.sides.items()}
    _tell({**sides, "prompts on two sides": made.shared_prompts, "bad_rows": bad.count}, as_json)


@data.command("import")
@click.argument("format_name", type=_FORMAT, metavar="FORMAT")
@click.argument("kind", type=_KIND)
@click.argument("file", type=_PATH)
@_output
@click.option("--source", default="", help="`source` of every row.  [default: what the rows say]")
@_skip_bad_rows
@_json
def import_(
    format_name: str, kind: str, file: Path, output: Path, source: str, skip_bad_rows: int, as_json: bool
) -> None:
    """Make rows of KIND from a FILE in a public FORMAT: hh-rlhf, openassistant, summarize-from-feedback or trl.

    openassistant reads message trees: rankings of ranked replies, demonstrations from the best of them.
    """
    from trimtab_trainer.data.formats import import_file

    bad = _BadRows()
    done = import_file(format_name, kind, file, output, source=source, skip_bad_rows=skip_bad_rows, warn=bad)
    _tell({**asdict(done), "bad_rows": bad.count}, as_json)


@data.command("export")
@click.argument("format_name", type=_FORMAT, metavar="FORMAT")
@click.argument("kind", type=_KIND)
@click.argument("file", type=_PATH)
@_output
@_skip_bad_rows
@_json
def export(format_name: str, kind: str, file: Path, output: Path, skip_bad_rows: int, as_json: bool) -> None:
    """Write FILE in a public FORMAT; of rankings a row for each decided pair, or a tree for each labeling."""
    from trimtab_trainer.data.formats import export_file

    bad = _BadRows()
    done = export_file(format_name, kind, file, output, skip_bad_rows=skip_bad_rows, warn=bad)
    _tell({**asdict(done), "bad_rows": bad.count}, as_json)


@data.command("card")
@click.argument("kind", type=_KIND)
@click.argument("files", type=_PATH, nargs=-1, required=True)
@_output
@click.option("--name", required=True, help="Of the dataset.")
@click.option("--description", default="", help="A few sentences for people.")
@click.option("--license", "license_name", default="", help="Identifier, such as cc-by-4.0.")
@click.option("--language", "languages", multiple=True, help="Code, such as en; may be given again.")
@click.option("--cleaning", type=_PATH, help="What `trimtab data clean --json` printed.")
@click.option("--tokenizer", type=_PATH, help="Model folder whose tokenizer counts tokens too.")
@_skip_bad_rows
def card(
    kind: str,
    files: tuple[Path, ...],
    output: Path,
    name: str,
    description: str,
    license_name: str,
    languages: tuple[str, ...],
    cleaning: Path | None,
    tokenizer: Path | None,
    skip_bad_rows: int,
) -> None:
    """Write the dataset card of FILES, such as train.jsonl, valid.jsonl and test.jsonl, from their figures."""
    from trimtab_trainer.data.card import CardFacts, split_names, write_card
    from trimtab_trainer.data.file_statistics import describe_file

    facts = CardFacts(name, description, license_name, languages, _cleaning(cleaning))
    splits, counter, bad = split_names(files), _tokenizer(tokenizer), _BadRows()
    found = {
        split: describe_file(kind, file, tokenizer=counter, skip_bad_rows=skip_bad_rows, warn=bad)
        for split, file in splits.items()
    }
    write_card(output, facts, splits, found)
    click.echo(f"{output}")


def _tokenizer(folder: Path | None) -> Any:
    if folder is None:
        return None
    from trimtab_models.tokenizer import load_tokenizer

    return load_tokenizer(folder)


def _cleaning(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        limit = "the JSON object that `trimtab data clean --json` printed"
        raise ConfigError(f"{path}: allowed: {limit}", field="cleaning", value=path, limit=limit)
    return found
