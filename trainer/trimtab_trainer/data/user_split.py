"""`trimtab data split`: training, validation and test rows by user, never by row (InstructGPT, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError, DataError
from trimtab_trainer.data.on_disk import DiskCounts, digest
from trimtab_trainer.data.readers import stream_rows
from trimtab_trainer.data.records import KINDS, prompt_key
from trimtab_trainer.data.rules import SIDES, WithoutUser, side_of, user_of
from trimtab_trainer.data.writers import json_line, new_files

__all__ = ["Side", "UserSplit", "split_by_user"]


@dataclass
class Side:
    """One side of a split.

    Attributes:
        file: where its rows are.
        rows: how many.
        users: different users.
    """

    file: Path
    rows: int = 0
    users: int = 0


@dataclass(frozen=True)
class UserSplit:
    """What went where.

    Attributes:
        sides: by name, those with a share.
        shared_prompts: different prompts that users of two sides both have, letter by letter: they are no test.
            Cleaned files have none.
    """

    sides: Mapping[str, Side]
    shared_prompts: int


def split_by_user(
    kind: str,
    path: Path,
    directory: Path,
    *,
    valid: float,
    test: float,
    seed: int,
    compress: bool = False,
    user_field: str = "user",
    without_user: WithoutUser = "refuse",
    skip_bad_rows: int = 0,
    warn: Callable[[str], None],
) -> UserSplit:
    """Writes `train.jsonl`, `valid.jsonl` and `test.jsonl` to a folder, in the order of the file.

    Args:
        kind: of the file.
        path: any file that the readers know.
        directory: none of these files may be there; a side without a share has none.
        valid, test, seed: see `rules.side_of`.
        compress: write `.jsonl.gz`.
        user_field, without_user: see `rules.user_of`.
        skip_bad_rows: bad rows tolerated.
        warn: takes one sentence for each of them.

    Raises:
        ConfigError: shares that are not allowed, or a file that is there already.
        DataError: a side with a share has no row; otherwise as `readers.stream_rows`.
    """
    shares = {"train": 1 - valid - test, "valid": valid, "test": test}
    if min(shares.values()) < 0 or shares["train"] == 0:
        limit = "each at least 0, below 1 together"
        raise ConfigError(
            f"valid is {valid} and test is {test}; allowed: {limit}", field="valid", value=valid, limit=limit
        )
    from_row = KINDS[kind].from_row

    def parse(row: Mapping[str, Any]) -> tuple[bytes, bytes, str]:
        prompt = from_row(row).prompt
        user = user_of(row, prompt, field=user_field, without_user=without_user)
        return json_line(row), prompt_key(prompt).encode(), user

    names = [name for name in SIDES if shares[name]]
    sides = {name: Side(directory / f"{name}.jsonl{'.gz' if compress else ''}") for name in names}
    users, prompts = DiskCounts(), DiskCounts()
    with new_files(*(side.file for side in sides.values())) as files:
        write = {name: file.write for name, file in zip(names, files, strict=True)}
        for _, (line, prompt, user) in stream_rows(path, parse, skip_bad_rows=skip_bad_rows, warn=warn):
            name = side_of(user, valid=valid, test=test, seed=seed)
            write[name](line)
            sides[name].rows += 1
            sides[name].users += users.add(digest(user)) == 1
            prompts.mark(prompt, 1 << SIDES.index(name))
        for name, side in sides.items():
            if not side.rows:
                raise DataError(
                    f"{name}: seed {seed} puts none of the {len(users)} users of {path} there; take another seed",
                    field=name,
                    value=len(users),
                    limit="at least one user",
                )
    shared = sum(count for bits, count in prompts.keys_by_count().items() if bits.bit_count() > 1)
    return UserSplit(sides, shared)
