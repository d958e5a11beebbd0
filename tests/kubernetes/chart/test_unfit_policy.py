"""A version that no replica can serve: readiness says no, liveness yes, and GetInfo why, until a good one comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployed import RELEASE, Deployed, deployed, is_ready, wait_for
from trimtab.types import ServiceInfo, ServiceState

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

VALUES = {
    "models": {"bootstrap": {"enabled": False}},
    **{name: {"enabled": False} for name in ("reward", "reference", "trainer")},
}

_PUBLISH = """
import json, sys
from pathlib import Path
from trimtab import Client, Token
from trimtab_models.versions import publish_folder
from trimtab_trainer.miniature.tokenizer import save_base

target, width = sys.argv[1:]
folder = Path("/tmp/policy")
save_base(folder, seed=0)
config = folder / "config.json"
config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": int(width)}))
with Client(target, token=Token(file=Path("/etc/trimtab-token/token")), insecure=True) as client:
    print(publish_folder(client, folder, channels=["policy/latest"]).version)
"""
"""Publishes a policy whose config.json gives its tensors a width, which is 176."""


def test_readiness_waits_for_a_policy_that_fits(kubeconfig: Path) -> None:
    with deployed(kubeconfig, VALUES, wait=False) as release:
        unfit = publish(release, "unfit", 352)
        with release.client("generation") as client:
            info = wait_for(lambda: why_not(client.info()), "a reason why not")
            for word in (f"version {unfit}: ", "mlp"):
                assert word in info.models[0].last_swap_error, info
            assert (
                info.state is ServiceState.WAITING_FOR_VERSION and info.state_reason == info.models[0].last_swap_error
            )
            assert client.health("liveness") and not client.health("readiness")
        (pod,) = release.pods("generation")
        assert not is_ready(pod) and pod["status"]["containerStatuses"][0]["started"]
        fit = publish(release, "fit", 176)
        assert release.wait_pods("generation", 1) == [pod["metadata"]["name"]]
        assert release.lives("generation") == {pod["metadata"]["uid"]: 0}
        with release.client("generation") as client:
            assert [model.served.version for model in client.info().models] == [fit]


def publish(release: Deployed, name: str, width: int) -> int:
    """Publishes with the token of runs; returns the version."""
    release.start_pod(name, _PUBLISH, f"{RELEASE}-trimtab-weights:50051", str(width), caller="run")
    return int(release.wait_ended(name).splitlines()[-1])


def why_not(info: ServiceInfo) -> ServiceInfo | None:
    return info if info.models and info.models[0].last_swap_error else None
