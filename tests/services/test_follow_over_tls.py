"""A replica that follows a channel by mTLS, over the day on which every certificate is another one."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from certificate_files import make_pair
from running import running
from trimtab import Client, TLSConfig
from trimtab_models.versions import publish_folder

from .weights.conftest import RunningStore

CHANNEL = "reward/serving"
PATIENCE_S = 60


def renew(folder: Path, name: str) -> None:
    """Puts another certificate, which is its own authority, where both sides read theirs."""
    pair = make_pair(folder, name)
    shutil.copy(pair.key, folder / "tls.key")
    shutil.copy(pair.certificate, folder / "tls.crt")


def test_a_replica_goes_on_following_after_its_first_certificate_counts_no_more(
    tmp_path: Path, reward_folder: Path
) -> None:
    renew(tmp_path, "old")
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    server = {"certificate_file": certificate, "key_file": key, "client_ca_file": certificate}
    client = TLSConfig(ca_file=certificate, certificate_file=certificate, key_file=key)
    settings = {"store": str(tmp_path / "store"), "tls": server}
    store = RunningStore(**settings)
    port = store.server.runtime.ports.grpc
    source = {"address": store.target, "channel": CHANNEL}
    source |= {"tls": {"ca_file": certificate, "certificate_file": certificate, "key_file": key}}
    try:
        with Client(store.target, tls=client) as publisher:
            publish_folder(publisher, reward_folder, channels=[CHANNEL])
        with running("reward", weights=source) as replica:
            store.stop()  # its connections end
            renew(tmp_path, "new")
            store = RunningStore(**settings, grpc_port=port)
            with Client(store.target, tls=client) as publisher:
                version = publish_folder(publisher, reward_folder, channels=[CHANNEL]).version
            target = replica.target
            give_up = time.monotonic() + PATIENCE_S
            with Client(target) as caller:
                while caller.info().models[0].served.version != version:
                    assert time.monotonic() < give_up, caller.info().models[0]
                    time.sleep(0.1)
    finally:
        store.stop()
