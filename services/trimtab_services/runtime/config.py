"""Configuration of a service: one YAML file, the environment over it, options of the command line over both.

`load_config` checks all of it before anything heavy is imported, and says in one line which key of which source is
wrong, what was found and what is allowed. A service extends `ServiceConfig`, or `ModelServiceConfig` when it computes
with a model. The environment variable of `tls.key_file` of the reward service is `TRIMTAB_REWARD__TLS__KEY_FILE`.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from trimtab.errors import ConfigError
from trimtab_services.runtime.config_errors import allowed_keys, explain
from trimtab_services.runtime.quota import Quota
from trimtab_services.runtime.tracing import TracingConfig

__all__ = [
    "FrozenModelConfig",
    "LogConfig",
    "ModelServiceConfig",
    "ModelSource",
    "ServerTLS",
    "ServiceConfig",
    "WeightsSource",
    "ClientTLS",
    "check_exposure",
    "check_one_source",
    "host_port",
    "is_loopback",
    "load_config",
]

MEBIBYTE = 1024 * 1024


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerTLS(_Section):
    """Certificates of a server; setting them turns TLS on for gRPC and HTTP, never for health and metrics.

    The files are read again when they change: new connections get the new certificates.
    """

    certificate_file: Path = Field(description="PEM chain, leaf first.")
    key_file: Path = Field(description="PEM private key of the leaf.")
    client_ca_file: Path | None = Field(
        default=None, description="PEM roots of client certificates. Set: a client without one cannot connect (mTLS)."
    )


class ClientTLS(_Section):
    """How this service, or what it launches, reaches another one over TLS."""

    ca_file: Path | None = Field(default=None, description="PEM roots. Unset: those of the system.")
    certificate_file: Path | None = Field(default=None, description="PEM chain of the client certificate, for mTLS.")
    key_file: Path | None = Field(default=None, description="PEM key of the client certificate, for mTLS.")


class WeightsSource(_Section):
    """The channel of a weights service that a model service follows."""

    address: str = Field(min_length=1, description="host:port of the weights service's gRPC side.")
    channel: str = Field(min_length=1, description="Channel to follow, such as `reward/serving`.")
    token_file: Path | None = Field(default=None, description="File that holds the bearer token, re-read on change.")
    tls: ClientTLS | None = Field(default=None, description="TLS towards the weights service. Unset: plaintext.")


class LogConfig(_Section):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged.")
    format: Literal["json", "text"] = Field(default="json", description="One JSON object, or one text line, a record.")
    calls: bool = Field(default=True, description="One record for each finished call.")
    prompts: bool = Field(
        default=False,
        description="Shows the messages of all faults, which may quote prompts and completions. Off: none of these.",
    )


class ServiceConfig(BaseSettings):
    """What every service takes. Port 0 picks a free port; the ports taken are in the ready file and in the log."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_nested_delimiter="__", protected_namespaces=(), arbitrary_types_allowed=False
    )

    host: str = Field(default="127.0.0.1", min_length=1, description="Address that all four ports listen on.")
    advertise_host: str = Field(
        default="", description="Host that others reach this server by. Empty: `host`, or the host's name for 0.0.0.0."
    )
    grpc_port: int = Field(default=50051, ge=0, le=65535, description="gRPC.")
    health_port: int = Field(default=50052, ge=0, le=65535, description="Health over plaintext gRPC.")
    http_port: int = Field(default=8080, ge=0, le=65535, description="HTTP side.")
    metrics_port: int = Field(default=9090, ge=0, le=65535, description="Prometheus, plaintext.")
    tls: ServerTLS | None = Field(default=None, description="TLS for gRPC and HTTP. Unset: plaintext.")
    tokens_file: Path | None = Field(
        default=None,
        description="YAML or JSON: token -> {name, scopes, quota}. Re-read on change. Unset: no tokens are asked.",
    )
    quota: Quota | None = Field(default=None, description="What each caller may ask for. Unset: no limit.")
    insecure: bool = Field(default=False, description="Allows to listen beyond loopback without TLS and tokens.")
    replica: str = Field(default="", description="Name of this replica. Empty: service name, host and process id.")
    ready_file: Path | None = Field(
        default=None, description="Written once all four ports are live: JSON with their addresses and the pid."
    )
    drain_s: float = Field(default=30.0, ge=0, le=3600, description="Seconds that work in flight gets after SIGTERM.")
    default_deadline_s: float = Field(
        default=60.0, gt=0, le=86400, description="Seconds given to a call that carries no deadline."
    )
    max_request_bytes: int = Field(
        default=64 * MEBIBYTE, ge=1024, le=2**31 - 1, description="Most bytes of one message in either direction."
    )
    http_idle_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="Seconds for the whole header of an HTTP request, and for its JSON body.",
    )
    connection_age_s: float = Field(
        default=0.0,
        ge=0,
        le=86400,
        description="Seconds after which a client is asked to connect again, without harm to its calls; 0: never. "
        "Behind one address for several replicas this is how clients find others.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Compute threads of the process (torch and OpenMP). 0: what torch chooses, one for each core.",
    )
    deterministic: bool = Field(
        default=False, description="Equal requests get bit-equal answers whatever the load, at equal `threads`."
    )
    log: LogConfig = Field(default_factory=LogConfig, description="What is logged.")
    tracing: TracingConfig | None = Field(default=None, description="OpenTelemetry traces. Unset: none.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keeps the constructor pure: only `load_config` reads the environment."""
        return (init_settings,)

    @property
    def reachable_host(self) -> str:
        """Host that others reach this server by: `advertise_host`, else `host`, else this host's name."""
        if self.advertise_host:
            return self.advertise_host
        return socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host


class ModelSource(_Section):
    """Where a model comes from."""

    model_folder: Path | None = Field(default=None, description="Hugging Face folder to serve, as version 0.")
    weights: WeightsSource | None = Field(default=None, description="Channel to follow instead of a fixed folder.")
    cache_directory: Path | None = Field(
        default=None, description="Where fetched versions are staged, one model's alone. Unset: a temporary folder."
    )

    @model_validator(mode="after")
    def _one_source(self) -> ModelSource:
        check_one_source(self.model_folder, self.weights)
        return self


class ModelServiceConfig(ServiceConfig):
    """What every service takes that computes with one model."""

    model_folder: Path | None = Field(
        default=None, description="Hugging Face folder to serve, as version 0. Exactly one of this and `weights`."
    )
    weights: WeightsSource | None = Field(default=None, description="Channel to follow instead of a fixed folder.")
    model_name: str = Field(default="", description="Name of the model. Empty: the service's own default.")
    cache_directory: Path | None = Field(
        default=None, description="Where fetched versions are staged. Unset: a temporary folder."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="dtype of the weights.")
    device: str = Field(default="cpu", min_length=1, description="torch device, such as `cpu` or `cuda:0`.")

    @property
    def source(self) -> ModelSource:
        """Where the service's own model comes from."""
        return ModelSource(model_folder=self.model_folder, weights=self.weights, cache_directory=self.cache_directory)

    @model_validator(mode="after")
    def _one_source(self) -> ModelServiceConfig:
        check_one_source(self.model_folder, self.weights)
        return self


class FrozenModelConfig(ModelServiceConfig):
    """What a service takes that computes items in batches."""

    max_batch_tokens: int = Field(
        default_factory=lambda known: 1024 if known.get("device") == "cpu" else 8192,
        ge=1,
        description="Most tokens of a batch, padding included. Unset: 1,024 on a CPU, whose caches hold no more; 8,192 "
        "elsewhere.",
    )
    max_queue_tokens: int = Field(default=2_000_000, ge=1, description="Most tokens waiting.")
    max_items_per_request: int = Field(default=4096, ge=1, description="Most items of one request.")


ConfigT = TypeVar("ConfigT", bound=ServiceConfig)


def load_config(
    config_class: type[ConfigT],
    service: str,
    config_file: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
) -> ConfigT:
    """Reads and checks the configuration of a service.

    Args:
        config_class: the service's model.
        service: its short name, such as `reward`; decides the prefix of environment variables.
        config_file: YAML mapping; None means no file.
        overrides: values of command line options, by key; dots reach into sections (`weights.address`). None values
            count as not given.
        environment: instead of the process's own.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: one line that names source, key, value and what is allowed.
    """
    variables = dict(os.environ if environment is None else environment)
    prefix = f"TRIMTAB_{service.upper()}__"
    layers: list[tuple[str, dict[str, Any]]] = []
    if config_file is not None:
        layers.append((str(config_file), _read_yaml(config_file)))
    layers.append(("environment", _read_environment(config_class, prefix, variables)))
    layers.append(("command line", _nest(overrides or {})))
    merged: dict[str, Any] = {}
    for _, layer in layers:
        merged = _merge(merged, layer)
    try:
        config = config_class(**merged)
    except ValidationError as error:
        raise explain(config_class, service, error, layers) from None
    except TypeError as error:
        raise ConfigError(f"{service} configuration: keys must be strings: {error}") from None
    check_exposure(config)
    return config


def host_port(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` can only be reached from this host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_one_source(model_folder: Path | None, weights: WeightsSource | None) -> None:
    """Refuses a model with no source, and one with two.

    Raises:
        ValueError: as a validator must.
    """
    if (model_folder is None) == (weights is None):
        found = "neither" if model_folder is None else "both"
        raise ValueError(f"set exactly one of `model_folder` and `weights`; found {found}")


def check_exposure(config: ServiceConfig) -> None:
    """Refuses a server that others could reach without authentication.

    Raises:
        ConfigError: not on loopback, without TLS and tokens, without mTLS, and not told to be insecure; or a TLS or
            token file that cannot be read.
    """
    files = [("tokens_file", config.tokens_file)]
    if config.tls is not None:
        files += [(f"tls.{name}", getattr(config.tls, name)) for name in type(config.tls).model_fields]
    for key, path in files:
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigError(f"{key}: {path}: no such file, or it cannot be read", field=key, value=path)
    if is_loopback(config.host) or config.insecure:
        return
    mutual = config.tls is not None and config.tls.client_ca_file is not None
    if mutual or (config.tls is not None and config.tokens_file is not None):
        return
    has = [name for name, value in (("tls", config.tls), ("tokens_file", config.tokens_file)) if value is not None]
    raise ConfigError(
        f"host {config.host!r} can be reached from other hosts, so it needs `tls` and `tokens_file`, or `tls` with "
        f"`client_ca_file` (mTLS), or an explicit `insecure: true`; found {' and '.join(has) or 'none of them'}",
        field="host",
        value=config.host,
        limit="tls + tokens_file | tls.client_ca_file | insecure: true | a loopback address",
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}", field="config", value=path) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"{path}: not a YAML file: {line}", field="config", value=path) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold a mapping of keys, found a {type(content).__name__}", field="config")
    return content


def _read_environment(config_class: type[ServiceConfig], prefix: str, variables: dict[str, str]) -> dict[str, Any]:
    """Values of the variables with the prefix, by pydantic-settings' own rules for nested keys and JSON."""
    ours = {key: value for key, value in variables.items() if key.upper().startswith(prefix)}
    for key in ours:
        name = key[len(prefix) :].split("__")[0].lower()
        if name not in config_class.model_fields:
            raise ConfigError(
                f"environment variable {key}: unknown key {name!r}; allowed: {allowed_keys(config_class)}",
                field=key,
                value=ours[key],
                limit=allowed_keys(config_class),
            )

    class _Environment(EnvSettingsSource):
        def _load_env_vars(self) -> Mapping[str, str | None]:
            return {key.lower(): value for key, value in ours.items()}

    try:
        return _Environment(config_class, env_prefix=prefix, env_nested_delimiter="__", case_sensitive=False)()
    except SettingsError as error:
        raise ConfigError(f"environment variables {prefix}*: {' '.join(str(error).split())}") from None


def _nest(overrides: Mapping[str, object]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in overrides.items():
        if value is None:
            continue
        at = nested
        *sections, last = key.split(".")
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = value
    return nested


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged
