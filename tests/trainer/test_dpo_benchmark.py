"""What `benchmarks/dpo.py` makes of its runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "dpo.py"


def measured(seed: int, beta: float | None, kl: float, over_ppo_ptx: float) -> dict[str, Any]:
    return {"seed": seed, "beta": beta, "kl": {"value": kl}, "over_ppo_ptx": {"value": over_ppo_ptx}}


def test_its_last_line_holds_ratio_and_goal_at_the_nearest_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARK.parent)  # where the interpreter looks first when it runs the file
    spec = importlib.util.spec_from_file_location("dpo_benchmark", BENCHMARK)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    rows = [
        *(measured(1, None, 5.0, 0.0), measured(1, 0.1, 9.0, 0.8), measured(1, 0.2, 5.5, 0.52)),
        *(measured(2, None, 8.0, 0.0), measured(2, 0.1, 8.5, 0.60), measured(2, 0.2, 5.0, 0.1)),
    ]
    told = benchmark.result(rows, [1, 2])
    assert (told["benchmark"], told["ratio"], told["goal"]) == ("dpo", 0.56, 0.5)
    assert told["beta_at_nearest_kl"] == {1: 0.2, 2: 0.1}
