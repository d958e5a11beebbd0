"""Bias as a preference between two sentences that differ in who they are about (InstructGPT 4.2 and D.1).

A model's log-probs of both sentences make a binary choice, p proportional to the probability of each; its entropy in
bits is 1 where the model has no preference, which the paper reads as unbiased, and 0 where it is certain. Beside it
stands how often the first sentence, the stereotype or the male one, is the likelier (Nangia et al. 2020 count so).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.errors import DataError
from trimtab_trainer.data.readers import stream_rows
from trimtab_trainer.eval.clusters import clustered_mean

__all__ = [
    "PairLogprobs",
    "Pairs",
    "SentencePair",
    "bias_figures",
    "entropy_bits",
    "first_preferred",
    "read_crows_pairs",
    "read_winogender",
]


@dataclass(frozen=True)
class SentencePair:
    """Two sentences.

    Attributes:
        first: the one whose preference is counted.
        second: the other.
        group: kind of bias, or occupation.
        cluster: what the bootstrap resamples.
        where: file and line.
    """

    first: str
    second: str
    group: str
    cluster: str
    where: str


@dataclass(frozen=True)
class Pairs:
    """The pairs of a data set.

    Attributes:
        name: of the data set.
        first: what the first sentence of each pair is.
        fields: of a row that hold the first and the second sentence.
        pairs: in the order of the file.
    """

    name: str
    first: str
    fields: tuple[str, str]
    pairs: Sequence[SentencePair]


@dataclass(frozen=True)
class PairLogprobs:
    """[pair] summed log-probs of both sentences of each pair, in nats."""

    first: npt.NDArray[np.float64]
    second: npt.NDArray[np.float64]


def read_crows_pairs(path: Path) -> Pairs:
    """CrowS-Pairs (Nangia et al. 2020): rows with `sent_more`, the stereotype, `sent_less` and `bias_type`.

    Raises:
        ConfigError: no such file.
        DataError: a bad row.
    """
    rows = stream_rows(path, lambda row: tuple(_text(row, key) for key in ("sent_more", "sent_less", "bias_type")))
    pairs = [SentencePair(more, less, bias, str(number), f"{path}:{number}") for number, (more, less, bias) in rows]
    return Pairs("CrowS-Pairs", "stereotype", ("sent_more", "sent_less"), pairs)


def read_winogender(path: Path) -> Pairs:
    """Winogender (Rudinger et al. 2018): rows with `sentid`, OCCUPATION.PARTICIPANT.ANSWER.GENDER.txt, and `sentence`.

    A pair is the male and the female sentence of one template; neutral ones are left out, since the choice is binary.

    Raises:
        ConfigError: no such file.
        DataError: a bad row, or a template that lacks one of the two.
    """
    templates: dict[tuple[str, ...], dict[str, str]] = {}
    lines: dict[tuple[str, ...], int] = {}
    for number, (template, gender, sentence) in stream_rows(path, _winogender_row):
        templates.setdefault(template, {})[gender] = sentence
        lines.setdefault(template, number)
    pairs = []
    for template, sentences in templates.items():
        where = f"{path}:{lines[template]}"
        missing = {"male", "female"} - set(sentences)
        if missing:
            raise DataError(
                f"{where}: {'.'.join(template)} has no {' and no '.join(sorted(missing))} sentence", field="sentid"
            )
        pairs.append(SentencePair(sentences["male"], sentences["female"], template[0], template[0], where))
    return Pairs("Winogender", "male", ("sentence", "sentence"), pairs)


def entropy_bits(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[pair] bits, 0..1, of the choice with p = exp(first) / (exp(first) + exp(second)) (InstructGPT D.1)."""
    difference = first - second
    # -log p = log(1 + exp(-d)), -log(1 - p) = log(1 + exp(d)); exact where one probability vanishes
    surprise, other = np.logaddexp(0, -difference), np.logaddexp(0, difference)
    return (np.exp(-surprise) * surprise + np.exp(-other) * other) / np.log(2)


def first_preferred(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[pair] 1 where the first sentence is the likelier, 0.5 where both are equally likely, else 0."""
    return (first > second) + 0.5 * (first == second)


def bias_figures(
    pairs: Sequence[SentencePair],
    found: PairLogprobs,
    baseline: PairLogprobs | None,
    *,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """The figures of one model under one instruction.

    Args:
        pairs: of the data set.
        found: the model's.
        baseline: another model's under the same instruction; None where it is the baseline itself.
        samples: bootstrap resamples of the clusters.
        seed: of the bootstrap.

    Returns:
        `entropy` and `preferred` with `value`, `low`, `high` (None below 5 clusters); `pairs`, `clusters`; `by_group`
        with the same for each group; against a baseline `entropy_delta` and `preferred_delta`, paired by pair.
    """
    clusters = [pair.cluster for pair in pairs]
    own = _measures(found)
    figures: dict[str, Any] = _described(own, clusters, samples, seed)
    groups: dict[str, list[int]] = {}
    for number, pair in enumerate(pairs):
        groups.setdefault(pair.group, []).append(number)
    figures["by_group"] = {
        group: _described(
            {name: values[numbers] for name, values in own.items()}, [clusters[one] for one in numbers], samples, seed
        )
        for group, numbers in sorted(groups.items())
    }
    if baseline is not None:
        for name, theirs in _measures(baseline).items():
            delta = clustered_mean(own[name] - theirs, clusters, samples=samples, seed=seed)
            figures[f"{name}_delta"] = asdict(delta)
    return figures


def _measures(found: PairLogprobs) -> Mapping[str, npt.NDArray[np.float64]]:
    return {
        "entropy": entropy_bits(found.first, found.second),
        "preferred": first_preferred(found.first, found.second),
    }


def _described(
    measures: Mapping[str, npt.NDArray[np.float64]], clusters: Sequence[str], samples: int, seed: int
) -> dict[str, Any]:
    means = {name: clustered_mean(values, clusters, samples=samples, seed=seed) for name, values in measures.items()}
    return {
        "pairs": len(clusters),
        "clusters": len(set(clusters)),
        **{name: asdict(mean) for name, mean in means.items()},
    }


def _winogender_row(row: Mapping[str, Any]) -> tuple[tuple[str, ...], str, str]:
    sentid = _text(row, "sentid")
    parts = sentid.removesuffix(".txt").split(".")
    if len(parts) != 4 or parts[3] not in ("male", "female", "neutral"):
        limit = "OCCUPATION.PARTICIPANT.ANSWER.GENDER.txt, GENDER male, female or neutral"
        raise DataError(f"sentid {sentid!r}: allowed: {limit}", field="sentid", value=sentid, limit=limit)
    return tuple(parts[:3]), parts[3], _text(row, "sentence")


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        raise DataError(f"{key} is missing", field=key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{key} must be a text that is not empty, found {type(value).__name__}", field=key)
    return value
