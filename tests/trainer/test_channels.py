"""The channels of a run at a real weights service: what somebody else has put there is not left without a word."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab import Client
from trimtab.v1 import weights_pb2
from trimtab_models.versions import publish_folder
from trimtab_trainer.channels import Name, RunChannels

from ..services.weights.conftest import RunningStore

CHANNEL = "reward/serving"


@pytest.fixture
def weights(tmp_path: Path) -> Iterator[Client]:
    store = RunningStore(store=str(tmp_path / "store"))
    try:
        with Client(store.target, timeout_s=30) as client:
            yield client
    finally:
        store.stop()


def life(weights: Client, folder: Path, run: str, times: int = 1) -> list[str]:
    """A life of a run that publishes a folder; what it told."""
    told: list[str] = []
    channels = RunChannels(weights, run=run, stage="ppo", patience_s=5, tell=told.append, pause=time.sleep)

    def publish(named: Name) -> weights_pb2.Manifest:
        return publish_folder(weights, folder, channels=[CHANNEL], **named)

    channels.lease(None)
    try:
        for number in range(times):
            channels.published(CHANNEL, f"{folder.name}/{number}", publish)
    finally:
        channels.close()
    return told


def test_a_version_that_no_run_has_made_is_told_once_with_the_way_back(weights: Client, reward_folder: Path) -> None:
    assert life(weights, reward_folder, "first") == []  # the channel is new
    by_hand = publish_folder(weights, reward_folder, channels=[CHANNEL]).version
    (told,) = life(weights, reward_folder, "first", times=2)
    assert told.startswith(f"{CHANNEL} points to version {by_hand}, which no run has made; this run takes the channel")
    assert f"`trimtab weights promote {by_hand} {CHANNEL}` goes back" in told
    assert life(weights, reward_folder, "first") == []  # what it left there is its own
    assert life(weights, reward_folder, "second") == []  # or another run's, by the same rules
    (row,) = weights.list_channels(weights_pb2.ListChannelsRequest(prefix=CHANNEL)).channels
    assert row.version > by_hand
