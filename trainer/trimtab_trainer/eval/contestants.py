"""The models that an evaluation sets beside one another, each behind a service of its own or of yours.

A contestant is NAME=PLACE. PLACE is a model folder, such as those of a run (`models/sft/epoch-1`, `models/ppo/last`): a
service is started on it for as long as it is needed, one contestant after another, configured by the environment
(`TRIMTAB_GENERATION__DEVICE=cuda`). Or it is host:port of a service that is there; a service serves one version at a
time, so several contestants are several services, or several folders written by `trimtab weights export`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.channel import TLSConfig, Token
from trimtab.client import Client
from trimtab.errors import ConfigError, Mismatch, Unavailable
from trimtab.local.replica import Replica
from trimtab.types import ServiceInfo, ServiceState

__all__ = [
    "Comparison",
    "Connection",
    "Contestant",
    "Served",
    "ask_services",
    "baseline_of",
    "check_model_folder",
    "parse_contestants",
    "served",
]

_START_S = 600.0
"""Seconds that a service of ours gets to load its model."""
_POLL_S = 0.1


@dataclass(frozen=True)
class Contestant:
    """A model by its name in the tables, and where it is: a folder, host:port or a URL."""

    name: str
    place: str

    @property
    def folder(self) -> Path | None:
        """The model folder; None where a service is there already."""
        return Path(self.place) if Path(self.place).is_dir() else None

    @property
    def is_url(self) -> bool:
        """Whether it is a URL, of what may be no service of ours."""
        return self.place.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Connection:
    """How services that are there already are reached; `timeout_s` holds for every call to any service."""

    timeout_s: float
    token: Token | None = None
    tls: TLSConfig | None = None
    insecure: bool = False


@dataclass(frozen=True)
class Comparison:
    """The models that a command sets beside one another.

    Attributes:
        contestants: as the options name them.
        baseline: name of the one that the others are compared with.
        connection: to services that are there.
        tokenizers: folder with the tokenizer of each contestant, by name; empty where the command needs none.
    """

    contestants: Sequence[Contestant]
    baseline: str
    connection: Connection
    tokenizers: Mapping[str, Path]


@dataclass(frozen=True)
class Served:
    """A contestant behind a service that serves it."""

    name: str
    place: str
    client: Client
    info: ServiceInfo

    def described(self) -> dict[str, Any]:
        """Which model it is, for the settings of findings; the digest of a folder is that of its published version."""
        from trimtab_trainer.dpo_reference import folder_digest  # torch: heavy

        model = self.info.models[0].served
        folder = Contestant(self.name, self.place).folder
        digest = model.weights_digest or (folder_digest(folder) if folder is not None else "")
        return {
            "place": self.place,
            "model": model.name,
            "version": model.version,
            "weights_digest": digest,
            "tokenizer_digest": model.tokenizer_digest,
        }


def parse_contestants(texts: Sequence[str], *, urls: bool = False) -> list[Contestant]:
    """Contestants as options name them.

    Args:
        texts: each NAME=PLACE.
        urls: whether a place may be an http or https URL.

    Raises:
        ConfigError: one is not NAME=PLACE, two have one name, or a place is none, such as a folder without a model.
    """
    found = [_parse(text, urls) for text in texts]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"model: {name!r} is named twice", field="model", value=name)
    return found


def baseline_of(contestants: Sequence[Contestant], name: str | None) -> str:
    """The name of the contestant that the others are compared with; the first where none is given.

    Raises:
        ConfigError: no contestant has that name.
    """
    names = [one.name for one in contestants]
    if name is not None and name not in names:
        raise ConfigError(
            f"baseline: {name!r} is no --model; allowed: {', '.join(names)}", field="baseline", value=name, limit=names
        )
    return name if name is not None else names[0]


def check_model_folder(field: str, folder: Path) -> None:
    """Refuses a folder that surely is no model's, before anything is loaded.

    Args:
        field: the option that names it.
        folder: which is there.

    Raises:
        ConfigError: it has no config.json, or no safetensors.
    """
    for pattern in ("config.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise ConfigError(
                f"{field}: {folder} is no model folder (it has no {pattern})", field=field, value=folder, limit=pattern
            )


def ask_services(service: str, contestants: Iterable[Contestant], connection: Connection) -> dict[str, ServiceInfo]:
    """What the services that are there say of themselves, by contestant, before any is started on a folder.

    Args:
        service: generation, reward or reference.
        contestants: those with a folder or a URL are passed over.
        connection: to them.

    Raises:
        ConfigError: one is another service.
        Unavailable: one does not answer, or does not serve.
    """
    found = {}
    for one in contestants:
        if one.folder is not None or one.is_url:
            continue
        with _client(one, connection) as client:
            info = _refuse_idle(one, client.info())
        if info.service != (wanted := f"trimtab.v1.{service.capitalize()}Service"):
            raise ConfigError(
                f"{one.name}: {one.place} is {info.service}; allowed here: {wanted}",
                field="model",
                value=info.service,
                limit=wanted,
            )
        found[one.name] = info
    return found


@contextmanager
def served(service: str, contestant: Contestant, connection: Connection) -> Iterator[Served]:
    """A contestant behind a service: its own, once that serves, or one that is started on its folder and drained after.

    Args:
        service: generation, reward or reference.
        contestant: whose place is no URL.
        connection: of a service that is there already.

    Raises:
        Unavailable: it does not serve, or ended at its start.
        Mismatch: its weights changed meanwhile, so that what was measured is of no single model.
    """
    with ExitStack() as stack:
        folder = contestant.folder
        if folder is None:
            client = stack.enter_context(_client(contestant, connection))
            info = _refuse_idle(contestant, client.info())
        else:
            replica = stack.enter_context(_started(service, folder))
            client = stack.enter_context(Client(replica.endpoint["grpc"], timeout_s=connection.timeout_s))
            info = _wait_serving(replica, client)
        yield Served(contestant.name, contestant.place, client, info)
        _refuse_change(contestant, info, client.info())


def _parse(text: str, urls: bool) -> Contestant:
    name, found, place = text.partition("=")
    if not (found and name.strip() and place):
        raise ConfigError(
            f"model: {text!r}: allowed: NAME=FOLDER or NAME=HOST:PORT", field="model", value=text, limit="NAME=PLACE"
        )
    contestant = Contestant(name.strip(), place)
    if contestant.folder is not None:
        check_model_folder("model", contestant.folder)
        return contestant
    if not (urls and contestant.is_url) and not place.rpartition(":")[2].isdecimal():
        raise ConfigError(
            f"model: {text!r}: {place} is neither a folder nor host:port{' nor a URL' if urls else ''}",
            field="model",
            value=text,
        )
    return contestant


def _client(contestant: Contestant, connection: Connection) -> Client:
    return Client(
        contestant.place,
        token=connection.token,
        tls=connection.tls,
        timeout_s=connection.timeout_s,
        insecure=connection.insecure,
    )


@contextmanager
def _started(service: str, folder: Path) -> Iterator[Replica]:
    with tempfile.TemporaryDirectory(prefix="trimtab-eval-") as directory:
        replica = Replica(service, 0, Path(directory))
        ports = {f"{kind}_port": 0 for kind in ("grpc", "health", "http", "metrics")}
        own = {"host": "127.0.0.1", "ready_file": str(Path(directory) / "ready.json"), "drain_s": 5.0}
        replica.start({**ports, **own, "model_folder": str(folder.resolve())})
        try:
            _wait(replica.is_live, replica)
            yield replica
        finally:
            replica.ask_to_end()
            while not replica.has_ended():
                time.sleep(_POLL_S)


def _wait_serving(replica: Replica, client: Client) -> ServiceInfo:
    def serves() -> bool:
        try:
            info = client.info()
        except Unavailable:  # it does not listen yet
            return False
        if info.state is ServiceState.FAILED:
            raise Unavailable(f"{replica.service}: {info.state_reason}: {_log(replica)}")
        return info.state is ServiceState.SERVING

    _wait(serves, replica)
    return client.info()


def _wait(condition: Callable[[], bool], replica: Replica) -> None:
    give_up = time.monotonic() + _START_S
    while not condition():
        if not replica.alive:
            raise Unavailable(f"{replica.service} ended with exit code {replica.exit_code}: {_log(replica)}")
        if time.monotonic() > give_up:
            raise Unavailable(f"{replica.service} did not serve within {_START_S:.0f} s: {_log(replica)}")
        time.sleep(_POLL_S)


def _log(replica: Replica) -> str:
    """The end of its log; the folder is gone when somebody reads this, so its path is left out."""
    return replica.log_end().rpartition(" (all of it: ")[0]


def _refuse_idle(contestant: Contestant, info: ServiceInfo) -> ServiceInfo:
    if info.state is not ServiceState.SERVING or not info.models:
        raise Unavailable(f"{contestant.name}: {contestant.place} is {info.state.value}: {info.state_reason}")
    return info


def _refuse_change(contestant: Contestant, before: ServiceInfo, after: ServiceInfo) -> None:
    first, last = before.models[0].served, after.models[0].served
    if first.weights_digest != last.weights_digest:
        raise Mismatch(
            f"{contestant.name}: {contestant.place} served version {first.version} first, {last.version} last; "
            "evaluate a service whose channel does not move, or a folder",
            field="model",
            value=last.version,
            limit=first.version,
        )
