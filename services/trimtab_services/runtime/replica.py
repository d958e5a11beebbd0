"""A model service's model: a folder once, or a channel of a weights service for as long as the server lives.

    follower = Follower(runtime, load)
    Service(..., background=[follower.run])

For each version that the channel points to, the follower fetches and checks every byte, then awaits `load`, which
stages, tries out and swaps. Whatever goes wrong, the version that is served goes on being served; the reason is in
`last_swap_error` and the log, and the newest version is tried again, less and less often.

The version served before stays at hand until another one is fetched, so that a roll-back to it reads no weights.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import random
import shutil
import tempfile
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trimtab.aio import AsyncClient
from trimtab.channel import TLSConfig, Token
from trimtab.client import Client
from trimtab.errors import TrimtabError
from trimtab.v1 import weights_pb2
from trimtab.weights import BlobCache, FetchedVersion, fetch_version
from trimtab.weights.manifest import manifest_blobs
from trimtab_services.runtime.config import ModelServiceConfig, ModelSource, WeightsSource
from trimtab_services.runtime.readiness import Readiness
from trimtab_services.runtime.state import Runtime
from trimtab_services.runtime.threads import in_own_thread

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Follower", "ModelVersion"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_SILENCE_S = 45.0
"""A watch without a message for this long is dead: the service gives a sign of life every 10 seconds."""

_WATCH_S = 6 * 3600.0
_FETCH_S = 3600.0
_FIRST_RETRY_S = 0.5
_LAST_RETRY_S = 30.0
_VERSIONS = "versions"


class ModelVersion:
    """A version that is to be served, every byte of it checked.

    Attributes:
        version: its number; 0 for a folder of the configuration.
        weights_digest: digest of its tensors; empty for a folder.
        same_weights: True when the weights are those that are served already, so that only the number moves.
        files_digest: digest of its files (config, tokenizer, template, ...), the tensors aside; empty for a folder.
        manifest: what the store says of it; None for a folder.
    """

    def __init__(self, folder: Path, *, fetched: FetchedVersion | None = None, same_weights: bool = False) -> None:
        self.version = fetched.version if fetched is not None else 0
        self.weights_digest = fetched.weights_digest if fetched is not None else ""
        self.same_weights = same_weights
        self.files_digest = _digest_of(fetched.manifest.files) if fetched is not None else ""
        self.manifest: weights_pb2.Manifest | None = fetched.manifest if fetched is not None else None
        self._fetched = fetched
        self._folder = folder
        self._is_written = fetched is None
        self._writing = threading.Lock()

    def folder(self) -> Path:
        """A complete Hugging Face folder on disk. Blocks while it is written, the first time; safe from any thread.

        All of the weights go to the disk: for the tokenizer alone take `small_files`, for the weights alone `tensors`.
        """
        with self._writing:
            if not self._is_written and self._fetched is not None:
                from trimtab_models.versions import write_model_folder  # torch, which a server imports late

                write_model_folder(self._fetched, self._folder)
                self._is_written = True
        return self._folder

    @contextmanager
    def small_files(self) -> Iterator[Path]:
        """A folder with every file but the tensors, for as long as the context lasts."""
        if self._fetched is None:
            yield self._folder
            return
        with tempfile.TemporaryDirectory(prefix="trimtab-files-") as name:
            for path, content in self._fetched.files.items():
                target = Path(name) / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            yield Path(name)

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, on the CPU, in their stored dtype; they map files, so pages are read when touched."""
        from trimtab_models.versions import read_folder_tensors, tensors_to_torch

        if self._fetched is not None:
            return tensors_to_torch(self._fetched)
        return read_folder_tensors(self._folder)


Load = Callable[[ModelVersion], Awaitable[None]]
"""Stages, tries out and swaps; raises and leaves the old version serving when the new one is no good."""


class Follower:
    """Brings a service the versions that it is to serve.

    Args:
        runtime: the server; its configuration says where the model comes from, its state follows.
        load: awaited for one version after the other, never two at once.
        model_name: of the model, and label of the metrics; empty: `model_name` of the configuration, else the service's
            name.
        source: where the model comes from; None: the configuration says it.
        readiness: told when the model is there; None: it is the server's only one.
    """

    def __init__(
        self,
        runtime: Runtime[Any],
        load: Load,
        *,
        model_name: str = "",
        source: ModelSource | None = None,
        readiness: Readiness | None = None,
    ) -> None:
        config: ModelServiceConfig = runtime.config
        self._label = model_name or config.model_name or runtime.name
        self._source = source if source is not None else config.source
        self._readiness = readiness if readiness is not None else Readiness(runtime, [self._label])
        self.channel = self._source.weights.channel if self._source.weights is not None else ""
        """The channel that is followed; empty for a folder."""
        self.channel_version = 0
        """The version that the channel points to, as far as known; 0 for none and for a folder."""
        self.version: int | None = None
        """The version that is served; None before the first."""
        self.last_swap_error = ""
        """Why the newest version is not served; empty once it is."""
        self._runtime = runtime
        self._config = config
        self._load = load
        self._served: FetchedVersion | None = None
        self._previous: FetchedVersion | None = None
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Background work of a `Service`: loads the folder and returns, or follows the channel for ever.

        Raises:
            ModelFolderError, ConfigError: the configured folder or token file cannot be used.
        """
        source = self._source.weights
        if source is None:
            model = ModelVersion(self._source.model_folder or Path())
            await self._load(model)
            self.version = model.version
            self._runtime.metrics.model_version.labels(self._label).set(model.version)
            await self._readiness.serves(self._label)
            return
        await self._readiness.waits(self._label, channel=self.channel)
        with tempfile.TemporaryDirectory(prefix="trimtab-cache-", ignore_cleanup_errors=True) as temporary:
            directory = self._source.cache_directory or Path(temporary)
            token = Token(file=source.token_file) if source.token_file is not None else None
            insecure = self._config.insecure
            connect = partial(AsyncClient, source.address, token=token, tls=_tls(source), insecure=insecure)
            await connect().close()  # files that cannot be used end the service now; later they are only told
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch(connect))
                tasks.create_task(self._apply(source, token, directory.resolve()))

    async def _watch(self, connect: Callable[[], AsyncClient]) -> None:
        """Keeps `channel_version` what the channel points to; connects again for ever, each time with the certificates
        that the files then hold."""
        delay_s = _FIRST_RETRY_S
        while True:
            try:
                async with connect() as client, aclosing(self._messages(client)) as messages:
                    async for version in messages:
                        delay_s = _FIRST_RETRY_S
                        self._note(version)
            except (TrimtabError, TimeoutError) as error:
                why = str(error) or f"no sign of life for {_SILENCE_S:.0f} s"
                _log.warning("watch broke off", extra={"channel": self.channel, "error": why, "retry_s": delay_s})
            await asyncio.sleep(delay_s * random.uniform(0.75, 1.25))
            delay_s = min(2 * delay_s, _LAST_RETRY_S)

    def _note(self, version: int) -> None:
        if version and version != self.channel_version:
            self.channel_version = version
            self._runtime.metrics.channel_version.labels(self._label).set(version)
            self._news.set()

    async def _messages(self, client: AsyncClient) -> AsyncGenerator[int, None]:
        replies = client.watch(weights_pb2.WatchRequest(channel=self.channel), timeout_s=_WATCH_S)
        while True:
            async with asyncio.timeout(_SILENCE_S):
                reply = await anext(replies, None)
            if reply is None:
                return
            yield reply.version

    async def _apply(self, source: WeightsSource, token: Token | None, directory: Path) -> None:
        """Loads whatever the channel points to, until it is served or the channel moves on."""
        delay_s = _FIRST_RETRY_S
        while True:
            wanted = self.channel_version
            self._news.clear()
            if not wanted or wanted == self.version:
                await self._news.wait()
                delay_s = _FIRST_RETRY_S
                continue
            try:
                await self._swap(wanted, source, token, directory)
                delay_s = _FIRST_RETRY_S
            except Exception as error:
                await self._keep_old(wanted, error, directory)
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay_s * random.uniform(0.75, 1.25)):
                        await self._news.wait()
                is_same = self.channel_version == wanted
                delay_s = min(2 * delay_s, _LAST_RETRY_S) if is_same else _FIRST_RETRY_S

    async def _swap(self, wanted: int, source: WeightsSource, token: Token | None, directory: Path) -> None:
        insecure, tls = self._config.insecure, _tls(source)

        def fetch() -> FetchedVersion:
            with Client(source.address, token=token, tls=tls, insecure=insecure) as client:
                base = self._base_of(wanted)
                fetched = fetch_version(client, version=wanted, cache=directory, base=base, timeout_s=_FETCH_S)
            self._trim(directory, fetched)
            return fetched

        fetched = await in_own_thread(fetch)
        self._runtime.metrics.fetched_bytes.labels(self._label).inc(fetched.fetched_bytes)
        served = self._served
        same_weights = served is not None and served.weights_digest == fetched.weights_digest
        folder = directory / _VERSIONS / f"{fetched.version}-{fetched.weights_digest[:16]}"
        await self._load(ModelVersion(folder, fetched=fetched, same_weights=same_weights))
        self.version, self.last_swap_error = fetched.version, ""
        self._previous, self._served = served, fetched
        await self._readiness.serves(self._label)
        self._runtime.metrics.model_version.labels(self._label).set(fetched.version)
        self._runtime.metrics.swaps.labels(self._label, "ok").inc()
        extra = {"channel": self.channel, "version": fetched.version, "same_weights": same_weights}
        _log.info("version served", extra=extra)

    def _base_of(self, wanted: int) -> FetchedVersion | None:
        """What a version is read against: itself, where it was served before."""
        if self._previous is not None and self._previous.version == wanted:
            return self._previous
        self._previous = None  # whole bytes of two versions at a time, on the disk of the cache
        return self._served

    async def _keep_old(self, wanted: int, error: Exception, directory: Path) -> None:
        reason = _reason(error, directory)
        self.last_swap_error = f"version {wanted}: {reason}"
        self._runtime.metrics.swaps.labels(self._label, "failed").inc()
        is_fault = not isinstance(error, TrimtabError | OSError)
        extra = {"channel": self.channel, "version": wanted, "served_version": self.version, "error": reason}
        _log.error("version not served, the old one stays", extra=extra, exc_info=error if is_fault else None)
        if self.version is None:
            await self._readiness.waits(self._label, channel=self.channel, reason=self.last_swap_error)

    def _trim(self, directory: Path, fetched: FetchedVersion) -> None:
        """Bounds the cache: what is served and what was just fetched stays."""
        kept = [fetched, *([self._served] if self._served is not None else [])]
        BlobCache(directory).trim(digest for version in kept for digest in manifest_blobs(version.manifest))
        numbers = {str(version.version) for version in kept}
        for folder in (directory / _VERSIONS).glob("*-*"):
            if folder.name.partition("-")[0] not in numbers:
                shutil.rmtree(folder, ignore_errors=True)


def _reason(error: Exception, directory: Path) -> str:
    """Why a version is not served; of a full disk also which one, which the system does not say."""
    if isinstance(error, TrimtabError):
        return f"{error.reason}: {error.message}"
    text = f"{type(error).__name__}: {error}"
    is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if not is_full and f"os error {errno.ENOSPC}" not in text:  # as safetensors words it
        return text
    folders = {"the cache": directory, "temporary files": Path(tempfile.gettempdir())}
    free = [f"{shutil.disk_usage(folder).free} bytes for {what} in {folder}" for what, folder in folders.items()]
    return f"{text}; free are {', '.join(free)}; make space"


def _digest_of(files: Iterable[weights_pb2.FileEntry]) -> str:
    """SHA-256 over path and digest of each file, whatever their order."""
    lines = sorted(f"{entry.digest} {entry.path}\n" for entry in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _tls(source: WeightsSource) -> TLSConfig | None:
    if source.tls is None:
        return None
    tls = source.tls
    return TLSConfig(ca_file=tls.ca_file, certificate_file=tls.certificate_file, key_file=tls.key_file)
