"""Trimtab's client: call the services of a deployment from Python, without torch.

from trimtab import Client, ScoreItem, ScoreRequest

with Client("127.0.0.1:50051") as client:  # a reward service's gRPC address
    request = ScoreRequest(items=(ScoreItem(prompt="What is a trim tab?", completion="A small surface."),))
    print(client.score(request).scores[0].reward)
"""

from typing import Any

from trimtab.aio import AsyncClient
from trimtab.channel import TLSConfig, Token
from trimtab.client import Client
from trimtab.errors import TrimtabError
from trimtab.types import (
    ChatMessage,
    Completion,
    FinishReason,
    GenerateRequest,
    GenerateResult,
    GenerationPrompt,
    ItemLogProbs,
    ItemScore,
    LogProbsItem,
    LogProbsOptions,
    LogProbsRequest,
    LogProbsResult,
    Priority,
    RankRequest,
    RankResult,
    SamplingParams,
    ScoreItem,
    ScoreRequest,
    ScoreResult,
    ServedModel,
    ServiceInfo,
    ServiceState,
    TruncationSide,
    VersionRequirement,
    VersionSpan,
)

__all__ = [
    "AsyncClient",
    "ChatMessage",
    "Client",
    "Completion",
    "FinishReason",
    "GenerateRequest",
    "GenerateResult",
    "GenerationPrompt",
    "ItemLogProbs",
    "ItemScore",
    "LogProbsItem",
    "LogProbsOptions",
    "LogProbsRequest",
    "LogProbsResult",
    "Priority",
    "RankRequest",
    "RankResult",
    "SamplingParams",
    "ScoreItem",
    "ScoreRequest",
    "ScoreResult",
    "ServedModel",
    "ServiceInfo",
    "ServiceState",
    "TLSConfig",
    "Token",
    "TrimtabError",
    "TruncationSide",
    "VersionRequirement",
    "VersionSpan",
]


def __getattr__(name: str) -> Any:
    """`trimtab.__version__`: of the installed distribution, read when somebody asks."""
    if name != "__version__":
        raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
    from importlib import metadata

    return metadata.version("trimtab")
