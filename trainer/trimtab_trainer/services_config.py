"""The section `services` of a run spec: where the services are and how the run, their client, reaches them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from trimtab.channel import TLSConfig, Token
from trimtab.endpoint_slices import EndpointSliceResolver
from trimtab.errors import ConfigError
from trimtab.resolver import DNSResolver, FileResolver, Resolver, StaticResolver
from trimtab_trainer.stage_configs import Section

__all__ = ["OF_SAMPLING", "ServiceAddresses", "ServiceName", "ServicesConfig", "TLSFiles"]


class TLSFiles(Section):
    """How the run, as a client, reaches services over TLS."""

    ca_file: Path | None = Field(default=None, description="PEM roots. null: those of the system.")
    certificate_file: Path | None = Field(default=None, description="PEM chain of the client certificate, for mTLS.")
    key_file: Path | None = Field(default=None, description="PEM key of the client certificate, for mTLS.")


class ServiceAddresses(Section):
    """Where the replicas of one service are."""

    addresses: tuple[str, ...] = Field(default=(), description="host:port of each replica; fixed for the run.")
    endpoints_file: Path | None = Field(default=None, description="endpoints.json, read again when it changes.")
    dns: str | None = Field(
        default=None,
        pattern=r"^[^:/\s]+:\d{1,5}$",
        description="name:port of which every address is a replica, such as a headless Service; asked again and again.",
    )
    endpoint_slices: str | None = Field(
        default=None,
        pattern=r"^[^:/\s]+/[^:/\s]+:[^:/\s]+$",
        description="namespace/service:port of a Service on Kubernetes, its port by name or number; its EndpointSlices "
        "are watched by the ServiceAccount of the run's pod.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> ServiceAddresses:
        names = (self.endpoints_file, self.dns, self.endpoint_slices)
        if bool(self.addresses) + sum(name is not None for name in names) != 1:
            raise ValueError("set exactly one of `addresses`, `endpoints_file`, `dns` and `endpoint_slices`")
        return self

    @property
    def server_name(self) -> str:
        """The name that the certificate of replicas has which are reached by their addresses; empty where unknown."""
        if self.endpoint_slices is not None:
            namespace, _, service = self.endpoint_slices.rpartition(":")[0].partition("/")
            return f"{service}.{namespace}.svc"
        return self.dns.rpartition(":")[0] if self.dns is not None else ""

    def resolver(self, service: str) -> Resolver:
        """Says which replicas there are now; to be closed.

        Args:
            service: the entry of the endpoints file.

        Raises:
            ConfigError: no such file, or it is not what `trimtab up` writes.
        """
        if self.endpoints_file is not None:
            return FileResolver(self.endpoints_file, service)
        if self.dns is not None:
            return DNSResolver.of(self.dns)
        if self.endpoint_slices is not None:
            return EndpointSliceResolver.of(self.endpoint_slices)
        return StaticResolver(self.addresses)


ServiceName = Literal["generation", "reward", "reference", "weights", "labeling"]
OF_SAMPLING: tuple[ServiceName, ...] = ("generation", "reward", "reference", "weights")
"""Services that every stage works with that samples."""


class ServicesConfig(Section):
    """The services that every stage works with that samples, and the one that has the labels of people."""

    endpoints_file: Path | None = Field(
        default=None, description="endpoints.json for every service that has no own entry; what `trimtab up` writes."
    )
    generation: ServiceAddresses | None = Field(default=None, description="null: `endpoints_file`.")
    reward: ServiceAddresses | None = Field(default=None, description="null: `endpoints_file`.")
    reference: ServiceAddresses | None = Field(default=None, description="null: `endpoints_file`.")
    weights: ServiceAddresses | None = Field(default=None, description="null: `endpoints_file`.")
    labeling: ServiceAddresses | None = Field(
        default=None,
        description="Only for datasets that are projects of it, `labeling:PROJECT`. null: `endpoints_file`.",
    )
    token_file: Path | None = Field(default=None, description="File with the bearer token, read again when it changes.")
    tls: TLSFiles | None = Field(default=None, description="null: plaintext.")
    insecure: bool = Field(default=False, description="Allows the token in plaintext beyond this host.")
    patience_s: float = Field(default=60.0, gt=0, description="How long a call waits for any well replica.")
    start_timeout_s: float = Field(
        default=15.0, gt=0, description="How long a stage waits at its start for a first answer of each service."
    )

    def knows(self, service: ServiceName) -> bool:
        """Whether it says where a service is."""
        return getattr(self, service) is not None or self.endpoints_file is not None

    def of(self, service: ServiceName) -> ServiceAddresses:
        """Where a service is: its own entry, or the common file.

        Raises:
            ConfigError: it does not know the service.
        """
        if not self.knows(service):
            raise ConfigError(
                f"services.{service}: no addresses; give it an entry, or set services.endpoints_file",
                field=f"services.{service}",
            )
        own: ServiceAddresses | None = getattr(self, service)
        return own or ServiceAddresses(endpoints_file=self.endpoints_file)

    def credentials(self, service: ServiceName) -> dict[str, Any]:
        """`token`, `tls` and `insecure` as a client of a service that it knows takes them.

        Raises:
            ConfigError: the token's file cannot be read, or only one of certificate and key is given; as `of`.
        """
        tls = None
        if self.tls is not None:
            tls = TLSConfig(**self.tls.model_dump(), server_name=self.of(service).server_name)
        token = Token(file=self.token_file) if self.token_file is not None else None
        return {"token": token, "tls": tls, "insecure": self.insecure}
