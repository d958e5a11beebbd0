"""Publishes tiny untrained models to the channels that nothing was published to, so that every replica can serve."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from trimtab import Client, TLSConfig, Token
from trimtab.errors import DeadlineExceeded, Unavailable
from trimtab.local import CHANNELS
from trimtab.v1 import weights_pb2
from trimtab_models.loading import reward_model_from_policy, save_model
from trimtab_models.tokenizer import load_tokenizer
from trimtab_models.versions import publish_folder
from trimtab_trainer.miniature.tokenizer import save_base

_PATIENCE_S = 600.0
_CREDENTIALS = Path("/etc/trimtab-token/token"), Path("/etc/trimtab-tls")


def main(address: str) -> None:
    """Publishes what is missing at the weights service of `address`."""
    token_file, tls_folder = _CREDENTIALS
    token = Token(file=token_file) if token_file.exists() else None
    with Client(address, token=token, tls=_tls(tls_folder), insecure=True) as client:
        missing = set(CHANNELS.values()) - _channels(client)
        if not missing:
            print("every channel points to a version; nothing to do")
            return
        with tempfile.TemporaryDirectory() as folder:
            _publish(client, Path(folder), missing)


def _tls(folder: Path) -> TLSConfig | None:
    if not folder.exists():
        return None
    return TLSConfig(folder / "ca.crt", folder / "tls.crt", folder / "tls.key")


def _channels(client: Client) -> set[str]:
    """Names of the channels that point to a version; waits for the service, which may start at the same time."""
    give_up = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return {row.name for row in client.list_channels(weights_pb2.ListChannelsRequest()).channels if row.version}
        except (Unavailable, DeadlineExceeded) as error:
            if time.monotonic() > give_up:
                raise
            print(f"waits for the weights service: {error.message}", flush=True)
            time.sleep(2.0)


def _publish(client: Client, folder: Path, channels: set[str]) -> None:
    policy, reward = folder / "policy", folder / "reward"
    save_base(policy, seed=0)
    tokenizer = load_tokenizer(policy)
    save_model(reward_model_from_policy(policy, tokenizer=tokenizer, seed=0), tokenizer, reward)
    rewards = channels & {CHANNELS["reward"]}
    for model, names in ((reward, rewards), (policy, channels - rewards)):
        if names:
            manifest = publish_folder(client, model, channels=sorted(names))
            print(f"{', '.join(sorted(names))} -> {manifest.version}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
