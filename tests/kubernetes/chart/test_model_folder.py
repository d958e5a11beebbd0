"""A service whose model is a folder on a claim that is there, without a weights service."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bystanders import IN_PODS
from deployed import Deployed, deployed
from trimtab import LogProbsItem, LogProbsRequest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TOKEN_IDS = (5, 6, 7, 8)
MODEL = {"folder": "/models/frozen", "volume": {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}}}
VALUES = {
    "models": {"bootstrap": {"enabled": False}},
    "reference": {"model": MODEL},
    **{name: {"enabled": False} for name in ("weights", "generation", "reward", "trainer")},
}


def test_a_model_on_a_claim_is_served(kubeconfig: Path) -> None:
    expected: list[float] = []

    def prepare(release: Deployed) -> None:
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"}, "spec": spec}
        release.apply(claim)
        script = (IN_PODS / "make_model.py").read_text()
        release.start_pod("make", script, "/models/frozen", json.dumps(TOKEN_IDS), caller="", claim="models")
        expected.extend(json.loads(release.wait_ended("make").splitlines()[-1]))

    with deployed(kubeconfig, VALUES, prepare=prepare) as release:
        with release.client("reference") as client:
            found = client.logprobs(LogProbsRequest(items=(LogProbsItem(token_ids=TOKEN_IDS),)))
            assert found.served.version == 0
            assert found.results[0].logprobs == pytest.approx(expected, abs=1e-4)
