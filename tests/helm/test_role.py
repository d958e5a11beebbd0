"""The Role of the launcher: what its code says that it calls, no more and no less."""

from __future__ import annotations

from typing import Any

from helm.rendering import render
from trimtab_services.trainer.launchers.cluster import ROLE


def calls(values: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(verb, API group, resource) of every rule of the rendered Role."""
    return [
        (verb, group, resource)
        for rule in render(values).only("Role")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


def test_the_role_allows_every_call_of_the_launcher_once_and_nothing_else() -> None:
    assert sorted(calls({})) == sorted(ROLE)


def test_without_claims_of_their_own_runs_need_no_right_to_claims() -> None:
    shared = {"trainer": {"run": {"persistence": {"perRun": False, "existingClaim": "runs"}}}}
    assert sorted(calls(shared)) == sorted(call for call in ROLE if call[2] != "persistentvolumeclaims")


def test_no_rule_is_for_objects_by_a_wildcard() -> None:
    assert not [call for call in calls({}) if "*" in call]
