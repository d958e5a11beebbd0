"""The services as a run sees them: rollouts from three fleets, versions into the weights service, checks before any
work.

Everything that must agree is asked and compared at the start: tokenizers by digest, limits by number. A mismatch ends
the run here, with both values, before a model is trained.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab import AsyncClient, Client, TLSConfig, Token
from trimtab.errors import ConfigError, LeaseHeld, Mismatch, TrimtabError, Unavailable
from trimtab.local import CHANNELS
from trimtab.resolver import FileResolver, Resolver, StaticResolver
from trimtab.types import ServiceInfo, ServiceState
from trimtab.v1 import weights_pb2
from trimtab_models.tokenizer import tokenizer_digest
from trimtab_models.versions import publish_folder, publish_model
from trimtab_trainer.config import ServiceAddresses, ServicesConfig
from trimtab_trainer.fleet import Fleet
from trimtab_trainer.rollouts import RolloutDispatcher

__all__ = ["Services"]

_LEASE_TTL_S = 60.0
_SWAP_TIMEOUT_S = 300.0
_PUBLISH_TIMEOUT_S = 600.0


class Services:
    """Connections of one run; close it when the stage ends.

    Args:
        config: where the services are.
        run: name of the run, for leases and manifests.
        stage: name of the stage, for manifests.
        rollout_timeout_s: longest wait for one batch of rollouts.
        on_queue: called with (waiting, running, replicas) whenever the rollouts given out change.

    Raises:
        ConfigError: no addresses for a service.
        Unavailable: the weights service cannot be reached.
        LeaseHeld: another run publishes to a channel of generation, reward or reference.
    """

    def __init__(
        self,
        config: ServicesConfig,
        *,
        run: str,
        stage: str,
        rollout_timeout_s: float,
        on_queue: Callable[[int, int, int], None] = lambda waiting, running, replicas: None,
    ) -> None:
        self._config = config
        self._run, self._stage = run, stage
        self._token = Token(file=config.token_file) if config.token_file else None
        self._tls = TLSConfig(**config.tls.model_dump()) if config.tls else None
        addresses = _resolver(config.of("weights"), "weights").addresses()
        if not addresses:
            raise ConfigError("services.weights: no address is known", field="services.weights")
        self.weights = Client(addresses[0], token=self._token, tls=self._tls, timeout_s=_PUBLISH_TIMEOUT_S)
        self.weights.info(timeout_s=10.0)
        holder = f"{run} on {socket.gethostname()}, process {os.getpid()}"
        self._leases: dict[str, _LeaseKeeper] = {}
        try:
            for channel in CHANNELS.values():  # nobody else moves what this run samples from or is judged by
                self._leases[channel] = _LeaseKeeper(self.weights, f"{channel.partition('/')[0]}/", holder)
        except BaseException:
            self._give_leases_back()
            raise
        self.rollouts = RolloutDispatcher(self._fleets, timeout_s=rollout_timeout_s, on_queue=on_queue)

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

    def publish(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        step: int,
        metrics: Mapping[str, float] | None = None,
    ) -> int:
        """Publishes the policy's weights to the channel that generation follows; returns the version's number.

        Raises:
            TrimtabError: the store refused it, or cannot be reached. Nothing half-done is visible then.
        """
        manifest = publish_model(
            self.weights,
            model,
            tokenizer,
            channels=[CHANNELS["generation"]],
            lease_id=self._lease(CHANNELS["generation"]),
            run=self._run,
            stage=self._stage,
            step=step,
            metrics=metrics or {},
        )
        return int(manifest.version)

    def roll_back(self, version: int) -> None:
        """Points the channel that generation follows to an earlier version.

        Raises:
            TrimtabError: the weights service refused it, or cannot be reached.
        """
        request = weights_pb2.SetChannelRequest(
            channel=CHANNELS["generation"],
            version=version,
            expected_previous_version=-1,
            lease_id=self._lease(CHANNELS["generation"]),
        )
        self.weights.set_channel(request, timeout_s=30.0)

    def serve(self, service: str, folder: Path) -> int:
        """Publishes a model folder to the channel of `reward` or `reference` and waits until every replica serves it.

        Weights that the store has already are not sent again, and a replica that serves them only notes the number.

        Raises:
            Unavailable: a replica did not serve it in time; the message has its state and its last swap error.
        """
        manifest = publish_folder(
            self.weights,
            folder,
            channels=[CHANNELS[service]],
            lease_id=self._lease(CHANNELS[service]),
            run=self._run,
            stage=self._stage,
        )
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

    def infos(self, service: str) -> dict[str, ServiceInfo]:
        """GetInfo of every replica of a service that answers, by address."""
        return self.rollouts.run(self._fleet(service).infos())

    def _lease(self, channel: str) -> str:
        """Id of the lease on a channel; raises what its renewal met."""
        keeper = self._leases[channel]
        keeper.check()
        return keeper.lease_id

    def _fleets(self) -> tuple[Fleet, Fleet, Fleet]:
        def fleet(name: str) -> Fleet:
            resolver = _resolver(self._config.of(name), name)  # type: ignore[arg-type]  # one of the four names
            return Fleet(name, resolver, self._connect, patience_s=self._config.patience_s)

        return fleet("generation"), fleet("reward"), fleet("reference")

    def _fleet(self, service: str) -> Fleet:
        fleet: Fleet = getattr(self.rollouts, service)
        return fleet

    def _connect(self, address: str) -> AsyncClient:
        return AsyncClient(address, token=self._token, tls=self._tls)

    def _wait_served(self, fleet: Fleet, weights_digest: str, version: int) -> None:
        give_up = time.monotonic() + _SWAP_TIMEOUT_S
        while True:
            infos = self.rollouts.run(fleet.infos())
            behind = {address: info for address, info in infos.items() if not _serves(info, weights_digest)}
            if infos and not behind:
                return
            if time.monotonic() > give_up:
                states = "; ".join(f"{a}: {_state(info)}" for a, info in behind.items()) or fleet.describe()
                raise Unavailable(
                    f"{fleet.name} does not serve version {version} after {_SWAP_TIMEOUT_S:.0f} s: {states}",
                    field=f"services.{fleet.name}",
                )
            time.sleep(0.1)


class _LeaseKeeper:
    """Holds the lease on a channel prefix and renews it from a thread."""

    def __init__(self, weights: Client, prefix: str, holder: str) -> None:
        self._weights = weights
        self._prefix = prefix
        self._holder = holder
        self._lost: TrimtabError | None = None
        self._stop = threading.Event()
        self.lease_id = self._acquire()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises the error that a renewal met."""
        if self._lost is not None:
            raise self._lost

    def close(self) -> None:
        """Stops renewing and gives the lease back."""
        self._stop.set()
        self._thread.join()
        try:
            self._weights.release_lease(weights_pb2.ReleaseLeaseRequest(lease_id=self.lease_id), timeout_s=5.0)
        except TrimtabError:
            pass  # it ends by itself

    def _acquire(self) -> str:
        """Takes the lease; waits for one that a killed process of an earlier try left behind to end."""
        give_up = time.monotonic() + _LEASE_TTL_S + 10
        while True:
            try:
                return self._request("")
            except LeaseHeld:
                if time.monotonic() > give_up:
                    raise
                time.sleep(1.0)

    def _renew(self) -> None:
        expires = time.monotonic() + _LEASE_TTL_S
        while not self._stop.wait(_LEASE_TTL_S / 4):
            try:
                self._request(self.lease_id)
                expires = time.monotonic() + _LEASE_TTL_S
            except LeaseHeld as error:
                self._lost = error
                return
            except TrimtabError as error:
                if time.monotonic() > expires:
                    self._lost = error
                    return

    def _request(self, lease_id: str) -> str:
        request = weights_pb2.AcquireLeaseRequest(
            channel_prefix=self._prefix, holder=self._holder, ttl_ms=int(_LEASE_TTL_S * 1000), lease_id=lease_id
        )
        return self._weights.acquire_lease(request, timeout_s=10.0).lease.lease_id


def _resolver(addresses: ServiceAddresses, service: str) -> Resolver:
    if addresses.endpoints_file is not None:
        return FileResolver(addresses.endpoints_file, service)
    return StaticResolver(addresses.addresses)


def _serves(info: ServiceInfo, weights_digest: str) -> bool:
    return info.state is ServiceState.SERVING and any(m.served.weights_digest == weights_digest for m in info.models)


def _state(info: ServiceInfo) -> str:
    errors = [model.last_swap_error for model in info.models if model.last_swap_error]
    return f"{info.state.value} {info.state_reason} {' '.join(errors)}".strip()
