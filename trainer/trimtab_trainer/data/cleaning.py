"""`trimtab data clean`: personal data, duplicates and rows above a user's limit, each told, in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from trimtab.errors import DataError
from trimtab_trainer.data.personal_data import (
    DETECTED,
    NOT_DETECTED,
    Finding,
    PersonalData,
    excerpt,
    map_texts,
    mask,
)
from trimtab_trainer.data.readers import stream_rows
from trimtab_trainer.data.records import KINDS, PromptText, Ranking
from trimtab_trainer.data.rules import PREFIX_CHARACTERS, PROMPTS_PER_USER, PromptRules, Verdict, WithoutUser, user_of
from trimtab_trainer.data.writers import json_line, new_files

__all__ = ["Cleaning", "CleaningRules", "PersonalDataMode", "clean"]

_PERSONAL_DATA = "personal_data"

PersonalDataMode = Literal["drop", "mask", "report", "ignore"]
"""A row with personal data is left out, written with it masked, or written as it is; `ignore` does not look."""


@dataclass(frozen=True)
class CleaningRules:
    """What is done to the rows of a file.

    Attributes:
        personal_data: see `PersonalDataMode`.
        phone_regions: see `personal_data.PersonalData`.
        prefix_characters, prompts_per_user: see `rules.PromptRules`.
        user_field, without_user: see `rules.user_of`; asked only where there is a limit per user.
    """

    personal_data: PersonalDataMode = "drop"
    phone_regions: tuple[str, ...] = ("US",)
    prefix_characters: int = PREFIX_CHARACTERS
    prompts_per_user: int = PROMPTS_PER_USER
    user_field: str = "user"
    without_user: WithoutUser = "refuse"


@dataclass(frozen=True)
class Cleaning:
    """What was done, in rows but for the findings.

    Attributes:
        rules: that were applied.
        read: good rows of the file.
        kept: written.
        personal_data: left out for it (mode drop).
        duplicates, over_user_limit: left out by the rules on prompts.
        rows_with_personal_data: whatever became of them.
        findings: by kind.
        not_detected: what no pattern looks for.
    """

    rules: CleaningRules
    read: int
    kept: int
    personal_data: int
    duplicates: int
    over_user_limit: int
    rows_with_personal_data: int
    findings: dict[str, int]
    not_detected: tuple[str, ...] = NOT_DETECTED


class _Found(NamedTuple):
    field: str
    text: str
    findings: list[Finding]


class _Row(NamedTuple):
    line: bytes
    prompt: PromptText
    user: str
    found: list[_Found]


def clean(
    kind: str,
    path: Path,
    output: Path,
    report: Path,
    rules: CleaningRules,
    *,
    skip_bad_rows: int = 0,
    warn: Callable[[str], None],
) -> Cleaning:
    """Writes the rows of `path` that the rules keep to `output`, and what personal data was found to `report`.

    A row with personal data is left out before it is compared with others; duplicates and limits are judged against
    the rows that were kept. Everything a row has besides its texts is written as it was.

    Args:
        kind: of the file.
        path: any file that the readers know.
        output: JSON lines, `.gz` compresses; must not be there.
        report: likewise; a first line that says what is detected and what is not, then a line for each finding:
            `file`, `line`, `field`, `kind`, `excerpt` (see `personal_data.excerpt`), `row`: "masked" or "written", or
            what it was left out for, named as in `Cleaning`. Not written in mode `ignore`.
        rules: what is done.
        skip_bad_rows: bad rows tolerated.
        warn: takes one sentence for each of them.

    Raises:
        ConfigError: an output is there already, or a rule has a value that is not allowed.
        DataError: as `readers.stream_rows`, or the rules keep no row.
    """
    parse = _parser(kind, rules)
    judged = PromptRules(
        prefix_characters=rules.prefix_characters,
        prompts_per_user=rules.prompts_per_user,
        prompts_repeat=KINDS[kind] is Ranking,
    )
    fates: Counter[str] = Counter()
    findings: Counter[str] = Counter()
    with_personal_data = 0
    with _outputs(output, report if rules.personal_data != "ignore" else None) as (write_row, write_finding):
        for line, row in stream_rows(path, parse, skip_bad_rows=skip_bad_rows, warn=warn):
            dropped = bool(row.found) and rules.personal_data == "drop"
            fate = _PERSONAL_DATA if dropped else judged.judge(row.prompt, row.user).value
            fates[fate] += 1
            with_personal_data += bool(row.found)
            if fate == Verdict.KEPT:
                write_row(row.line)
                fate = "masked" if rules.personal_data == "mask" else "written"
            for found in row.found:
                findings.update(finding.kind for finding in found.findings)
                _tell(found, path, line, fate, write_finding)
        if not fates[Verdict.KEPT]:
            raise DataError(f"{path}: the rules keep none of its {fates.total()} rows", field="rows", value=0)
    return Cleaning(
        rules=rules,
        read=fates.total(),
        kept=fates[Verdict.KEPT],
        personal_data=fates[_PERSONAL_DATA],
        duplicates=fates[Verdict.DUPLICATE],
        over_user_limit=fates[Verdict.OVER_USER_LIMIT],
        rows_with_personal_data=with_personal_data,
        findings=dict(findings),
    )


def _parser(kind: str, rules: CleaningRules) -> Callable[[Mapping[str, Any]], _Row]:
    from_row = KINDS[kind].from_row
    detector = PersonalData(rules.phone_regions) if rules.personal_data != "ignore" else None

    def parse(row: Mapping[str, Any]) -> _Row:
        prompt = from_row(row).prompt
        # The user is read before anything is masked, and by the prompt as it was: masking must not join two users.
        limited = rules.prompts_per_user > 0
        user = user_of(row, prompt, field=rules.user_field, without_user=rules.without_user) if limited else ""
        found: list[_Found] = []
        if detector is not None:
            masked = map_texts(row, partial(_look, detector, found))
            if found and rules.personal_data == "mask":
                row, prompt = masked, from_row(masked).prompt
        return _Row(json_line(row), prompt, user, found)

    return parse


def _look(detector: PersonalData, found: list[_Found], name: str, text: str) -> str:
    """The text masked; what was found is added to the list."""
    findings = detector.find(text)
    if findings:
        found.append(_Found(name, text, findings))
    return mask(text, findings)


def _tell(found: _Found, path: Path, line: int, fate: str, write: Callable[[bytes], None]) -> None:
    for finding in found.findings:
        shown = excerpt(found.text, found.findings, finding)
        where = {"file": str(path), "line": line, "field": found.field, "kind": finding.kind}
        write(json_line({**where, "excerpt": shown, "row": fate}))


@contextmanager
def _outputs(output: Path, report: Path | None) -> Iterator[tuple[Callable[[bytes], None], Callable[[bytes], None]]]:
    """What writes a row, and what writes a finding."""
    with new_files(output, *([report] if report else [])) as files:
        if report is not None:
            files[1].write(json_line({"detected": list(DETECTED), "not_detected": list(NOT_DETECTED)}))
        yield files[0].write, files[-1].write
