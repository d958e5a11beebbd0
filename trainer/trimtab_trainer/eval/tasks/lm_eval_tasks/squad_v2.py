"""Exact match and F1 of SQuAD 2.0; read by lm-eval's process, beside `squad_v2.yaml`.

The formulas are those of the official evaluation script of SQuAD 2.0 (Rajpurkar et al. 2018), as shares. An
unanswerable question is answered rightly by an answer without a word, and only so.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import Any

__all__ = ["mean_of_known", "process_results"]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float | None]:
    """Figures of one question; None for those that are about questions of the other kind."""
    answer = _normalized(results[0])
    golds = [gold for gold in map(_normalized, doc["answers"]["text"]) if gold]
    exact = max(float(answer == gold) for gold in golds or [""])
    f1 = max(_f1(answer.split(), gold.split()) for gold in golds or [""])
    return {
        "exact": exact,
        "f1": f1,
        "HasAns_exact": exact if golds else None,
        "HasAns_f1": f1 if golds else None,
        "NoAns_exact": None if golds else exact,
    }


def mean_of_known(values: list[float | None]) -> float:
    """Mean without what is None; 0 where all is, as upstream."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0


def _normalized(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous spaces."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _f1(answer: list[str], gold: list[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    same = sum((Counter(answer) & Counter(gold)).values())
    return 2 * same / (len(answer) + len(gold))
