"""Who learns from which rows: splits by prompt, labelers held out, and filters by labeler group and category.

Pure functions over rows as the readers give them, order kept. What a filter leaves out is what the caller asked to
leave out; a name that no row has is an error, since a misspelt one would otherwise empty a training set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from trimtab.errors import ConfigError, DataError
from trimtab_trainer.data.records import Demonstration, PromptRow, PromptText, Ranking, prompt_key

__all__ = [
    "HELD_OUT_GROUP",
    "AllBut",
    "Groups",
    "hold_out_labelers",
    "in_groups",
    "keep_categories",
    "keep_groups",
    "keep_sources",
    "labeler_folds",
    "set_apart",
    "split_by_prompt",
    "warn_of_misspelt",
]

HELD_OUT_GROUP = "heldout"
"""The labeler group whose labels nothing learns from, unless a run says otherwise."""


class _Prompted(Protocol):
    @property
    def prompt(self) -> PromptText: ...


Prompted = TypeVar("Prompted", bound=_Prompted)
Row = TypeVar("Row", Demonstration, Ranking, PromptRow)


@dataclass(frozen=True)
class AllBut:
    """Every labeler group but some, of any source.

    Attributes:
        names: of the groups left out; whether any row has them does not matter.
    """

    names: Collection[str]


Groups = Collection[str] | Mapping[str, Collection[str]] | AllBut
"""Labeler groups: of any source, or for some sources theirs, such as {"Yale-LILY/SummEval": ["expert"]}; a source that
is not named there has all of its labels. A name stands for its subsets too, "anthropics/hh-rlhf" for
"anthropics/hh-rlhf/helpful-base", unless a subset is named itself."""


def split_by_prompt(rows: Sequence[Prompted], share: float, *, seed: int) -> tuple[list[Prompted], list[Prompted]]:
    """Training and held-out rows: those with an equal prompt or an equal `prompt_id` are on one side.

    The side is the SHA-256 of seed and prompt, so it is the same for that prompt in every file, whatever else the file
    holds. Only where a `prompt_id` joins different prompts do they share the side of the least of their keys.

    Args:
        rows: of any kind with a prompt.
        share: of prompts, not rows, that are held out; 0..1.
        seed: of the split.
    """
    leaders = _Leaders()
    for row in rows:
        if isinstance(row, Ranking):
            leaders.join(*_keys(row))  # a key is hexadecimal: no id can look like one
    train: list[Prompted] = []
    held_out: list[Prompted] = []
    for row in rows:
        digest = hashlib.sha256(f"{seed}/{leaders.of(prompt_key(row.prompt))}".encode()).digest()
        (held_out if int.from_bytes(digest[:8]) < share * 2**64 else train).append(row)
    return train, held_out


def hold_out_labelers(rankings: Iterable[Ranking], labelers: Collection[str]) -> tuple[list[Ranking], list[Ranking]]:
    """Rankings with the other labelers' labels only, and with the held-out labelers' only.

    A ranking that both labelled is in both, each time with its own side's labels; one without a label left is not
    there. Labels of nobody known ("") are training labels.

    Raises:
        DataError: a held-out labeler labelled nothing.
    """
    rankings = list(rankings)
    _check_known("labelers", labelers, _labelers(rankings))
    chosen = set(labelers)
    sides: tuple[list[Ranking], list[Ranking]] = ([], [])
    for ranking in rankings:
        for side, held_out in zip(sides, (False, True), strict=True):
            kept = tuple(one for one in ranking.labelings if (one.labeler in chosen) is held_out)
            if kept:
                side.append(replace(ranking, labelings=kept))
    return sides


def set_apart(
    train: Sequence[Prompted], groups_of: Callable[[Prompted], Collection[str]], names: Collection[str]
) -> tuple[list[Prompted], list[Prompted]]:
    """Training rows, and of those that only labelers of held-out groups made the ones with a prompt of their own.

    A row of theirs whose prompt, or `prompt_id`, a training row has is in neither list: it would measure what was seen.

    Args:
        train: the training side of a split.
        groups_of: the labeler groups of a row.
        names: of the groups held out.
    """
    held_out = set(names)
    kept: list[Prompted] = []
    theirs: list[Prompted] = []
    for row in train:
        (theirs if held_out.issuperset(groups_of(row)) else kept).append(row)
    seen = {key for row in kept for key in _keys(row)}
    return kept, [row for row in theirs if seen.isdisjoint(_keys(row))]


def warn_of_misspelt(path: Path, learnt: Iterable[str], held_out: Collection[str], warn: Callable[[str], None]) -> None:
    """Warns of groups that are learnt only since their name is not spelt as that of the held-out one, as Held-Out.

    Args:
        path: of the rows.
        learnt: labeler groups of the training rows.
        held_out: names of the groups held out; without any no group is meant to be.
        warn: takes a sentence.
    """
    for name in sorted(set(learnt) - {HELD_OUT_GROUP}) if held_out else ():
        if "".join(filter(str.isalpha, name)).lower() == HELD_OUT_GROUP:
            warn(f"{path}: labels of the group {name} are learnt: held_out_groups is {', '.join(held_out)}")


def labeler_folds(rankings: Iterable[Ranking], folds: int, *, seed: int) -> list[frozenset[str]]:
    """Known labelers in `folds` seeded groups whose sizes differ by at most one, to be held out one after another.

    Source: InstructGPT 4.1 and appendix E.2: five groups, five reward models, each judged on the group it did not see.

    Raises:
        ConfigError: fewer than two folds.
        DataError: fewer labelers than folds.
    """
    if folds < 2:
        raise ConfigError(f"folds is {folds}; allowed: at least 2", field="folds", value=folds, limit="at least 2")
    labelers = _labelers(rankings)
    if len(labelers) < folds:
        raise DataError(
            f"labelers: {len(labelers)} known labelers cannot make {folds} folds",
            field="labelers",
            value=len(labelers),
            limit=f"at least {folds}",
        )
    order = sorted(labelers, key=lambda labeler: hashlib.sha256(f"{seed}/{labeler}".encode()).digest())
    return [frozenset(order[fold::folds]) for fold in range(folds)]


def keep_groups(rankings: Sequence[Ranking], groups: Groups | None) -> list[Ranking]:
    """Rankings with labels of some labeler groups only; one without a label left is not there.

    Args:
        rankings: of any source.
        groups: see `Groups`; None keeps every label.

    Raises:
        DataError: no ranking is of a source named, or none (of that source) has such a group.
    """
    if groups is None:
        return list(rankings)
    asked: dict[str | None, tuple[str, Collection[str]]] = {}
    if isinstance(groups, Mapping):
        _check_known("sources", groups, _names({ranking.source for ranking in rankings}))
        asked = {source: (f"groups of {source}", names) for source, names in groups.items()}
    elif not isinstance(groups, AllBut):
        asked = {None: ("groups", groups)}
    for source, (field, names) in asked.items():
        of_source = (ranking for ranking in rankings if source is None or _within(ranking.source, source))
        _check_known(field, names, {one.group for ranking in of_source for one in ranking.labelings})
    kept = (
        replace(ranking, labelings=tuple(x for x in ranking.labelings if in_groups(ranking.source, x.group, groups)))
        for ranking in rankings
    )
    return [ranking for ranking in kept if ranking.labelings]


def in_groups(source: str, group: str, groups: Groups | None) -> bool:
    """Whether a label of that group, of a ranking of that source, is among `groups`."""
    if isinstance(groups, AllBut):
        return group not in groups.names
    if not isinstance(groups, Mapping):
        return groups is None or group in groups
    named = max((name for name in groups if _within(source, name)), key=len, default=None)
    return named is None or group in groups[named]


def keep_sources(rows: Sequence[Row], sources: Collection[str]) -> list[Row]:
    """Rows of some sources, subsets included; "" is the source of rows without one.

    Raises:
        DataError: no row has such a source.
    """
    _check_known("sources", sources, _names({row.source for row in rows}))
    return [row for row in rows if any(_within(row.source, source) for source in sources)]


def keep_categories(rows: Sequence[Row], categories: Collection[str]) -> list[Row]:
    """Rows of some categories; "" is the category of rows without one.

    Raises:
        DataError: no row has such a category.
    """
    _check_known("categories", categories, {row.category for row in rows})
    return [row for row in rows if row.category in categories]


def _within(source: str, name: str) -> bool:
    """Whether a source is the named one or a subset of it."""
    return source == name or (name != "" and source.startswith(f"{name}/"))


def _names(sources: Iterable[str]) -> set[str]:
    """All names by which sources can be asked for: their own, and what they are subsets of."""
    return {name for source in sources for name in (source, source.rpartition("/")[0]) if name or name == source}


class _Leaders:
    """Union-find of names; a set is led by the least of its names that are keys of prompts."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def of(self, name: str) -> str:
        while (parent := self._parents.get(name, name)) != name:
            self._parents[name] = self._parents.get(parent, parent)  # halves the path
            name = parent
        return name

    def join(self, key: str, identity: str) -> None:
        """Joins the sets of a prompt's key and of a prompt_id, which never leads."""
        known = identity in self._parents
        leaders = {self.of(key), self.of(identity)} if known else {self.of(key)}
        least = min(leaders)
        for name in (*leaders, identity):
            self._parents[name] = least


def _keys(row: _Prompted) -> list[str]:
    """By what rows are taken for those of one prompt."""
    return [prompt_key(row.prompt), *([f"id {row.prompt_id}"] if isinstance(row, Ranking) else [])]


def _labelers(rankings: Iterable[Ranking]) -> set[str]:
    """The labelers who are known by name."""
    return {one.labeler for ranking in rankings for one in ranking.labelings} - {""}


def _check_known(field: str, asked: Iterable[str], present: set[str]) -> None:
    unknown = sorted(set(asked) - present)
    if unknown:
        there = ", ".join(sorted(present - {""}))
        missing = ", ".join(f"no row has {name!r}" if name else "no row is without one" for name in unknown)
        without = ("some have none" if there else "they have none") if "" in present or not there else ""
        have = " and ".join(filter(None, (f"they have {there}" if there else "", without)))
        raise DataError(f"{field}: {missing}; {have}", field=field, value=unknown, limit=there or "none")
