"""The dashboard and the alert rules: every metric and label that they name is one that a real server shows.

`promtool`, which comes with Prometheus, checks the rules and runs their own tests where it is installed; their form is
checked everywhere.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from running import FREE_PORTS, RunningServer
from trimtab_services.runtime.config import ServiceConfig
from trimtab_services.runtime.metrics import Metrics
from trimtab_services.runtime.server import Service
from trimtab_services.runtime.state import Runtime

FOLDER = Path(__file__).parents[2] / "observability"
ALERTS = FOLDER / "prometheus" / "alerts.yaml"
OPERATE = FOLDER.parent / "docs" / "operate.md"
DASHBOARD = json.loads((FOLDER / "grafana" / "trimtab.json").read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
]
OF_PROMETHEUS = {"up": set[str]()}
TARGET_LABELS = {"job", "instance", "release"}
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def panel_queries() -> list[tuple[str, str]]:
    return [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]


def parsed(query: str) -> promql_parser.Expr:
    return promql_parser.parse(query.replace("$__rate_interval", "5m"))


@pytest.fixture(scope="module")
def shown() -> Iterator[dict[str, set[str]]]:
    """Labels of each sample name on the metrics page of a server that has seen some of everything."""

    async def build(runtime: Runtime[ServiceConfig]) -> Service:
        return Service(handlers=[])

    server = RunningServer(ServiceConfig(**FREE_PORTS), "reward", "trimtab.v1.RewardService", build)  # type: ignore[arg-type]
    try:
        runtime = server.server.runtime
        _touch(runtime.metrics)
        urllib.request.urlopen(f"{runtime.http_url}/info", timeout=20).close()
        with urllib.request.urlopen(server.metrics_url, timeout=20) as page:
            families = list(text_string_to_metric_families(page.read().decode()))
        found: dict[str, set[str]] = {}
        for family in families:
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
        yield found
    finally:
        server.stop()


def _touch(metrics: Metrics) -> None:
    """Brings out the series that only work with a model brings; a wrong label is an error of the library."""
    metrics.scores.labels(model="m")
    metrics.dropped_items.labels(cause="queue_full")
    for gauge in (metrics.model_version, metrics.channel_version):
        gauge.labels(model="m")
    metrics.swaps.labels(model="m", outcome="ok")
    metrics.fetched_bytes.labels(model="m")


def named(query: str) -> tuple[dict[str, set[str]], set[str]]:
    """Metrics of a query, each with the labels that it is asked by, and the labels that it is grouped by."""
    metrics: dict[str, set[str]] = {}
    grouped: set[str] = set()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name
            metrics.setdefault(node.name, set()).update(matcher.name for matcher in node.matchers.matchers)
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            grouped.update(node.modifier.labels)

    promql_parser.walk(parsed(query), visit)
    return metrics, grouped


@pytest.mark.parametrize(
    ("where", "query"),
    [*panel_queries(), *((rule["alert"], rule["expr"]) for rule in RULES)],
    ids=lambda text: text[:30],
)
def test_metrics_and_labels_exist(shown: dict[str, set[str]], where: str, query: str) -> None:
    metrics, grouped = named(query)
    assert metrics, where
    known = {**shown, **OF_PROMETHEUS}
    for name, labels in metrics.items():
        assert name in known, f"{where}: no server shows {name}"
        assert labels <= known[name] | TARGET_LABELS, f"{where}: {name} has no label {labels - known[name]}"
        assert grouped <= known[name] | TARGET_LABELS, f"{where}: {name} has no label {grouped - known[name]}"


def test_the_check_notices_a_wrong_name_and_a_wrong_label() -> None:
    query = 'sum by (wrong) (rate(trimtab_request_total{code="OK"}[$__rate_interval])) / on () trimtab_no_such'
    assert named(query) == ({"trimtab_request_total": {"code"}, "trimtab_no_such": set()}, {"wrong"})
    with pytest.raises(ValueError):
        parsed("sum by (trimtab_request_total")


def test_the_dashboard_is_sane() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "release", "job", "instance"}
    assert DASHBOARD["uid"] and DASHBOARD["title"] and DASHBOARD["schemaVersion"] >= 39
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] and place["x"] + place["w"] <= 24, panel["title"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
    for panel in PANELS:
        assert panel["title"] and panel["description"].endswith(".") and panel["targets"], panel
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        for target in panel["targets"]:
            assert 'job=~"$job"' in target["expr"] and 'instance=~"$instance"' in target["expr"], panel["title"]


def test_the_dashboard_shows_every_metric_of_trimtab(shown: dict[str, set[str]]) -> None:
    used = {name for _, query in panel_queries() for name in named(query)[0]}
    ends = ("_total", "_bucket", "_sum", "_count", "_created")

    def family(name: str) -> str:
        return next((name.removesuffix(end) for end in ends if name.endswith(end)), name)

    ours = {family(name) for name in shown if name.startswith("trimtab_")}
    assert ours == {family(name) for name in used if name.startswith("trimtab_")}


def test_the_rules_are_sound() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names) >= 10
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
        assert "for" not in rule or promql_parser.parse_duration(rule["for"]).total_seconds() > 0
        parsed(rule["expr"])


def test_operators_are_told_what_to_do_about_each_alert() -> None:
    rows = [line.split("|")[1:-1] for line in OPERATE.read_text(encoding="utf-8").splitlines() if "| Trimtab" in line]
    assert [name.strip() for name, _, _ in rows] == [rule["alert"] for rule in RULES]


def test_a_replica_that_cannot_follow_a_roll_back_lags_too() -> None:
    (lag,) = [rule for rule in RULES if rule["alert"] == "TrimtabVersionLag"]
    comparison = parsed(lag["expr"])
    assert isinstance(comparison, promql_parser.BinaryExpr) and str(comparison.op) == "!="


def test_the_rules_fire_when_they_should() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("firing alerts needs promtool")
    for command in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
        ended = subprocess.run([promtool, *command], cwd=ALERTS.parent, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stdout + ended.stderr
