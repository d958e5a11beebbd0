"""`trimtab data card`: a dataset card from the figures, Markdown with the YAML head of Hugging Face's cards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from trimtab.errors import ConfigError
from trimtab_trainer.data.file_statistics import FileStatistics
from trimtab_trainer.data.personal_data import NOT_DETECTED
from trimtab_trainer.data.tables import statistics_tables
from trimtab_trainer.data.writers import new_files
from trimtab_trainer.tables import Table

__all__ = ["CardFacts", "split_names", "write_card"]

_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)
_FIELDS = {
    "demonstrations": "`prompt` or `messages`, and `completion`: the answer that a person wrote",
    "rankings": "`prompt` or `messages`, `answers`, and `labels`: what each labeler said, tie groups of indices into "
    "`answers`, best first",
    "prompts": "`prompt` or `messages`",
    "pretraining": "`text`",
}
_CLEANED = {
    "read": "rows read",
    "kept": "kept",
    "personal_data": "left out for personal data",
    "duplicates": "left out as duplicates by long common prefix",
    "over_user_limit": "left out above the limit per user",
    "rows_with_personal_data": "rows with personal data, whatever became of them",
}
_RULES = {
    "prefix_characters": "characters of a long common prefix; 0: duplicates stay",
    "prompts_per_user": "prompts kept of each user; 0: no limit",
    "personal_data": "what was done with rows that have personal data",
}
_NOT_SEARCHED = "These files were not searched for personal data."


@dataclass(frozen=True)
class CardFacts:
    """What no figure says.

    Attributes:
        name: of the dataset.
        description: a few sentences; may be empty.
        license: its identifier, such as cc-by-4.0; may be empty.
        languages: codes, such as en.
        cleaning: what `trimtab data clean --json` printed; None if the files were not cleaned by it.
    """

    name: str
    description: str = ""
    license: str = ""
    languages: Sequence[str] = ()
    cleaning: Mapping[str, Any] | None = None


def split_names(files: Sequence[Path]) -> dict[str, Path]:
    """Files by the split that each is: by its name, `valid` as `validation`; a single file is `train`.

    Raises:
        ConfigError: two files would be the same split.
    """
    names: dict[str, Path] = {}
    for file in files:
        name = re.sub(r"\W", "_", file.name.split(".")[0])
        name = "train" if len(files) == 1 else {"valid": "validation"}.get(name, name)
        if name in names:
            raise ConfigError(f"files: {names[name]} and {file} are both split {name}", field="files", value=file)
        names[name] = file
    return names


def write_card(output: Path, facts: CardFacts, splits: Mapping[str, Path], found: Mapping[str, FileStatistics]) -> None:
    """Writes the card of a dataset.

    Args:
        output: the card; must not be there. Paths in its head are relative to its folder.
        facts: see `CardFacts`.
        splits: the file of each split.
        found: its figures, at least one; all of one kind.

    Raises:
        ConfigError: `output` is there already.
    """
    kind = next(iter(found.values())).kind
    rows = sum(one.rows for one in found.values())
    parts = [f"---\n{_head(output, facts, splits, kind, rows)}\n---", f"# {facts.name}"]
    if facts.description:
        parts.append(facts.description)
    parts.append(f"Kind: {kind}. Fields: {_FIELDS[kind]}; others as the source has them.")
    files = [(name, str(splits[name].name), str(one.rows)) for name, one in found.items()]
    parts.append(Table("Files", ("split", "file", "rows"), files, names=2).markdown())
    for name, one in found.items():
        tables = statistics_tables(one)
        if len(found) > 1:
            parts.append(f"## Figures of {name}")
        parts += [table.markdown(3 if len(found) > 1 else 2) for table in tables]
    parts.append(_cleaning(facts.cleaning))
    with new_files(output) as (file,):
        file.write(("\n\n".join(parts) + "\n").encode())


def _head(output: Path, facts: CardFacts, splits: Mapping[str, Path], kind: str, rows: int) -> str:
    files = [{"split": name, "path": _relative(file, output)} for name, file in splits.items() if file.is_file()]
    more: dict[str, Any] = {"configs": [{"config_name": "default", "data_files": files}]} if files else {}
    head = DatasetCardData(
        pretty_name=facts.name,
        license=facts.license or None,
        language=list(facts.languages) or None,
        size_categories=next((size for most, size in _SIZES if rows < most), "n>1B"),
        task_categories=["text-generation"],
        tags=["human-feedback", kind],
        **more,
    )
    return head.to_yaml()


def _relative(file: Path, output: Path) -> str:
    folder = output.resolve().parent
    whole = file.resolve()
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else file.name


def _cleaning(cleaning: Mapping[str, Any] | None) -> str:
    if cleaning is None:
        return f"## Personal data\n\n{_NOT_SEARCHED}"
    rules = cleaning.get("rules", {})
    rows = [(text, str(cleaning[key])) for key, text in _CLEANED.items() if key in cleaning]
    rows += [(text, str(rules[key])) for key, text in _RULES.items() if key in rules]
    rows += [(f"found: {kind}", str(count)) for kind, count in cleaning.get("findings", {}).items()]
    searched = f"Found by patterns with checksums. Not detected: {'; '.join(NOT_DETECTED)}."
    told = _NOT_SEARCHED if rules.get("personal_data") == "ignore" else searched
    return f"{Table('Cleaning and personal data', ('', 'value'), rows).markdown()}\n\n{told}"
