"""What a run writes to the weights service: versions under names of its own, and the channels that it has leased.

Every call is safe to repeat, so all of them wait while the service is away, and say so.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from trimtab import Client
from trimtab.errors import DeadlineExceeded, InvalidRequest, Reason, Unavailable
from trimtab.local import CHANNELS
from trimtab.v1 import weights_pb2
from trimtab_trainer.lease import LeaseKeeper

__all__ = ["Name", "RunChannels"]

T = TypeVar("T")

_MOST_ID = 200
_CALL_S = 30.0


class _Published(Protocol):
    @property
    def version(self) -> int: ...


PublishedT = TypeVar("PublishedT", bound=_Published)

Name = dict[str, str]
"""Arguments of `trimtab.weights.Publisher.publish` that say whose publication it is, and that it may be made."""


class RunChannels:
    """The channels of generation, reward and reference, as one run writes them.

    Args:
        weights: client of the weights service.
        run: name of the run.
        stage: name of the stage.
        patience_s: how long the service may be away.
        tell: takes one sentence on whatever makes the run wait.
        pause: sleeps for some seconds, or raises to end the wait.
    """

    def __init__(
        self,
        weights: Client,
        *,
        run: str,
        stage: str,
        patience_s: float,
        tell: Callable[[str], None],
        pause: Callable[[float], None],
    ) -> None:
        self._weights = weights
        self._run, self._stage = run, stage
        self._patience_s = patience_s
        self._tell, self._pause = tell, pause
        self._leases: dict[str, LeaseKeeper] = {}
        self._taken: set[str] = set()

    def lease(self, folder: Path | None) -> None:
        """Sees to it that nobody else moves what this run samples from or is judged by, until `close`.

        Args:
            folder: the run's own, where its next life finds the leases that this one was killed with; None: nowhere.

        Raises:
            LeaseHeld: another run publishes to one of the channels.
        """
        for channel in CHANNELS.values():
            prefix = f"{channel.partition('/')[0]}/"
            kept_in = folder / f".lease-{prefix.rstrip('/')}" if folder is not None else None
            self._leases[channel] = LeaseKeeper(
                self._weights, prefix, self._run, kept_in=kept_in, tell=self._tell, pause=self._pause
            )

    def close(self) -> None:
        """Gives the leases back."""
        for lease in self._leases.values():
            lease.close()

    def published(self, channel: str, name: str, publish: Callable[[Name], PublishedT]) -> PublishedT:
        """Makes a publication under its name, or a new one where other weights have that; the channel points to it.

        Where it leaves a version that no run has made, that is told before, with the way back.

        Args:
            channel: to move.
            name: of these weights within the run's stage.
            publish: makes the publication; called again while the service is away.

        Raises:
            TrimtabError: the store refused it, or cannot be reached. Nothing half-done is visible then.
        """

        def made(publish_id: str) -> PublishedT:
            return self.patiently(lambda: publish({**self._writer(channel), "publish_id": publish_id}))

        self._take_over(channel)
        try:
            published = made(f"{self._run}/{self._stage}/{name}"[:_MOST_ID])
        except InvalidRequest as error:
            if error.reason is not Reason.DUPLICATE_ID:
                raise
            published = made(uuid.uuid4().hex)  # a run that is not deterministic came to other weights after a resume
        if self.version(channel) != published.version:
            self.point(channel, published.version)
        return published

    def version(self, channel: str) -> int:
        """The version that a channel points to now; 0 when it does not exist."""
        request = weights_pb2.ListChannelsRequest(prefix=channel)
        found = self.patiently(lambda: self._weights.list_channels(request, timeout_s=_CALL_S)).channels
        return next((row.version for row in found if row.name == channel), 0)

    def point(self, channel: str, version: int) -> None:
        """Points a channel to a version that exists.

        Raises:
            TrimtabError: the weights service refused it, or cannot be reached.
        """

        def point() -> None:
            lease_id = self._lease_id(channel)  # asked for each time: one that ran out meanwhile is taken again
            request = weights_pb2.SetChannelRequest(
                channel=channel, version=version, expected_previous_version=-1, lease_id=lease_id
            )
            self._weights.set_channel(request, timeout_s=_CALL_S)

        self._take_over(channel)
        self.patiently(point)

    def weights_digest(self, version: int) -> str:
        """Digest of the weights of a version."""
        return self._manifest(version).weights_digest

    def patiently(self, call: Callable[[], T], *, patience_s: float | None = None) -> T:
        """Makes a call that is safe to repeat, again and again while the service is away.

        Raises:
            Unavailable, DeadlineExceeded: it was away for `patience_s`, else for the run's.
            StageStopped: a stop was asked for meanwhile.
        """
        give_up = time.monotonic() + (self._patience_s if patience_s is None else patience_s)
        told = False
        while True:
            try:
                return call()
            except (Unavailable, DeadlineExceeded) as error:  # one that is stopped or overloaded says nothing
                if time.monotonic() > give_up:
                    raise
                if not told:
                    self._tell(f"waits for the weights service: {error.message}")
                    told = True
                self._pause(0.5)

    def _manifest(self, version: int) -> weights_pb2.Manifest:
        request = weights_pb2.GetManifestRequest(version=version)
        return self.patiently(lambda: self._weights.get_manifest(request, timeout_s=_CALL_S)).manifest

    def _take_over(self, channel: str) -> None:
        """Before the first move of a channel: tells where somebody has put there what no run has made."""
        if channel in self._taken:
            return
        version = self.version(channel)
        if version and not self._manifest(version).run:
            self._tell(
                f"{channel} points to version {version}, which no run has made; this run takes the channel over. "
                f"`trimtab weights promote {version} {channel}` goes back once the run has ended"
            )
        self._taken.add(channel)

    def _writer(self, channel: str) -> Name:
        return {"lease_id": self._lease_id(channel), "run": self._run, "stage": self._stage}

    def _lease_id(self, channel: str) -> str:
        """Id of the lease on a channel; raises what its renewal met."""
        keeper = self._leases[channel]
        keeper.check()
        return keeper.lease_id
