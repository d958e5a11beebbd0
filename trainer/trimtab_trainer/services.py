"""The services as a run sees them: rollouts from three fleets, versions into the weights service, checks before any
work.

Everything that must agree is asked and compared at the start: tokenizers by digest, limits by number. A mismatch ends
the run here, with both values, before a model is trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab import AsyncClient, Client
from trimtab.errors import ConfigError, Mismatch, Unavailable
from trimtab.local import CHANNELS
from trimtab.types import ServiceInfo, ServiceState
from trimtab.v1 import weights_pb2
from trimtab.v1.trainer_pb2 import RunReplicas
from trimtab.weights import Publication, TensorData
from trimtab_models.tokenizer import tokenizer_digest
from trimtab_models.versions import ModelPublisher, publish_folder
from trimtab_trainer.channels import Name, RunChannels
from trimtab_trainer.context import StageContext, StageStopped
from trimtab_trainer.distributed import snapshot
from trimtab_trainer.fleet import Fleet
from trimtab_trainer.replica_report import tell_replicas
from trimtab_trainer.rollouts import RolloutDispatcher
from trimtab_trainer.services_config import ServiceName, ServicesConfig

__all__ = ["Services", "connect"]

_SWAP_TIMEOUT_S = 300.0
_PUBLISH_TIMEOUT_S = 600.0
_TELL_AFTER_S = 5.0


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
        on_replicas=context.reporter.replicas,
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
        on_replicas: called with the state of all replicas every 5 seconds, and with none at the end.
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
        on_replicas: Callable[[RunReplicas], None] = lambda replicas: None,
        tell: Callable[[str], None] = lambda text: None,
        stop_asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config = config
        self._tell, self._stop_asked = tell, stop_asked
        self._stage = stage
        self.weights = Client(self._weights_address(), timeout_s=_PUBLISH_TIMEOUT_S, **config.credentials("weights"))
        self._channels = RunChannels(
            self.weights, run=run, stage=stage, patience_s=config.patience_s, tell=tell, pause=self._pause
        )
        self._channels.patiently(lambda: self.weights.info(timeout_s=10.0), patience_s=config.start_timeout_s)
        self.rollouts = RolloutDispatcher(self._fleets, timeout_s=rollout_timeout_s, on_queue=on_queue)
        try:
            self._check_answering()
            fleets = (self.rollouts.generation, self.rollouts.reward, self.rollouts.reference)
            self.rollouts.run_beside(tell_replicas(fleets, on_replicas))
            if deterministic:
                self._check_deterministic()
            self._channels.lease(lease_folder)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes every connection and gives the lease back."""
        self.rollouts.close()
        self._channels.close()
        self.weights.close()

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def publish(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, step: int, name: str = "") -> int:
        """Publishes a policy once; returns the version's number. Errors as `publish_snapshot`."""
        publisher = self.model_publisher(model, tokenizer, max_chain=0)
        return self.publish_snapshot(publisher, snapshot(publisher), step=step, name=name).version

    def model_publisher(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any
    ) -> ModelPublisher:
        """A publisher of a policy to the channel that generation follows; its snapshots go to `publish_snapshot`.

        Args:
            model, tokenizer: of the policy.
            options: further arguments of `ModelPublisher`.
        """
        return ModelPublisher(self.weights, model, tokenizer, channels=[CHANNELS["generation"]], **options)

    def publish_snapshot(
        self, publisher: ModelPublisher, snapshot: list[TensorData], *, step: int, name: str = ""
    ) -> Publication:
        """Publishes a policy's weights to the channel that generation follows. May run in a thread of its own.

        A publication is named by run, stage and step (or `name`): a resumed run that makes the same weights again gets
        the version that it made then, and the channel goes to it.

        Raises:
            TrimtabError: as `RunChannels.published`.
        """

        def publish(named: Name) -> Publication:
            return publisher.publish(snapshot, step=step, **named)

        return self._channels.published(CHANNELS["generation"], name or str(step), publish)

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
        self._wait_served(self._fleet("generation"), self._channels.weights_digest(version), version)

    def policy_version(self) -> int:
        """The version that generation's channel points to now; 0 when it does not exist."""
        return self._channels.version(CHANNELS["generation"])

    def point_policy_to(self, version: int) -> None:
        """Points the channel that generation follows to a version that exists.

        Raises:
            TrimtabError: the weights service refused it, or cannot be reached.
        """
        self._channels.point(CHANNELS["generation"], version)

    def serve(self, service: str, folder: Path) -> int:
        """Publishes a model folder to the channel of `reward` or `reference` and waits until every replica serves it.

        Weights that the store has already are not sent again, and a replica that serves them only notes the number.

        Raises:
            Unavailable: a replica did not serve it in time; the message has its state and its last swap error.
        """

        def publish(named: Name) -> weights_pb2.Manifest:
            return publish_folder(self.weights, folder, channels=[CHANNELS[service]], **named)

        manifest = self._channels.published(CHANNELS[service], f"{service}/{folder.parent.name}/{folder.name}", publish)
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

    def check_lengths(self, tokens: int, names: Sequence[str] = ("generation", "reward", "reference")) -> None:
        """Compares the longest sequence of the run with what some services take.

        Raises:
            Mismatch: names the service and both numbers.
        """
        for name in names:
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

    def _pause(self, seconds: float) -> None:
        """Sleeps in a wait that a stop order ends."""
        if self._stop_asked():
            raise StageStopped(f"{self._stage} was asked to stop while it waited for a service")
        time.sleep(seconds)

    def _weights_address(self) -> str:
        """Waits for one: a service that is being started again has none for a moment."""
        give_up = time.monotonic() + self._config.start_timeout_s
        with closing(self._config.of("weights").resolver("weights")) as resolver:
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

    def _fleets(self) -> tuple[Fleet, Fleet, Fleet]:
        def fleet(name: ServiceName) -> Fleet:
            resolver = self._config.of(name).resolver(name)
            connect = partial(AsyncClient, **self._config.credentials(name))
            return Fleet(name, resolver, connect, patience_s=self._config.patience_s, tell=self._tell)

        return fleet("generation"), fleet("reward"), fleet("reference")

    def _fleet(self, service: str) -> Fleet:
        fleet: Fleet = getattr(self.rollouts, service)
        return fleet

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


def _serves(info: ServiceInfo, weights_digest: str) -> bool:
    return info.state is ServiceState.SERVING and any(m.served.weights_digest == weights_digest for m in info.models)


def _swap_errors(info: ServiceInfo) -> list[str]:
    return [model.last_swap_error for model in info.models if model.last_swap_error]


def _state(info: ServiceInfo) -> str:
    return f"{info.state.value} {info.state_reason} {' '.join(_swap_errors(info))}".strip()
