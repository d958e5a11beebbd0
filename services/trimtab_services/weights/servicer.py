"""WeightsService over a store. Every store call runs in a thread; the event loop only waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from trimtab.errors import InvalidRequest, Reason, Unavailable
from trimtab.v1 import weights_pb2 as pb
from trimtab.v1 import weights_pb2_grpc
from trimtab.weights.manifest import check_channel
from trimtab_services.runtime.state import Runtime
from trimtab_services.weights.blobs import PREFIX
from trimtab_services.weights.catalog import Catalog
from trimtab_services.weights.config import WeightsServiceConfig
from trimtab_services.weights.store import writable

__all__ = ["WeightsServicer"]

Context = grpc.aio.ServicerContext[Any, Any]


class WeightsServicer(weights_pb2_grpc.WeightsServiceServicer):
    """Versions, channels and leases.

    Args:
        runtime: the server it lives in.
        catalog: what it serves; its `on_move` becomes ours.
    """

    def __init__(self, runtime: Runtime[WeightsServiceConfig], catalog: Catalog) -> None:
        self._runtime = runtime
        self._catalog = catalog
        self._moved = asyncio.Event()
        loop = asyncio.get_running_loop()
        # Told by the store itself, so that a move is known even when the call behind it was cancelled.
        catalog.on_move = lambda: loop.call_soon_threadsafe(self._announce)

    async def AcquireLease(self, request: pb.AcquireLeaseRequest, context: Context) -> pb.AcquireLeaseResponse:
        """Gives out or renews a lease."""
        return pb.AcquireLeaseResponse(lease=await asyncio.to_thread(writable(self._catalog).acquire_lease, request))

    async def ReleaseLease(self, request: pb.ReleaseLeaseRequest, context: Context) -> pb.ReleaseLeaseResponse:
        """Ends a lease early."""
        await asyncio.to_thread(writable(self._catalog).release_lease, request.lease_id)
        return pb.ReleaseLeaseResponse()

    async def FindMissingBlobs(
        self, request: pb.FindMissingBlobsRequest, context: Context
    ) -> pb.FindMissingBlobsResponse:
        """Which blobs to upload, and where."""
        missing = await asyncio.to_thread(writable(self._catalog).find_missing, request.digests)
        return pb.FindMissingBlobsResponse(missing=missing, blobs_url=self._blobs_url)

    async def Publish(self, request: pb.PublishRequest, context: Context) -> pb.PublishResponse:
        """Verifies and commits a version."""
        return pb.PublishResponse(manifest=await asyncio.to_thread(writable(self._catalog).publish, request))

    async def GetManifest(self, request: pb.GetManifestRequest, context: Context) -> pb.GetManifestResponse:
        """One version by number or by channel."""
        which = request.WhichOneof("which")
        if which is None:
            raise InvalidRequest(
                "which: exactly one of `version` and `channel` must be set", reason=Reason.FIELD_MISSING, field="which"
            )
        version = request.version if which == "version" else None
        manifest = await asyncio.to_thread(self._catalog.manifest, version, request.channel)
        decoded = await asyncio.to_thread(self._catalog.has_decoded, manifest)
        return pb.GetManifestResponse(manifest=manifest, blobs_url=self._blobs_url, decoded=decoded)

    async def ListVersions(self, request: pb.ListVersionsRequest, context: Context) -> pb.ListVersionsResponse:
        """A page of versions, newest first."""
        return await asyncio.to_thread(self._catalog.versions, request)

    async def ListChannels(self, request: pb.ListChannelsRequest, context: Context) -> pb.ListChannelsResponse:
        """The channels and where they point."""
        return pb.ListChannelsResponse(channels=self._catalog.channels(request.prefix))

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        """The channel's version, each move of it, and a sign of life while it is quiet."""
        check_channel("channel", request.channel)
        told = request.after_version
        while not self._runtime.draining.is_set():
            moved = self._moved  # taken before the look: a move after it sets this very event
            version = self._catalog.channel_version(request.channel)
            if version != told:
                yield pb.WatchResponse(version=version)
                told = version
            elif not await self._wait(moved):
                yield pb.WatchResponse(version=version)
        raise Unavailable(f"{self._runtime.replica} drains; watch again at its successor", reason=Reason.DRAINING)

    async def SetChannel(self, request: pb.SetChannelRequest, context: Context) -> pb.SetChannelResponse:
        """Promotes or rolls back."""
        return pb.SetChannelResponse(channel=await asyncio.to_thread(writable(self._catalog).set_channel, request))

    async def Pin(self, request: pb.PinRequest, context: Context) -> pb.PinResponse:
        """Pins or unpins."""
        await asyncio.to_thread(writable(self._catalog).pin, request.version, request.pinned)
        return pb.PinResponse()

    async def Prune(self, request: pb.PruneRequest, context: Context) -> pb.PruneResponse:
        """Removes old versions and blobs that nothing needs."""
        return await asyncio.to_thread(writable(self._catalog).prune, request)

    @property
    def _blobs_url(self) -> str:
        return self._runtime.http_url + PREFIX

    def _announce(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _wait(self, moved: asyncio.Event) -> bool:
        """Waits for a move of any channel or for the drain; False when it is time for a sign of life."""
        waits = [asyncio.create_task(event.wait()) for event in (moved, self._runtime.draining)]
        try:
            done, _ = await asyncio.wait(
                waits, timeout=self._runtime.config.sign_of_life_s, return_when=asyncio.FIRST_COMPLETED
            )
            return bool(done)
        finally:
            for task in waits:
                task.cancel()
