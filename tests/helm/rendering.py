"""The chart as the real Helm engine renders it, and the values files that every test of manifests goes over."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

__all__ = [
    "CHART",
    "NAMESPACE",
    "RELEASE",
    "VALUES_FILES",
    "Manifests",
    "files_of",
    "pods",
    "render",
    "run_template",
    "values_of",
]

CHART = Path(__file__).parents[2] / "helm" / "trimtab"
RELEASE, NAMESPACE = "rl", "prod"
VALUES_FILES = sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))
"""Names of `helm/trimtab/ci/*.yaml`."""

Object = dict[str, Any]


class Manifests(dict[tuple[str, str], Object]):
    """Objects by kind and name."""

    def of(self, kind: str) -> dict[str, Object]:
        """All objects of a kind by name."""
        return {name: one for (found, name), one in self.items() if found == kind}

    def only(self, kind: str) -> Object:
        """The one object of a kind."""
        (one,) = self.of(kind).values()
        return one


def values_of(name: str) -> dict[str, Any]:
    """The values of `helm/trimtab/ci/NAME.yaml`."""
    return yaml.safe_load((CHART / "ci" / f"{name}.yaml").read_text()) or {}


def files_of(
    values: Mapping[str, Any], *, release: str = RELEASE, namespace: str = NAMESPACE, kube_version: str = "v1.34.0"
) -> dict[str, str]:
    """Text of every rendered template by its path, NOTES.txt among them.

    Raises:
        helm_python.HelmError: a value is against the schema, or a template refuses the combination.
    """
    options = {"name": release, "namespace": namespace, "kube_version": kube_version}
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(dict(values))
        # `Chart.render` has no argument for the version of Kubernetes; the call that it makes does.
        return json.loads(
            helm_python._native.call_string("helm_render", chart._raw(), json.dumps(values), json.dumps(options))
        )


def render(values: Mapping[str, Any] | str, **options: str) -> Manifests:
    """Objects that the chart makes of values, or of the values file of that name; no two of them are the same."""
    found = Manifests()
    for path, text in files_of(values_of(values) if isinstance(values, str) else values, **options).items():
        for one in documents(text) if not path.endswith("NOTES.txt") else ():
            if one:
                key = one["kind"], one["metadata"]["name"]
                assert key not in found, f"{key} twice, in {path}"
                found[key] = one
    return found


def documents(text: str) -> Iterator[Object]:
    """The YAML documents of a text, by the parser in C where there is one."""
    return yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def pods(manifests: Manifests) -> Iterator[tuple[str, Object]]:
    """(name, pod or pod template) of all that runs: Deployments, Jobs, Pods, and what the launcher makes Jobs from."""
    for (kind, name), one in manifests.items():
        if kind in ("Deployment", "Job"):
            yield name, one["spec"]["template"]
        elif kind == "Pod":
            yield name, one
    for one in run_template(manifests).of("Job").values():
        yield one["metadata"]["name"], one["spec"]["template"]


def run_template(manifests: Manifests) -> Manifests:
    """What the launcher makes runs from; empty without a TrainerService."""
    found = Manifests()
    for name, one in manifests.of("ConfigMap").items():
        if name.endswith("-run-template"):
            for part in documents(one["data"]["template.yaml"]):
                found[part["kind"], part["metadata"]["name"]] = part
    return found
