"""Who may call what: bearer tokens with scopes, and one table that says which method needs which scope.

The tokens file is a YAML or JSON mapping, usually a mounted Secret:

    9f2c...e1: {name: trainer, scopes: [generate, score, logprobs, weights.read, weights.publish]}
    77ab...04: {name: dashboard, scopes: [runs]}
    03de...77: {name: filter, scopes: [score], quota: {requests_per_s: 20, tokens_per_s: 50000}}

The keys of a token's `quota` lie over those of the service's configuration; null lifts a limit. The file is re-read
when it changes. One that has become unreadable or wrong leaves the last good table in force and is reported in the log.
Scope `admin` includes every other one, `label` includes `label.read`.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from trimtab.errors import ConfigError, PermissionDenied, Reason, Unauthenticated
from trimtab_services.runtime.quota import Quota
from trimtab_services.runtime.watched import WatchedFiles

__all__ = ["METHODS", "SCOPES", "Identity", "MethodPolicy", "TokenTable", "check_scope", "policy_of"]

_log = logging.getLogger(__name__)

SCOPES = ("generate", "score", "logprobs", "weights.read", "weights.publish", "runs", "label", "label.read", "admin")
"""Every scope that a token can have."""

_INCLUDED_IN = {"label.read": "label"}
"""Scopes that another one includes, besides `admin`."""


@dataclass(frozen=True, slots=True)
class MethodPolicy:
    """What the runtime does around one gRPC method.

    Attributes:
        scope: scope that a token must have. Empty: any known token.
        needs_token: False for health, which kubelet asks without credentials.
        is_work: refused while the service is not SERVING.
        has_default_deadline: a call without a deadline gets the server's default. False for watches, which have no
            end, and for item streams, whose every item gets the default from the moment it is read.
    """

    scope: str = ""
    needs_token: bool = True
    is_work: bool = True
    has_default_deadline: bool = True


def _methods(service: str, scope: str, names: str, **facts: bool) -> dict[str, MethodPolicy]:
    return {f"/{service}/{name}": MethodPolicy(scope, **facts) for name in names.split()}


METHODS: Mapping[str, MethodPolicy] = {
    **_methods("grpc.health.v1.Health", "", "Check List", needs_token=False, is_work=False),
    **_methods("grpc.health.v1.Health", "", "Watch", needs_token=False, is_work=False, has_default_deadline=False),
    **_methods(
        "grpc.reflection.v1alpha.ServerReflection",
        "",
        "ServerReflectionInfo",
        is_work=False,
        has_default_deadline=False,
    ),
    **_methods("trimtab.v1.InfoService", "", "GetInfo", is_work=False),
    **_methods("trimtab.v1.GenerationService", "generate", "Generate"),
    **_methods("trimtab.v1.RewardService", "score", "Score Rank"),
    **_methods("trimtab.v1.RewardService", "score", "ScoreStream", has_default_deadline=False),
    **_methods("inference.GRPCInferenceService", "score", "ModelInfer"),
    **_methods(
        "inference.GRPCInferenceService",
        "",
        "ServerLive ServerReady ModelReady ServerMetadata ModelMetadata",
        is_work=False,
    ),
    **_methods("trimtab.v1.ReferenceService", "logprobs", "LogProbs"),
    **_methods("trimtab.v1.ReferenceService", "logprobs", "LogProbsStream", has_default_deadline=False),
    **_methods("trimtab.v1.WeightsService", "weights.read", "GetManifest ListVersions ListChannels"),
    **_methods("trimtab.v1.WeightsService", "weights.read", "Watch", has_default_deadline=False),
    **_methods(
        "trimtab.v1.WeightsService",
        "weights.publish",
        "AcquireLease ReleaseLease FindMissingBlobs Publish SetChannel Pin Prune",
    ),
    **_methods(
        "trimtab.v1.TrainerService", "runs", "StartRun GetRun ListRuns StopRun ResumeRun DeleteRun CheckpointRun"
    ),
    **_methods("trimtab.v1.TrainerService", "runs", "WatchRun WatchRunLog ReportEvents", has_default_deadline=False),
    **_methods(
        "trimtab.v1.LabelingService",
        "label",
        "CreateProject UpdateProject WithdrawTasks ResetQualification CreateAccount UpdateAccount ListAccounts "
        "ListAuditEvents",
    ),
    **_methods("trimtab.v1.LabelingService", "label", "ImportTasks", has_default_deadline=False),
    **_methods("trimtab.v1.LabelingService", "label.read", "GetProject ListProjects GetAgreement"),
    **_methods("trimtab.v1.LabelingService", "label.read", "ExportLabels", has_default_deadline=False),
}
"""Policy of every gRPC method by its full name. A method that is not here is refused: it fails closed."""


def policy_of(method: str) -> MethodPolicy:
    """The policy of a full method name; a method outside the table needs scope `admin`."""
    return METHODS.get(method, MethodPolicy("admin"))


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls.

    Attributes:
        name: for logs, fairness and people.
        scopes: what it may do; None where no tokens are asked: everything.
        quota: its own quota, laid over the service's; None: none.
    """

    name: str
    scopes: frozenset[str] | None = None
    quota: Quota | None = None


def check_scope(identity: Identity, scope: str) -> None:
    """Checks that a caller has a scope.

    Raises:
        PermissionDenied: it has not; `limit` names the scope.
    """
    if not scope or identity.scopes is None or {scope, _INCLUDED_IN.get(scope), "admin"} & identity.scopes:
        return
    raise PermissionDenied(
        f"token {identity.name!r} lacks scope {scope!r}; it has {', '.join(sorted(identity.scopes)) or 'none'}",
        field="authorization",
        value=",".join(sorted(identity.scopes)),
        limit=scope,
    )


class TokenTable:
    """The tokens of one file, kept as SHA-256 digests and compared in constant time.

    Args:
        path: the tokens file.
        recheck_s: the file's time stamp is looked at no more often than this.

    Raises:
        ConfigError: the file cannot be read or is wrong.
    """

    def __init__(self, path: Path, *, recheck_s: float = 1.0) -> None:
        self._path = path
        self._watched = WatchedFiles([path], recheck_s=recheck_s)
        self._take(_read_tokens(path))

    def identify(self, authorization: str | None) -> Identity:
        """Identity behind the value of an `authorization` header.

        Raises:
            Unauthenticated: no bearer token (TOKEN_MISSING), or one that is not in the file (TOKEN_UNKNOWN).
        """
        self._reread_if_changed()
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated(
                "the call carries no bearer token; send `authorization: Bearer TOKEN`", field="authorization"
            )
        digest = _digest(token.strip())
        found: Identity | None = None
        for known, identity in self._identities.items():  # no early end: the time tells nothing
            if hmac.compare_digest(known, digest):
                found = identity
        if found is None:
            raise Unauthenticated("the bearer token is not known", reason=Reason.TOKEN_UNKNOWN, field="authorization")
        return found

    def quota_of(self, name: str) -> Quota | None:
        """The quota that the file gives to a name; None: none of its own."""
        return self._quotas.get(name)

    def _take(self, identities: dict[bytes, Identity]) -> None:
        self._identities = identities
        self._quotas = {known.name: known.quota for known in identities.values() if known.quota is not None}

    def _reread_if_changed(self) -> None:
        if not self._watched.changed():
            return
        try:
            self._take(_read_tokens(self._path))
            _log.info("tokens re-read", extra={"tokens": len(self._identities)})
        except ConfigError as error:
            _log.error("tokens file is wrong, the last good one stays in force: %s", error)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _read_tokens(path: Path) -> dict[bytes, Identity]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        kind = type(error).__name__  # never the text: a parser's message may quote a token
        raise ConfigError(f"tokens_file: {path}: cannot be read ({kind})", field="tokens_file", value=path) from None
    if not isinstance(content, dict) or not content:
        raise ConfigError(
            f"tokens_file: {path}: must map at least one token to its name and scopes", field="tokens_file"
        )
    identities: dict[bytes, Identity] = {}
    quotas: dict[str, Quota | None] = {}
    for number, (token, entry) in enumerate(content.items(), start=1):
        identity = _read_identity(path, number, entry)
        if quotas.setdefault(identity.name, identity.quota) != identity.quota:
            raise ConfigError(
                f"tokens_file: {path}: entry {number} ({identity.name}): another token of the same name has another "
                "`quota`; both are charged to one account",
                field="tokens_file",
                value=identity.name,
            )
        identities[_digest(str(token))] = identity
    return identities


def _read_identity(path: Path, number: int, entry: object) -> Identity:
    where = f"tokens_file: {path}: entry {number}"
    if not isinstance(entry, dict) or set(entry) - {"quota"} != {"name", "scopes"}:
        raise ConfigError(f"{where}: must have the keys `name` and `scopes`, `quota` if need be", field="tokens_file")
    name, scopes = entry["name"], entry["scopes"]
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: `name` must be a text that is not empty", field="tokens_file")
    if not isinstance(scopes, Iterable) or isinstance(scopes, str):
        raise ConfigError(f"{where} ({name}): `scopes` must be a list", field="tokens_file")
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown:
        raise ConfigError(
            f"{where} ({name}): unknown scope {unknown[0]!r}; allowed: {', '.join(SCOPES)}",
            field="tokens_file",
            value=unknown[0],
            limit=", ".join(SCOPES),
        )
    return Identity(
        name, frozenset(scopes), _read_quota(f"{where} ({name})", entry["quota"]) if "quota" in entry else None
    )


def _read_quota(where: str, entry: object) -> Quota:
    try:
        return Quota.model_validate(entry)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(["quota", *map(str, problem["loc"])])
        raise ConfigError(
            f"{where}: {key}: {problem['msg']}; found {problem['input']!r}",
            field="tokens_file",
            value=problem["input"],
            limit=", ".join(Quota.model_fields),
        ) from None
