"""What every evaluation shares: the text of an interval, where findings go, and what they were made with."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from trimtab.errors import ConfigError
from trimtab_trainer.eval.clusters import Measure, clustered_mean
from trimtab_trainer.eval.findings import Findings, interval
from trimtab_trainer.eval.options import Output, findings_options
from trimtab_trainer.evaluation import LEAST_CLUSTERS, Accuracy
from trimtab_trainer.tables import Table, percent


def test_an_interval_for_people() -> None:
    assert interval(Measure(0.25, -0.5, 1.0)) == "0.250 (-0.500 to 1.000)"
    assert interval(Measure(0.25, None, None)) == "0.250 (too few)"
    assert interval(Accuracy(0.1, 0.0, 0.2, 10, 10), percent) == "10.0 % (0.0 % to 20.0 %)"  # 0 is an end too


def test_few_clusters_have_no_interval() -> None:
    values = np.arange(8.0)
    few = clustered_mean(values, [number % (LEAST_CLUSTERS - 1) for number in range(8)], samples=100, seed=0)
    assert few == Measure(3.5, None, None)
    enough = clustered_mean(values, [number % LEAST_CLUSTERS for number in range(8)], samples=100, seed=0)
    assert enough.low is not None and enough.high is not None and enough.low < 3.5 < enough.high


@click.command()
@findings_options("mine")
@click.option("--figure", type=float, default=1.0)
def measured(output: Output, resamples: int, seed: int, figure: float) -> None:
    click.echo("works", err=True)
    table = Table("Found", ["name", "figure"], [["<it>", str(figure)]])
    output.tell(
        Findings("mine", "Mine", {"seed": seed, "samples": resamples}, {"figure": figure}, [table], notes=["so"])
    )


def test_findings_are_told_and_saved_with_the_versions(tmp_path: Path) -> None:
    done = CliRunner().invoke(measured, ["--out", str(tmp_path / "out"), "--seed", "3"], catch_exceptions=False)
    assert done.exit_code == 0 and "<it>" in done.stdout and "so" in done.stdout
    saved = json.loads((tmp_path / "out" / "mine.json").read_text())
    assert saved["figures"] == {"figure": 1.0} and saved["settings"]["samples"] == 1000
    assert saved["settings"]["versions"]["numpy"] == version("numpy")
    page = (tmp_path / "out" / "mine.html").read_text()
    assert '<td class="name">&lt;it&gt;</td><td>1.0</td>' in page and "<p>so</p>" in page
    assert json.loads(CliRunner().invoke(measured, ["--json"]).stdout) == {"figure": 1.0}


def test_a_place_that_is_taken_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "other.html").touch()
    done = CliRunner().invoke(measured, ["--out", str(tmp_path), "--name", "other"])
    assert isinstance(done.exception, ConfigError) and "is there already" in str(done.exception)
    assert "works" not in done.output


@pytest.mark.parametrize(
    "arguments", [["--bootstrap-samples", "10001"], ["--bootstrap-samples", "99"], ["--seed", "-1"]]
)
def test_bounds_of_the_bootstrap(arguments: list[str]) -> None:
    done = CliRunner().invoke(measured, arguments)
    assert done.exit_code == 2 and arguments[0] in done.output


def test_no_json_that_is_none() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        CliRunner().invoke(measured, ["--json", "--figure", "nan"], catch_exceptions=False)
