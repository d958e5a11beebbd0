"""Records of every call. Requests are checked here, once, for both sides: here live the limits of the contract.

Requests are frozen pydantic models: a wrong value raises `InvalidRequest` with the path of the field, the value and
what is allowed, before anything is sent, and again in the server for callers that do not use this package. Replies are
frozen dataclasses. Log-probs are float32 numpy arrays in nats. What a limit depends on the served model (context
length, vocabulary, items a request) is in `ServiceInfo` and checked by the server.
"""

from trimtab.types.generation import (
    Completion,
    FinishReason,
    GenerateRequest,
    GenerateResult,
    GenerationPrompt,
    SamplingParams,
    VersionSpan,
)
from trimtab.types.info import Limits, Load, ModelInfo, ServiceInfo, ServiceState
from trimtab.types.reference import ItemLogProbs, LogProbsItem, LogProbsOptions, LogProbsRequest, LogProbsResult
from trimtab.types.reward import ItemScore, RankRequest, RankResult, ScoreItem, ScoreRequest, ScoreResult
from trimtab.types.shared import (
    ChatMessage,
    FloatArray,
    Priority,
    PromptLike,
    ServedModel,
    TruncationSide,
    VersionRequirement,
)

__all__ = [
    "ChatMessage",
    "Completion",
    "FinishReason",
    "FloatArray",
    "GenerateRequest",
    "GenerateResult",
    "GenerationPrompt",
    "ItemLogProbs",
    "ItemScore",
    "Limits",
    "Load",
    "LogProbsItem",
    "LogProbsOptions",
    "LogProbsRequest",
    "LogProbsResult",
    "ModelInfo",
    "Priority",
    "PromptLike",
    "RankRequest",
    "RankResult",
    "ScoreItem",
    "ScoreRequest",
    "ScoreResult",
    "SamplingParams",
    "ServedModel",
    "ServiceInfo",
    "ServiceState",
    "TruncationSide",
    "VersionRequirement",
    "VersionSpan",
]
