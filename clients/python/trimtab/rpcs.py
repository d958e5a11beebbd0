"""Every rpc as data: its path, its messages, how records become messages, and whether it may be repeated.

`Client` and `AsyncClient` have a line for each and nothing else in common to keep alike. The weights, trainer and
labeling rpcs speak the messages of `trimtab.v1` themselves: their fields are documented there, and records would only
repeat them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from trimtab import convert
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
from trimtab.v1 import generation_pb2, info_pb2, reference_pb2, reward_pb2
from trimtab.v1 import labeling_pb2 as labels
from trimtab.v1 import trainer_pb2 as runs
from trimtab.v1 import weights_pb2 as weights

__all__ = ["Rpc"]

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def _same(message: Any) -> Any:
    return message


@dataclass(frozen=True)
class Rpc(Generic[Argument, Result]):
    """One rpc.

    Attributes:
        path: full method name.
        request, response: message classes.
        to_message, from_message: from the argument and to the result.
        repeatable: the proto says that a retry is safe.
    """

    path: str
    request: type[Message]
    response: type[Message]
    to_message: Callable[[Argument], Message] = _same
    from_message: Callable[[Any], Result] = _same
    repeatable: bool = True

    @property
    def serializers(self) -> dict[str, Any]:
        """What grpc needs to know."""
        return {
            "request_serializer": self.request.SerializeToString,
            "response_deserializer": self.response.FromString,
        }


INFO: Rpc[info_pb2.GetInfoRequest, ServiceInfo] = Rpc(
    "/trimtab.v1.InfoService/GetInfo",
    info_pb2.GetInfoRequest,
    info_pb2.GetInfoResponse,
    from_message=convert.info_from_message,
    repeatable=False,  # asked again and again anyway: an answer at once is worth more
)
GENERATE: Rpc[GenerateRequest, GenerateResult] = Rpc(
    "/trimtab.v1.GenerationService/Generate",
    generation_pb2.GenerateRequest,
    generation_pb2.GenerateResponse,
    convert.generate_request_to_message,
    convert.generate_result_from_message,
)
SCORE: Rpc[ScoreRequest, ScoreResult] = Rpc(
    "/trimtab.v1.RewardService/Score",
    reward_pb2.ScoreRequest,
    reward_pb2.ScoreResponse,
    convert.score_request_to_message,
    convert.score_result_from_message,
)
SCORE_STREAM: Rpc[reward_pb2.ScoreStreamRequest, reward_pb2.ScoreStreamResponse] = Rpc(
    "/trimtab.v1.RewardService/ScoreStream", reward_pb2.ScoreStreamRequest, reward_pb2.ScoreStreamResponse
)
RANK: Rpc[RankRequest, RankResult] = Rpc(
    "/trimtab.v1.RewardService/Rank",
    reward_pb2.RankRequest,
    reward_pb2.RankResponse,
    convert.rank_request_to_message,
    convert.rank_result_from_message,
)
LOGPROBS: Rpc[LogProbsRequest, LogProbsResult] = Rpc(
    "/trimtab.v1.ReferenceService/LogProbs",
    reference_pb2.LogProbsRequest,
    reference_pb2.LogProbsResponse,
    convert.logprobs_request_to_message,
    convert.logprobs_result_from_message,
)
LOGPROBS_STREAM: Rpc[reference_pb2.LogProbsStreamRequest, reference_pb2.LogProbsStreamResponse] = Rpc(
    "/trimtab.v1.ReferenceService/LogProbsStream",
    reference_pb2.LogProbsStreamRequest,
    reference_pb2.LogProbsStreamResponse,
)

_W = "/trimtab.v1.WeightsService/"
ACQUIRE_LEASE: Rpc[weights.AcquireLeaseRequest, weights.AcquireLeaseResponse] = Rpc(
    _W + "AcquireLease", weights.AcquireLeaseRequest, weights.AcquireLeaseResponse, repeatable=False
)
RELEASE_LEASE: Rpc[weights.ReleaseLeaseRequest, weights.ReleaseLeaseResponse] = Rpc(
    _W + "ReleaseLease", weights.ReleaseLeaseRequest, weights.ReleaseLeaseResponse
)
FIND_MISSING_BLOBS: Rpc[weights.FindMissingBlobsRequest, weights.FindMissingBlobsResponse] = Rpc(
    _W + "FindMissingBlobs", weights.FindMissingBlobsRequest, weights.FindMissingBlobsResponse
)
PUBLISH: Rpc[weights.PublishRequest, weights.PublishResponse] = Rpc(
    _W + "Publish", weights.PublishRequest, weights.PublishResponse
)
GET_MANIFEST: Rpc[weights.GetManifestRequest, weights.GetManifestResponse] = Rpc(
    _W + "GetManifest", weights.GetManifestRequest, weights.GetManifestResponse
)
LIST_VERSIONS: Rpc[weights.ListVersionsRequest, weights.ListVersionsResponse] = Rpc(
    _W + "ListVersions", weights.ListVersionsRequest, weights.ListVersionsResponse
)
LIST_CHANNELS: Rpc[weights.ListChannelsRequest, weights.ListChannelsResponse] = Rpc(
    _W + "ListChannels", weights.ListChannelsRequest, weights.ListChannelsResponse
)
WATCH: Rpc[weights.WatchRequest, weights.WatchResponse] = Rpc(
    _W + "Watch", weights.WatchRequest, weights.WatchResponse, repeatable=False
)
SET_CHANNEL: Rpc[weights.SetChannelRequest, weights.SetChannelResponse] = Rpc(
    _W + "SetChannel", weights.SetChannelRequest, weights.SetChannelResponse, repeatable=False
)
PIN: Rpc[weights.PinRequest, weights.PinResponse] = Rpc(_W + "Pin", weights.PinRequest, weights.PinResponse)
PRUNE: Rpc[weights.PruneRequest, weights.PruneResponse] = Rpc(
    _W + "Prune", weights.PruneRequest, weights.PruneResponse, repeatable=False
)

_T = "/trimtab.v1.TrainerService/"
START_RUN: Rpc[runs.StartRunRequest, runs.StartRunResponse] = Rpc(
    _T + "StartRun", runs.StartRunRequest, runs.StartRunResponse
)
GET_RUN: Rpc[runs.GetRunRequest, runs.GetRunResponse] = Rpc(_T + "GetRun", runs.GetRunRequest, runs.GetRunResponse)
LIST_RUNS: Rpc[runs.ListRunsRequest, runs.ListRunsResponse] = Rpc(
    _T + "ListRuns", runs.ListRunsRequest, runs.ListRunsResponse
)
WATCH_RUN: Rpc[runs.WatchRunRequest, runs.WatchRunResponse] = Rpc(
    _T + "WatchRun", runs.WatchRunRequest, runs.WatchRunResponse, repeatable=False
)
WATCH_RUN_LOG: Rpc[runs.WatchRunLogRequest, runs.WatchRunLogResponse] = Rpc(
    _T + "WatchRunLog", runs.WatchRunLogRequest, runs.WatchRunLogResponse, repeatable=False
)
STOP_RUN: Rpc[runs.StopRunRequest, runs.StopRunResponse] = Rpc(
    _T + "StopRun", runs.StopRunRequest, runs.StopRunResponse
)
RESUME_RUN: Rpc[runs.ResumeRunRequest, runs.ResumeRunResponse] = Rpc(
    _T + "ResumeRun", runs.ResumeRunRequest, runs.ResumeRunResponse, repeatable=False
)
DELETE_RUN: Rpc[runs.DeleteRunRequest, runs.DeleteRunResponse] = Rpc(
    _T + "DeleteRun", runs.DeleteRunRequest, runs.DeleteRunResponse
)
CHECKPOINT_RUN: Rpc[runs.CheckpointRunRequest, runs.CheckpointRunResponse] = Rpc(
    _T + "CheckpointRun", runs.CheckpointRunRequest, runs.CheckpointRunResponse
)
REPORT_EVENTS: Rpc[runs.ReportEventsRequest, runs.ReportEventsResponse] = Rpc(
    _T + "ReportEvents", runs.ReportEventsRequest, runs.ReportEventsResponse, repeatable=False
)

_L = "/trimtab.v1.LabelingService/"
CREATE_PROJECT: Rpc[labels.CreateProjectRequest, labels.CreateProjectResponse] = Rpc(
    _L + "CreateProject", labels.CreateProjectRequest, labels.CreateProjectResponse
)
GET_PROJECT: Rpc[labels.GetProjectRequest, labels.GetProjectResponse] = Rpc(
    _L + "GetProject", labels.GetProjectRequest, labels.GetProjectResponse
)
LIST_PROJECTS: Rpc[labels.ListProjectsRequest, labels.ListProjectsResponse] = Rpc(
    _L + "ListProjects", labels.ListProjectsRequest, labels.ListProjectsResponse
)
UPDATE_PROJECT: Rpc[labels.UpdateProjectRequest, labels.UpdateProjectResponse] = Rpc(
    _L + "UpdateProject", labels.UpdateProjectRequest, labels.UpdateProjectResponse
)
WITHDRAW_TASKS: Rpc[labels.WithdrawTasksRequest, labels.WithdrawTasksResponse] = Rpc(
    _L + "WithdrawTasks", labels.WithdrawTasksRequest, labels.WithdrawTasksResponse
)
RESET_QUALIFICATION: Rpc[labels.ResetQualificationRequest, labels.ResetQualificationResponse] = Rpc(
    _L + "ResetQualification", labels.ResetQualificationRequest, labels.ResetQualificationResponse
)
GET_AGREEMENT: Rpc[labels.GetAgreementRequest, labels.GetAgreementResponse] = Rpc(
    _L + "GetAgreement", labels.GetAgreementRequest, labels.GetAgreementResponse
)
CREATE_ACCOUNT: Rpc[labels.CreateAccountRequest, labels.CreateAccountResponse] = Rpc(
    _L + "CreateAccount", labels.CreateAccountRequest, labels.CreateAccountResponse
)
UPDATE_ACCOUNT: Rpc[labels.UpdateAccountRequest, labels.UpdateAccountResponse] = Rpc(
    _L + "UpdateAccount", labels.UpdateAccountRequest, labels.UpdateAccountResponse
)
LIST_ACCOUNTS: Rpc[labels.ListAccountsRequest, labels.ListAccountsResponse] = Rpc(
    _L + "ListAccounts", labels.ListAccountsRequest, labels.ListAccountsResponse
)
LIST_AUDIT_EVENTS: Rpc[labels.ListAuditEventsRequest, labels.ListAuditEventsResponse] = Rpc(
    _L + "ListAuditEvents", labels.ListAuditEventsRequest, labels.ListAuditEventsResponse
)
IMPORT_TASKS: Rpc[labels.ImportTasksRequest, labels.ImportTasksResponse] = Rpc(
    _L + "ImportTasks", labels.ImportTasksRequest, labels.ImportTasksResponse, repeatable=False
)
EXPORT_LABELS: Rpc[labels.ExportLabelsRequest, labels.ExportLabelsResponse] = Rpc(
    _L + "ExportLabels", labels.ExportLabelsRequest, labels.ExportLabelsResponse, repeatable=False
)
