"""`Client`: every rpc of one server, blocking. `AsyncClient` in `aio.py` has the same surface."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from trimtab import rpcs
from trimtab.channel import RenewedChannel, TLSConfig, Token, call_metadata, open_channel, retry_delay_s
from trimtab.errors import FailedPrecondition, TrimtabError
from trimtab.rpc_errors import from_rpc_error
from trimtab.rpcs import Rpc
from trimtab.types import (
    GenerateRequest,
    GenerateResult,
    LogProbsRequest,
    LogProbsResult,
    RankRequest,
    RankResult,
    ScoreRequest,
    ScoreResult,
    ServiceInfo,
)
from trimtab.v1 import info_pb2, reference_pb2, reward_pb2
from trimtab.v1 import labeling_pb2 as labels
from trimtab.v1 import trainer_pb2 as runs
from trimtab.v1 import weights_pb2 as weights

__all__ = ["Client"]

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Client:
    """A connection to one server, by which every rpc of the services that it runs can be called.

    Every call has a deadline. A failed call is repeated only where the proto says that a retry is safe, a bounded
    number of times, inside the deadline. Errors are those of `trimtab.errors`.

    Args:
        target: host:port of the server's gRPC side.
        token: bearer token: a text, or `Token(file=...)`, which is read again when the file changes.
        tls: set for a server with TLS.
        timeout_s: deadline of a call that is given none, in seconds.
        insecure: allows a token in plaintext beyond this host.

    Raises:
        ConfigError: target is no host:port, a file cannot be read, or a token would cross the network in plaintext.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | Token | None = None,
        tls: TLSConfig | None = None,
        timeout_s: float = 60.0,
        insecure: bool = False,
    ) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self.tls = tls
        self.insecure = insecure
        self._token = Token(token) if isinstance(token, str) else token
        self._channel = RenewedChannel(partial(open_channel, target, tls, self._token, insecure), tls)
        self._closed = False

    @property
    def token(self) -> Token | None:
        """The bearer token that calls carry; the HTTP side of the same server takes it too."""
        return self._token

    def close(self) -> None:
        """Closes the connection; calls in flight end with Cancelled."""
        self._closed = True
        for channel in self._channel.opened:
            channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def health(self, service: str = "", *, timeout_s: float = 5.0) -> bool:
        """Whether the server says that a service (or `startup`, `liveness`, `readiness`) is SERVING."""
        stub = health_pb2_grpc.HealthStub(self._open)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            raise self._error(error, "Check", timeout_s) from None
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def info(self, *, timeout_s: float | None = None) -> ServiceInfo:
        """State, models and limits of the server."""
        return self._unary(rpcs.INFO, info_pb2.GetInfoRequest(), timeout_s)

    def score(self, request: ScoreRequest, *, timeout_s: float | None = None) -> ScoreResult:
        """Rewards of a request's items, in its order."""
        return self._unary(rpcs.SCORE, request, timeout_s)

    def rank(self, request: RankRequest, *, timeout_s: float | None = None) -> RankResult:
        """The answers to one prompt, ordered by reward."""
        return self._unary(rpcs.RANK, request, timeout_s)

    def logprobs(self, request: LogProbsRequest, *, timeout_s: float | None = None) -> LogProbsResult:
        """Per-token log-probs of a request's sequences, in its order."""
        return self._unary(rpcs.LOGPROBS, request, timeout_s)

    def acquire_lease(
        self, request: weights.AcquireLeaseRequest, *, timeout_s: float | None = None
    ) -> weights.AcquireLeaseResponse:
        """Makes the caller the only writer under a channel prefix, or renews its lease."""
        return self._unary(rpcs.ACQUIRE_LEASE, request, timeout_s)

    def release_lease(
        self, request: weights.ReleaseLeaseRequest, *, timeout_s: float | None = None
    ) -> weights.ReleaseLeaseResponse:
        """Ends a lease early."""
        return self._unary(rpcs.RELEASE_LEASE, request, timeout_s)

    def find_missing_blobs(
        self, request: weights.FindMissingBlobsRequest, *, timeout_s: float | None = None
    ) -> weights.FindMissingBlobsResponse:
        """Which blobs must be uploaded before a Publish."""
        return self._unary(rpcs.FIND_MISSING_BLOBS, request, timeout_s)

    def publish(self, request: weights.PublishRequest, *, timeout_s: float | None = None) -> weights.PublishResponse:
        """Commits a version whose blobs are uploaded."""
        return self._unary(rpcs.PUBLISH, request, timeout_s)

    def get_manifest(
        self, request: weights.GetManifestRequest, *, timeout_s: float | None = None
    ) -> weights.GetManifestResponse:
        """One version by number or by channel."""
        return self._unary(rpcs.GET_MANIFEST, request, timeout_s)

    def list_versions(
        self, request: weights.ListVersionsRequest, *, timeout_s: float | None = None
    ) -> weights.ListVersionsResponse:
        """A page of versions, newest first."""
        return self._unary(rpcs.LIST_VERSIONS, request, timeout_s)

    def list_channels(
        self, request: weights.ListChannelsRequest, *, timeout_s: float | None = None
    ) -> weights.ListChannelsResponse:
        """The channels and where they point."""
        return self._unary(rpcs.LIST_CHANNELS, request, timeout_s)

    def set_channel(
        self, request: weights.SetChannelRequest, *, timeout_s: float | None = None
    ) -> weights.SetChannelResponse:
        """Points a channel to an existing version."""
        return self._unary(rpcs.SET_CHANNEL, request, timeout_s)

    def pin(self, request: weights.PinRequest, *, timeout_s: float | None = None) -> weights.PinResponse:
        """Keeps a version from being pruned, or lets it go."""
        return self._unary(rpcs.PIN, request, timeout_s)

    def prune(self, request: weights.PruneRequest, *, timeout_s: float | None = None) -> weights.PruneResponse:
        """Removes old versions and the blobs that nothing needs any more."""
        return self._unary(rpcs.PRUNE, request, timeout_s)

    def start_run(self, request: runs.StartRunRequest, *, timeout_s: float | None = None) -> runs.StartRunResponse:
        """Checks a run spec and launches a run."""
        return self._unary(rpcs.START_RUN, request, timeout_s)

    def get_run(self, request: runs.GetRunRequest, *, timeout_s: float | None = None) -> runs.GetRunResponse:
        """One run."""
        return self._unary(rpcs.GET_RUN, request, timeout_s)

    def list_runs(self, request: runs.ListRunsRequest, *, timeout_s: float | None = None) -> runs.ListRunsResponse:
        """A page of runs, newest first."""
        return self._unary(rpcs.LIST_RUNS, request, timeout_s)

    def stop_run(self, request: runs.StopRunRequest, *, timeout_s: float | None = None) -> runs.StopRunResponse:
        """Asks a run to end after its step, resumable."""
        return self._unary(rpcs.STOP_RUN, request, timeout_s)

    def resume_run(self, request: runs.ResumeRunRequest, *, timeout_s: float | None = None) -> runs.ResumeRunResponse:
        """Launches an ended run again from its last checkpoint."""
        return self._unary(rpcs.RESUME_RUN, request, timeout_s)

    def delete_run(self, request: runs.DeleteRunRequest, *, timeout_s: float | None = None) -> runs.DeleteRunResponse:
        """Removes an ended run with all its data."""
        return self._unary(rpcs.DELETE_RUN, request, timeout_s)

    def checkpoint_run(
        self, request: runs.CheckpointRunRequest, *, timeout_s: float | None = None
    ) -> runs.CheckpointRunResponse:
        """Asks a run for a checkpoint after its step."""
        return self._unary(rpcs.CHECKPOINT_RUN, request, timeout_s)

    def create_project(
        self, request: labels.CreateProjectRequest, *, timeout_s: float | None = None
    ) -> labels.CreateProjectResponse:
        """Makes a labeling project."""
        return self._unary(rpcs.CREATE_PROJECT, request, timeout_s)

    def get_project(
        self, request: labels.GetProjectRequest, *, timeout_s: float | None = None
    ) -> labels.GetProjectResponse:
        """One labeling project with its progress."""
        return self._unary(rpcs.GET_PROJECT, request, timeout_s)

    def list_projects(
        self, request: labels.ListProjectsRequest, *, timeout_s: float | None = None
    ) -> labels.ListProjectsResponse:
        """A page of labeling projects, by name."""
        return self._unary(rpcs.LIST_PROJECTS, request, timeout_s)

    def update_project(
        self, request: labels.UpdateProjectRequest, *, timeout_s: float | None = None
    ) -> labels.UpdateProjectResponse:
        """Sets fields of a labeling project."""
        return self._unary(rpcs.UPDATE_PROJECT, request, timeout_s)

    def withdraw_tasks(
        self, request: labels.WithdrawTasksRequest, *, timeout_s: float | None = None
    ) -> labels.WithdrawTasksResponse:
        """Takes tasks out of a labeling project, or puts them back."""
        return self._unary(rpcs.WITHDRAW_TASKS, request, timeout_s)

    def reset_qualification(
        self, request: labels.ResetQualificationRequest, *, timeout_s: float | None = None
    ) -> labels.ResetQualificationResponse:
        """Lets a labeler try the qualification of a project again."""
        return self._unary(rpcs.RESET_QUALIFICATION, request, timeout_s)

    def get_agreement(
        self, request: labels.GetAgreementRequest, *, timeout_s: float | None = None
    ) -> labels.GetAgreementResponse:
        """How labelers of a project agree."""
        return self._unary(rpcs.GET_AGREEMENT, request, timeout_s)

    def create_account(
        self, request: labels.CreateAccountRequest, *, timeout_s: float | None = None
    ) -> labels.CreateAccountResponse:
        """Makes an account of a person."""
        return self._unary(rpcs.CREATE_ACCOUNT, request, timeout_s)

    def update_account(
        self, request: labels.UpdateAccountRequest, *, timeout_s: float | None = None
    ) -> labels.UpdateAccountResponse:
        """Sets fields of an account."""
        return self._unary(rpcs.UPDATE_ACCOUNT, request, timeout_s)

    def list_accounts(
        self, request: labels.ListAccountsRequest, *, timeout_s: float | None = None
    ) -> labels.ListAccountsResponse:
        """A page of accounts, by name."""
        return self._unary(rpcs.LIST_ACCOUNTS, request, timeout_s)

    def list_audit_events(
        self, request: labels.ListAuditEventsRequest, *, timeout_s: float | None = None
    ) -> labels.ListAuditEventsResponse:
        """Changes after a sequence number, oldest first."""
        return self._unary(rpcs.LIST_AUDIT_EVENTS, request, timeout_s)

    def import_tasks(
        self, requests: Iterable[labels.ImportTasksRequest], *, timeout_s: float | None = None
    ) -> labels.ImportTasksResponse:
        """Adds tasks to a labeling project, all or none."""
        return self._stream_in(rpcs.IMPORT_TASKS, requests, timeout_s)

    def generate(self, request: GenerateRequest, *, timeout_s: float | None = None) -> Iterator[GenerateResult]:
        """Completions, each the moment it ends, in any order."""
        return self._stream(rpcs.GENERATE, request, timeout_s)

    def watch(
        self, request: weights.WatchRequest, *, timeout_s: float | None = None
    ) -> Iterator[weights.WatchResponse]:
        """The channel's version and each move of it; ends with its deadline only."""
        return self._stream(rpcs.WATCH, request, timeout_s)

    def watch_run(
        self, request: runs.WatchRunRequest, *, timeout_s: float | None = None
    ) -> Iterator[runs.WatchRunResponse]:
        """Events of a run after a sequence number, until it has ended; Unavailable when the service drains before."""
        return self._stream(rpcs.WATCH_RUN, request, timeout_s)

    def watch_run_log(
        self, request: runs.WatchRunLogRequest, *, timeout_s: float | None = None
    ) -> Iterator[runs.WatchRunLogResponse]:
        """The log of a run from a byte on; with follow until it has ended, Unavailable when the service drains."""
        return self._stream(rpcs.WATCH_RUN_LOG, request, timeout_s)

    def export_labels(
        self, request: labels.ExportLabelsRequest, *, timeout_s: float | None = None
    ) -> Iterator[labels.ExportLabelsResponse]:
        """Labels as rows of the dataset formats; with follow, until its deadline or a drain."""
        return self._stream(rpcs.EXPORT_LABELS, request, timeout_s)

    def score_stream(
        self, requests: Iterable[reward_pb2.ScoreStreamRequest], *, timeout_s: float | None = None
    ) -> Iterator[reward_pb2.ScoreStreamResponse]:
        """Scores items as they come, out of order."""
        return self._both_streams(rpcs.SCORE_STREAM, requests, timeout_s)

    def logprobs_stream(
        self, requests: Iterable[reference_pb2.LogProbsStreamRequest], *, timeout_s: float | None = None
    ) -> Iterator[reference_pb2.LogProbsStreamResponse]:
        """Log-probs of sequences as they come, out of order."""
        return self._both_streams(rpcs.LOGPROBS_STREAM, requests, timeout_s)

    def report_events(
        self, requests: Iterable[runs.ReportEventsRequest], *, timeout_s: float | None = None
    ) -> Iterator[runs.ReportEventsResponse]:
        """Reports a run's events; each is acknowledged once it is on disk."""
        return self._both_streams(rpcs.REPORT_EVENTS, requests, timeout_s)

    @property
    def _open(self) -> grpc.Channel:
        if self._closed:
            raise FailedPrecondition(f"{self.target}: this client is closed", field="client", value=self.target)
        return self._channel.now()

    def _error(self, raised: grpc.RpcError, method: str, timeout_s: float) -> TrimtabError:
        return from_rpc_error(raised, target=self.target, method=method, timeout_s=timeout_s, closed=self._closed)

    def _unary(self, rpc: Rpc[Argument, Result], argument: Argument, timeout_s: float | None) -> Result:
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        call = self._open.unary_unary(rpc.path, **rpc.serializers)
        message = rpc.to_message(argument)
        give_up = time.monotonic() + timeout_s
        tries = 0
        while True:
            tries += 1
            remaining_s = max(0.0, give_up - time.monotonic())
            try:
                reply = call(message, timeout=remaining_s, metadata=call_metadata(self._token))
                return rpc.from_message(reply)
            except grpc.RpcError as raised:
                error = self._error(raised, rpc.path, timeout_s)
            delay_s = retry_delay_s(error, tries, give_up - time.monotonic()) if rpc.repeatable else None
            if delay_s is None:
                raise error
            time.sleep(delay_s)

    def _stream(self, rpc: Rpc[Argument, Result], argument: Argument, timeout_s: float | None) -> Iterator[Result]:
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        call = self._open.unary_stream(rpc.path, **rpc.serializers)
        replies = call(rpc.to_message(argument), timeout=timeout_s, metadata=call_metadata(self._token))
        try:
            for reply in replies:
                yield rpc.from_message(reply)
        except grpc.RpcError as error:
            raise self._error(error, rpc.path, timeout_s) from None
        finally:
            replies.cancel()  # a caller that stops reading frees the work behind it

    def _stream_in(self, rpc: Rpc[Argument, Result], arguments: Iterable[Argument], timeout_s: float | None) -> Result:
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        call = self._open.stream_unary(rpc.path, **rpc.serializers)
        messages = (rpc.to_message(argument) for argument in arguments)
        try:
            return rpc.from_message(call(messages, timeout=timeout_s, metadata=call_metadata(self._token)))
        except grpc.RpcError as error:
            raise self._error(error, rpc.path, timeout_s) from None

    def _both_streams(
        self, rpc: Rpc[Argument, Result], arguments: Iterable[Argument], timeout_s: float | None
    ) -> Iterator[Result]:
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        call = self._open.stream_stream(rpc.path, **rpc.serializers)
        messages = (rpc.to_message(argument) for argument in arguments)
        replies = call(messages, timeout=timeout_s, metadata=call_metadata(self._token))
        try:
            for reply in replies:
                yield rpc.from_message(reply)
        except grpc.RpcError as error:
            raise self._error(error, rpc.path, timeout_s) from None
        finally:
            replies.cancel()
