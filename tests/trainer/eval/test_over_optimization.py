"""Over-optimisation: the curve against scipy's fit, its peak against its maximum, and the command on a real run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.optimize import curve_fit, minimize_scalar

from trimtab_trainer.config import RunSpec
from trimtab_trainer.eval.commands import eval as evaluations
from trimtab_trainer.eval.over_optimization.curve import Course, Curve, Point, fit_course, fit_curve, gain_at
from trimtab_trainer.eval.over_optimization.runs import courses_of, sampled_models
from trimtab_trainer.reporter import step_metrics

START, ALPHA, BETA = 0.4, 0.5, 0.25
"""Peak at d = e, beta e above the start."""


def policies(noise: float, *, farthest: float = 6.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    distances = np.linspace(0.0, farthest, 60)
    values = np.array([START + gain_at(d, ALPHA, BETA) for d in distances])
    return distances, values + np.random.default_rng(seed).normal(0, noise, len(values))


def curve(d: np.ndarray, start: float, alpha: float, beta: float) -> np.ndarray:
    return start + d * (alpha - beta * np.log(np.maximum(d, 1e-300)))


def test_coefficients_are_those_of_scipys_least_squares() -> None:
    distances, values = policies(0.05)
    found = fit_curve(distances, values, samples=400, seed=1)
    expected, _ = curve_fit(curve, distances, values, p0=(0.0, 1.0, 1.0))
    assert [found.start.value, found.alpha.value, found.beta.value] == pytest.approx(list(expected), abs=1e-6)
    residuals = values - curve(distances, *expected)
    assert found.explained == pytest.approx(1 - residuals.var() / values.var(), abs=1e-6)


def test_the_peak_is_the_curves_maximum_and_its_interval_covers_the_truth() -> None:
    covered = 0
    for seed in range(40):
        found = fit_curve(*policies(0.03, seed=seed), samples=300, seed=seed)
        assert found.peak is not None, found.why_no_peak
        top: Any = minimize_scalar(
            lambda d, at=found: -gain_at(d, at.alpha.value, at.beta.value), bounds=(0.1, 6.0), method="bounded"
        )
        assert found.peak.distance.value == pytest.approx(top.x, rel=1e-4)
        assert found.peak.gain.value == pytest.approx(-top.fun, rel=1e-6)
        covered += found.peak.distance.low <= np.e <= found.peak.distance.high
    assert covered >= 33  # of 40 at 95 %: fewer than 33 has a chance below 1 in 1,000


def test_no_peak_is_told_where_the_policies_do_not_reach_it() -> None:
    rising = fit_curve(*policies(0.03, farthest=1.5), samples=300, seed=0)
    assert rising.peak is None and rising.why_no_peak
    straight = fit_curve(np.linspace(0, 6, 30), np.linspace(0, 6, 30) ** 1.5, samples=300, seed=0)
    assert straight.peak is None and "bends down" in straight.why_no_peak


def test_what_is_too_little_for_a_curve_is_said() -> None:
    points = [Point(0.1 * n, 1.0 * n, None) for n in range(7)]
    assert fit_course(Course("a", points), yardstick=False, samples=100, seed=0) == (
        "7 policies are known; a fit takes at least 8"
    )
    assert "0 policies" in str(fit_course(Course("a", points * 2), yardstick=True, samples=100, seed=0))
    still = [Point(-0.1, 1.0, None)] * 9
    assert "at 1 different distances; a fit takes at least 3" in str(
        fit_course(Course("a", still), yardstick=False, samples=100, seed=0)
    )
    assert Point(-0.1, 1.0, None).distance == 0.0
    assert isinstance(fit_course(Course("a", points * 2), yardstick=False, samples=100, seed=0), Curve)


def test_the_curve_has_an_interval_at_every_height() -> None:
    distances = np.linspace(0, 6, 40)
    noise = np.random.default_rng(0).normal(0, 0.1, 40)
    found = fit_curve(
        distances, np.array([START + gain_at(d, ALPHA, BETA) for d in distances]) + noise, samples=300, seed=0
    )
    assert found.heights[0][0] == 0 and found.heights[-1][0] == found.farthest == 6
    assert found.heights[0][1] == found.start
    for d, height in found.heights:
        assert height.low < height.value < height.high
        assert height.value == pytest.approx(found.start.value + gain_at(d, found.alpha.value, found.beta.value))
    inside = [at.low <= START + gain_at(d, ALPHA, BETA) <= at.high for d, at in found.heights]
    assert np.mean(inside) > 0.8


@pytest.mark.timeout(300)
def test_a_run_is_read_from_its_events_and_samples(finished_run: RunSpec) -> None:
    directory = finished_run.directory
    (course,) = courses_of(directory)
    steps = list(step_metrics(directory / "events.jsonl", "ppo").values())
    assert course.name == "ppo" and len(course.points) == len(steps) == finished_run.ppo.iterations
    assert [point.yardstick for point in course.points] == [step["gold"] for step in steps]
    start, trained = sampled_models(directory, samples=200, seed=0)
    assert (start.name, trained.name) == ("sft", "ppo_ptx")
    lines = (directory / "samples" / "ppo_ptx.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert trained.kl is not None and trained.kl.value == pytest.approx(np.mean([row["kl"] for row in rows]))
    assert trained.yardsticks.keys() == {"gold"}
    gold = trained.yardsticks["gold"]
    assert gold.value == pytest.approx(np.mean([row["gold"] for row in rows]))
    assert gold.low is not None and gold.high is not None and gold.low <= gold.value <= gold.high


def test_the_command_writes_figures_plots_and_what_is_missing(finished_run: RunSpec, tmp_path: Path) -> None:
    directory = str(finished_run.directory)
    arguments = ["over-optimization", directory, "--bootstrap-samples", "200", "--out", str(tmp_path)]
    done = CliRunner().invoke(evaluations, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and "Models on held-out prompts" in done.output
    saved = json.loads((tmp_path / "over-optimization.json").read_text())
    course = saved["figures"]["courses"]["ppo"]
    assert len(course["points"]) == finished_run.ppo.iterations and {"alpha", "beta"} <= course["gold"].keys()
    page = (tmp_path / "over-optimization.html").read_text()
    # proxy and gold along the training, and of the models on held-out prompts
    assert page.count("<svg") == 4 and "fitted curve" in page and "gold of models on held-out prompts" in page
    again = CliRunner().invoke(evaluations, arguments)
    assert "is there already" in str(again.exception)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(evaluations, ["over-optimization", str(tmp_path)])
    assert "no run in this folder (it has no events.jsonl)" in str(done.exception)
