"""The services as a run sees them: rollouts from three fleets, versions into the weights service, checks before any
work.

Everything that must agree is asked and compared at the start: tokenizers by digest, limits by number. A mismatch ends
the run here, with both values, before a model is trained.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab import AsyncClient, Client, TLSConfig, Token
from trimtab.errors import ConfigError, DeadlineExceeded, InvalidRequest, Mismatch, Reason, Unavailable
from trimtab.local import CHANNELS
from trimtab.resolver import DNSResolver, FileResolver, Resolver, StaticResolver
from trimtab.types import ServiceInfo, ServiceState
from trimtab.v1 import weights_pb2
from trimtab.weights import Publication, TensorData
from trimtab_models.tokenizer import tokenizer_digest
from trimtab_models.versions import ModelPublisher, publish_folder
from trimtab_trainer.config import ServiceAddresses, ServicesConfig
from trimtab_trainer.context import StageContext, StageStopped
from trimtab_trainer.fleet import Fleet
from trimtab_trainer.lease import LeaseKeeper
from trimtab_trainer.rollouts import RolloutDispatcher

__all__ = ["Services", "connect"]

T = TypeVar("T")


class _Published(Protocol):
    @property
    def version(self) -> int: ...


PublishedT = TypeVar("PublishedT", bound=_Published)

_MAX_CHAIN = 16
_SWAP_TIMEOUT_S = 300.0
_PUBLISH_TIMEOUT_S = 600.0
_TELL_AFTER_S = 5.0
_MOST_ID = 200


def connect(context: StageContext, *, rollout_timeout_s: float) -> Services:
    """The services of a run's spec, for one of its stages.

    Raises:
        ConfigError: the spec names no services.
        TrimtabError: as `Services`.
    """
    spec, stage = context.spec, context.stage
    if spec.services is None:
        raise ConfigError(f"services: not set, but {stage} works with services", field="services")

    def on_queue(waiting: int, running: int, replicas: int) -> None:
        context.reporter.rollout_queue(stage, 0, waiting=waiting, running=running, replicas=replicas)

    return Services(
        spec.services,
        run=spec.name,
        stage=stage,
        rollout_timeout_s=rollout_timeout_s,
        deterministic=spec.deterministic,
        lease_folder=spec.directory,
        on_queue=on_queue,
        tell=context.warn,
        stop_asked=lambda: context.orders.stop_asked,
    )


class Services:
    """Connections of one run; close it when the stage ends.

    Args:
        config: where the services are.
        run: name of the run, for leases and manifests.
        stage: name of the stage, for manifests.
        rollout_timeout_s: longest wait for one batch of rollouts.
        deterministic: services must be so too.
        lease_folder: the run's own, where its next life finds the leases that this one was killed with.
        on_queue: called with (waiting, running, replicas) whenever the rollouts given out change.
        tell: takes one sentence on whatever makes the run wait.
        stop_asked: ends every wait with StageStopped once it is true.

    Raises:
        ConfigError: no addresses for a service.
        Unavailable: a service does not answer within `start_timeout_s`.
        LeaseHeld: another run publishes to a channel of generation, reward or reference.
        Mismatch: `deterministic`, and a replica is not.
    """

    def __init__(
        self,
        config: ServicesConfig,
        *,
        run: str,
        stage: str,
        rollout_timeout_s: float,
        deterministic: bool = False,
        lease_folder: Path | None = None,
        on_queue: Callable[[int, int, int], None] = lambda waiting, running, replicas: None,
        tell: Callable[[str], None] = lambda text: None,
        stop_asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config = config
        self._tell, self._stop_asked = tell, stop_asked
        self._run, self._stage = run, stage
        self._token = Token(file=config.token_file) if config.token_file else None
        self._tls = TLSConfig(**config.tls.model_dump()) if config.tls else None
        self.weights = Client(self._weights_address(), token=self._token, tls=self._tls, timeout_s=_PUBLISH_TIMEOUT_S)
        self._patiently(lambda: self.weights.info(timeout_s=10.0), patience_s=config.start_timeout_s)
        self.rollouts = RolloutDispatcher(self._fleets, timeout_s=rollout_timeout_s, on_queue=on_queue)
        self._leases: dict[str, LeaseKeeper] = {}
        try:
            self._check_answering()
            if deterministic:
                self._check_deterministic()
            for channel in CHANNELS.values():  # nobody else moves what this run samples from or is judged by
                prefix = f"{channel.partition('/')[0]}/"
                kept_in = lease_folder / f".lease-{prefix.rstrip('/')}" if lease_folder is not None else None
                self._leases[channel] = LeaseKeeper(
                    self.weights, prefix, run, kept_in=kept_in, tell=tell, pause=self._pause
                )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes every connection and gives the lease back."""
        self.rollouts.close()
        self._give_leases_back()
        self.weights.close()

    def _give_leases_back(self) -> None:
        for lease in self._leases.values():
            lease.close()

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def publish(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, step: int, name: str = "") -> int:
        """Publishes a policy once; returns the version's number. Errors as `publish_snapshot`."""
        publisher = self.model_publisher(model, tokenizer, max_chain=0)
        return self.publish_snapshot(publisher, publisher.snapshot(), step=step, name=name).version

    def model_publisher(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        serving_dtype: str | None = None,
        max_chain: int = _MAX_CHAIN,
    ) -> ModelPublisher:
        """A publisher of a policy to the channel that generation follows; its snapshots go to `publish_snapshot`."""
        channels = [CHANNELS["generation"]]
        return ModelPublisher(
            self.weights, model, tokenizer, channels=channels, serving_dtype=serving_dtype, max_chain=max_chain
        )

    def publish_snapshot(
        self, publisher: ModelPublisher, snapshot: list[TensorData], *, step: int, name: str = ""
    ) -> Publication:
        """Publishes a policy's weights to the channel that generation follows. May run in a thread of its own.

        A publication is named by run, stage and step (or `name`): a resumed run that makes the same weights again gets
        the version that it made then, and the channel goes to it.

        Raises:
            TrimtabError: the store refused it, or cannot be reached. Nothing half-done is visible then.
        """

        def publication(publish_id: str) -> Publication:
            return publisher.publish(
                snapshot,
                lease_id=self._lease(CHANNELS["generation"]),
                run=self._run,
                stage=self._stage,
                step=step,
                publish_id=publish_id,
            )

        return self._published(publication, CHANNELS["generation"], name or str(step))

    def check_policy(self, tokenizer: PreTrainedTokenizerBase, version: int, *, longest: int) -> None:
        """Waits until every generation replica serves a version, then compares tokenizers and lengths with the run's.

        Raises:
            Unavailable: a replica does not come to serve it.
            Mismatch: names the service and both values.
        """
        self.wait_policy(version)
        self.check_tokenizers(tokenizer, ["generation", "reference", "reward"])
        self.check_lengths(longest)

    def wait_policy(self, version: int) -> None:
        """Waits until every generation replica serves a version's weights.

        Raises:
            Unavailable: a replica does not come to serve it.
        """
        request = weights_pb2.GetManifestRequest(version=version)
        manifest = self._patiently(lambda: self.weights.get_manifest(request, timeout_s=30.0)).manifest
        self._wait_served(self._fleet("generation"), manifest.weights_digest, version)

    def policy_version(self) -> int:
        """The version that generation's channel points to now; 0 when it does not exist."""
        return self._channel_version(CHANNELS["generation"])

    def point_policy_to(self, version: int) -> None:
        """Points the channel that generation follows to a version that exists.

        Raises:
            TrimtabError: the weights service refused it, or cannot be reached.
        """
        self._point(CHANNELS["generation"], version)

    def serve(self, service: str, folder: Path) -> int:
        """Publishes a model folder to the channel of `reward` or `reference` and waits until every replica serves it.

        Weights that the store has already are not sent again, and a replica that serves them only notes the number.

        Raises:
            Unavailable: a replica did not serve it in time; the message has its state and its last swap error.
        """

        def publication(publish_id: str) -> weights_pb2.Manifest:
            return publish_folder(
                self.weights,
                folder,
                channels=[CHANNELS[service]],
                lease_id=self._lease(CHANNELS[service]),
                run=self._run,
                stage=self._stage,
                publish_id=publish_id,
            )

        manifest = self._published(publication, CHANNELS[service], f"{service}/{folder.parent.name}/{folder.name}")
        self._wait_served(self._fleet(service), manifest.weights_digest, manifest.version)
        return int(manifest.version)

    def check_tokenizers(self, tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> None:
        """Compares the tokenizer of the run with that of every model that some services serve now.

        Args:
            tokenizer: of the run.
            names: of the services.

        Raises:
            Mismatch: names the service and both digests.
        """
        own = tokenizer_digest(tokenizer)
        for name in names:
            for address, info in self.infos(name).items():
                for model in info.models:
                    theirs = model.served.tokenizer_digest
                    if theirs and theirs != own:
                        raise Mismatch(
                            f"{name} at {address} has {model.served.name} with tokenizer {theirs}; the run's is {own}, "
                            "and token ids travel between them",
                            field=f"services.{name}",
                            value=theirs,
                            limit=own,
                        )

    def check_lengths(self, tokens: int) -> None:
        """Compares the longest sequence of the run with what every service takes.

        Raises:
            Mismatch: names the service and both numbers.
        """
        for name in ("generation", "reward", "reference"):
            for address, info in self.infos(name).items():
                for model in info.models:
                    if 0 < model.max_sequence_tokens < tokens:
                        raise Mismatch(
                            f"{name} at {address} takes sequences of at most {model.max_sequence_tokens} tokens; "
                            f"prompts and completions of this run reach {tokens}",
                            field=f"services.{name}",
                            value=tokens,
                            limit=model.max_sequence_tokens,
                        )

    def longest_sequence(self, name: str) -> int | None:
        """Tokens that every replica of a service takes in a sequence; None where none says."""
        limits = [model.max_sequence_tokens for info in self.infos(name).values() for model in info.models]
        return min(filter(None, limits), default=None)

    def infos(self, service: str) -> dict[str, ServiceInfo]:
        """GetInfo of every replica of a service that answers, by address."""
        return self.rollouts.run(self._fleet(service).infos())

    def _published(self, publication: Callable[[str], PublishedT], channel: str, name: str) -> PublishedT:
        """Makes a publication under its name, or a new one where other weights have that; the channel points to it."""
        try:
            publish_id = f"{self._run}/{self._stage}/{name}"[:_MOST_ID]
            published = self._patiently(lambda: publication(publish_id))
        except InvalidRequest as error:
            if error.reason is not Reason.DUPLICATE_ID:
                raise
            another = uuid.uuid4().hex  # a run that is not deterministic came to other weights after a resume
            published = self._patiently(lambda: publication(another))
        if self._channel_version(channel) != published.version:
            self._point(channel, published.version)
        return published

    def _channel_version(self, channel: str) -> int:
        request = weights_pb2.ListChannelsRequest(prefix=channel)
        found = self._patiently(lambda: self.weights.list_channels(request, timeout_s=30.0)).channels
        return next((row.version for row in found if row.name == channel), 0)

    def _point(self, channel: str, version: int) -> None:
        def point() -> None:
            lease_id = self._lease(channel)  # asked for each time: one that ran out meanwhile is taken again
            request = weights_pb2.SetChannelRequest(
                channel=channel, version=version, expected_previous_version=-1, lease_id=lease_id
            )
            self.weights.set_channel(request, timeout_s=30.0)

        self._patiently(point)

    def _patiently(self, call: Callable[[], T], *, patience_s: float | None = None) -> T:
        """Makes a call to the weights service that is safe to repeat, again and again while the service is away.

        Raises:
            Unavailable, DeadlineExceeded: it was away for `patience_s`, else for that of the spec.
            StageStopped: a stop was asked for meanwhile.
        """
        give_up = time.monotonic() + (self._config.patience_s if patience_s is None else patience_s)
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

    def _pause(self, seconds: float) -> None:
        """Sleeps in a wait that a stop order ends."""
        if self._stop_asked():
            raise StageStopped(f"{self._stage} was asked to stop while it waited for a service")
        time.sleep(seconds)

    def _weights_address(self) -> str:
        """Waits for one: a service that is being started again has none for a moment."""
        resolver = _resolver(self._config.of("weights"), "weights")
        give_up = time.monotonic() + self._config.start_timeout_s
        while not (addresses := resolver.addresses()):
            if time.monotonic() > give_up:
                raise Unavailable(
                    f"services.weights: no address is known after {self._config.start_timeout_s:g} s",
                    field="services.weights",
                )
            self._pause(0.2)
        return addresses[0]

    def _check_answering(self) -> None:
        """Waits for a first answer of each service, whatever its state."""
        give_up = time.monotonic() + self._config.start_timeout_s
        silent, told = ["generation", "reward", "reference"], False
        while silent := [name for name in silent if not self.infos(name)]:
            if not told:
                self._tell(f"waits for {', '.join(silent)}: {self._fleet(silent[0]).describe()}")
                told = True
            if time.monotonic() > give_up:
                name = silent[0]
                raise Unavailable(
                    f"services.{name}: no replica answers after {self._config.start_timeout_s:g} s: "
                    f"{self._fleet(name).describe()}",
                    field=f"services.{name}",
                )
            self._pause(0.2)

    def _check_deterministic(self) -> None:
        for name in ("generation", "reward", "reference"):
            for address, info in self.infos(name).items():
                if not info.deterministic:
                    raise Mismatch(
                        f"deterministic: the run is, but {name} at {address} is not; set `deterministic: true` there, "
                        "or false here",
                        field=f"services.{name}",
                        value=False,
                        limit=True,
                    )

    def _lease(self, channel: str) -> str:
        """Id of the lease on a channel; raises what its renewal met."""
        keeper = self._leases[channel]
        keeper.check()
        return keeper.lease_id

    def _fleets(self) -> tuple[Fleet, Fleet, Fleet]:
        def fleet(name: str) -> Fleet:
            resolver = _resolver(self._config.of(name), name)  # type: ignore[arg-type]  # one of the four names
            return Fleet(name, resolver, self._connect, patience_s=self._config.patience_s, tell=self._tell)

        return fleet("generation"), fleet("reward"), fleet("reference")

    def _fleet(self, service: str) -> Fleet:
        fleet: Fleet = getattr(self.rollouts, service)
        return fleet

    def _connect(self, address: str) -> AsyncClient:
        return AsyncClient(address, token=self._token, tls=self._tls)

    def _wait_served(self, fleet: Fleet, weights_digest: str, version: int) -> None:
        """Waits long for replicas that load a version, less where one refuses it or where none answers."""
        began = answered = well = time.monotonic()
        told = False
        while True:
            infos = self.rollouts.run(fleet.infos())
            behind = {address: info for address, info in infos.items() if not _serves(info, weights_digest)}
            if infos and not behind:
                return
            now = time.monotonic()
            answered = now if infos else answered
            well = well if any(map(_swap_errors, behind.values())) else now
            states = "; ".join(f"{a}: {_state(info)}" for a, info in behind.items()) or fleet.describe()
            if not told and now > began + _TELL_AFTER_S:
                self._tell(f"waits for {fleet.name} to serve version {version}: {states}")
                told = True
            patience_s = self._config.patience_s
            if now > began + _SWAP_TIMEOUT_S or now > min(answered, well) + patience_s:
                raise Unavailable(
                    f"{fleet.name} does not serve version {version} after {now - began:.0f} s: {states}",
                    field=f"services.{fleet.name}",
                )
            self._pause(0.1)


def _resolver(addresses: ServiceAddresses, service: str) -> Resolver:
    if addresses.endpoints_file is not None:
        return FileResolver(addresses.endpoints_file, service)
    if addresses.dns is not None:
        return DNSResolver.of(addresses.dns)
    return StaticResolver(addresses.addresses)


def _serves(info: ServiceInfo, weights_digest: str) -> bool:
    return info.state is ServiceState.SERVING and any(m.served.weights_digest == weights_digest for m in info.models)


def _swap_errors(info: ServiceInfo) -> list[str]:
    return [model.last_swap_error for model in info.models if model.last_swap_error]


def _state(info: ServiceInfo) -> str:
    return f"{info.state.value} {info.state_reason} {' '.join(_swap_errors(info))}".strip()
