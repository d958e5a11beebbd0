"""What is written twice is equal: README and values, copies of the dashboard and of the alerts, versions."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import promql_parser
import pytest
import yaml

from helm.rendering import CHART, render

ROOT = CHART.parents[1]


def script(name: str) -> ModuleType:
    """A script of helm/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "helm" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return script("values_readme")


def test_the_readme_has_the_values(generator: ModuleType) -> None:
    readme = (CHART / "README.md").read_text()
    fresh = generator.readme_with_table(readme, (CHART / "values.yaml").read_text())
    assert readme == fresh, "run `make chart-files`"


def test_the_schema_has_the_configurations_of_the_services() -> None:
    schema = (CHART / "values.schema.json").read_text()
    assert schema == script("config_schema").schema_with_configs(schema), "run `make chart-files`"


def test_the_generator_refuses_a_value_without_a_word(generator: ModuleType) -> None:
    with pytest.raises(generator.UndocumentedValue, match=r"values.yaml:4: a\.c has no comment"):
        list(generator.rows("a:\n  # -- Said.\n  b: 1\n  c: 2\n"))


def test_the_generator_joins_lines_and_lets_a_map_speak_for_its_keys(generator: ModuleType) -> None:
    text = "# -- One\n# thing.\na:\n  b: 1\n# -- Two.\nc: {d: [1]}\n"
    assert [(row.key, row.default, row.description) for row in generator.rows(text)] == [
        ("a", "", "One thing."),
        ("c", '{"d": [1]}', "Two."),
    ]


@pytest.mark.parametrize(
    ("copy", "original"),
    [("dashboard.json", "observability/grafana/trimtab.json"), ("alerts.yaml", "observability/prometheus/alerts.yaml")],
)
def test_copies_are_equal(copy: str, original: str) -> None:
    equal = (CHART / "files" / copy).read_bytes() == (ROOT / original).read_bytes()
    assert equal, f"run `cp {original} helm/trimtab/files/{copy}`"


def test_alerts_and_dashboard_arrive_whole() -> None:
    manifests = render("monitoring")
    alerts = (CHART / "files" / "alerts.yaml").read_text()
    of_release = alerts.replace('job=~"trimtab.*"', 'release="rl", namespace="prod"')
    assert manifests.only("PrometheusRule")["spec"] == yaml.safe_load(of_release)
    dashboard = manifests["ConfigMap", "rl-trimtab-dashboard"]["data"]["trimtab.json"]
    assert json.loads(dashboard) == json.loads((CHART / "files" / "dashboard.json").read_text())


def test_no_alert_of_a_release_looks_at_another() -> None:
    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            selected = {(one.name, one.op == promql_parser.MatchOp.Equal, one.value) for one in node.matchers.matchers}
            assert {("release", True, "rl"), ("namespace", True, "prod")} <= selected, node.name

    (group,) = render("monitoring").only("PrometheusRule")["spec"]["groups"]
    for rule in group["rules"]:
        promql_parser.walk(promql_parser.parse(rule["expr"]), visit)


def test_the_chart_has_the_version_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == project["version"]


def test_the_schema_knows_no_key_that_the_values_do_not_tell() -> None:
    """Each key of the schema stands in values.yaml: in its own place, or in `common`, whose keys sections repeat.

    Keys of a `config` are the service's own: docs/operate.md tells of them.
    """
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    components = ("weights", "generation", "reward", "reference", "trainer", "labeling")
    by_default = {f"{component}.replicas" for component in components}
    untold = {path for path in missing(schema, values, schema["$defs"], ()) if path not in by_default}
    untold = {path for path in untold if not path.startswith("tls.certManager.issuerRef.") and ".config." not in path}
    assert {path for path in untold if not in_common(path, values["common"])} == set()


def missing(node: Any, value: Any, defs: Any, path: tuple[str, ...]) -> Iterator[str]:
    node = defs[node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    for key, one in node.get("properties", {}).items():
        if not isinstance(value, dict) or key not in value:
            yield ".".join((*path, key))
        else:
            yield from missing(one, value[key], defs, (*path, key))


def in_common(path: str, common: dict[str, Any]) -> bool:
    """Whether a key below a component, the run or the bootstrap Job stands in `common`."""
    if path.startswith("common.image."):
        return True  # the keys of `image`
    components = ("weights", "generation", "reward", "reference", "trainer", "labeling")
    sections = ("trainer.run.", "models.bootstrap.", *(f"{component}." for component in components))
    key = next((path.removeprefix(section) for section in sections if path.startswith(section)), "")
    at: Any = common
    for part in key.split("."):
        if not isinstance(at, dict) or part not in at:
            return False
        at = at[part]
    return bool(key)
