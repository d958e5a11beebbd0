"""What the gRPC call and the HTTP fronts need of whatever samples: a policy, and a host that takes sequences.

Two pairs fill these roles. `policy.PolicyHolder` with `host.EngineHost` has an engine and weights of its own, which
follow a channel. `remote.RemotePolicy` with `remote.RemoteHost` asks a server elsewhere, whose weights never change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from trimtab.errors import InvalidRequest, Overloaded, Reason, SequenceTooLong
from trimtab.types import GenerateRequest, SamplingParams, ServedModel
from trimtab.v1 import info_pb2
from trimtab_services.generation.config import GenerationConfig
from trimtab_services.generation.engines.base import EngineLoad, FinishedSequence, SampledToken, SequenceRequest

__all__ = [
    "Policy",
    "Receive",
    "ReceiveToken",
    "SequenceHost",
    "check_fits",
    "describe_work",
    "model_facts",
    "refuse_overload",
]

Receive = Callable[[FinishedSequence], None]
ReceiveToken = Callable[[SampledToken], None]


class SequenceHost(Protocol):
    """Takes sequences and hands each one back once it is finished."""

    async def submit(
        self,
        requests: Sequence[SequenceRequest],
        receive: Receive,
        check: Callable[[int], None],
        deadline: float | None = None,
        receive_token: ReceiveToken | None = None,
    ) -> list[int]:
        """Admits sequences, all or none; cancelled, none.

        Args:
            requests: their sequence_id is replaced by the host's own.
            receive: gets each finished sequence, in the event loop.
            check: called with the version that they would start on, just before; raises when they must not be admitted.
            deadline: `time.monotonic()` after which the last of them is worthless; None: never.
            receive_token: gets each token once it is sampled, in the event loop and before the finished sequence; None:
                nobody waits for single tokens.

        Returns:
            The sequence ids, in order.

        Raises:
            Overloaded: the host holds too many tokens; says when to come back.
            DeadlineExceeded: the deadline has passed, or could not be met (DEADLINE_UNMEETABLE).
            TrimtabError: what `check` raised, or why none can be sampled.
        """
        ...

    def cancel(self, sequence_ids: Sequence[int]) -> None:
        """Drops sequences that are not finished; their slots are free soon after. Does not wait."""
        ...


class Policy(Protocol):
    """The policy that a generation replica serves."""

    @property
    def name(self) -> str:
        """Of the model in requests and in GetInfo."""
        ...

    @property
    def origin(self) -> str:
        """The folder or the remote model that it comes from; empty for one from a channel."""
        ...

    @property
    def served(self) -> ServedModel:
        """Which model answers now."""
        ...

    @property
    def version_moved(self) -> asyncio.Event:
        """Set, and replaced by a fresh one, each time the served version moves."""
        ...

    @property
    def host(self) -> SequenceHost:
        """Where sequences go; raises Unavailable while nothing can be sampled."""
        ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the served version; raises Unavailable while there is none."""
        ...

    def check_request(self, request: GenerateRequest) -> None:
        """Checks what is asked for every prompt alike.

        Raises:
            Unsupported: a sampling parameter that cannot be honoured.
            VersionUnavailable: a version that will never be served.
        """
        ...

    def check_sequence(self, token_ids: tuple[int, ...], sampling: SamplingParams) -> None:
        """Checks a prompt against the model, before anything is queued.

        Raises:
            InvalidRequest: a token id outside the vocabulary.
            SequenceTooLong: prompt plus `max_new_tokens` over the limit.
            Unsupported: a prompt that cannot be read.
        """
        ...

    def describe(self, response: info_pb2.GetInfoResponse) -> None:
        """The service's part of GetInfo: engine, one model, limits, load."""
        ...


def model_facts(policy: Policy) -> info_pb2.ModelInfo:
    """What GetInfo says of the served model."""
    response = info_pb2.GetInfoResponse()
    policy.describe(response)
    return response.models[0]


def describe_work(
    response: info_pb2.GetInfoResponse, config: GenerationConfig, load: EngineLoad | None, tokens_per_second: float
) -> None:
    """The part of GetInfo about engine, limits and load.

    Args:
        response: is filled in.
        config: of the service.
        load: now; None while nothing can be sampled.
        tokens_per_second: sampled, as long as something is.
    """
    response.engine = config.engine
    response.limits.max_items_per_request = config.max_items_per_request
    response.limits.max_queue_tokens = config.max_queue_tokens
    response.limits.max_concurrent_sequences = config.slots
    if load is not None:
        response.load.waiting_items = load.waiting_sequences
        response.load.running_items = load.busy_slots
        response.load.waiting_tokens = load.outstanding_tokens
        response.load.tokens_per_second = tokens_per_second if load.busy_slots else 0.0


def check_fits(token_ids: Sequence[int], sampling: SamplingParams, model: info_pb2.ModelInfo) -> None:
    """Checks a prompt against a model's vocabulary and context.

    Raises:
        InvalidRequest: a token id outside the vocabulary.
        SequenceTooLong: prompt plus `max_new_tokens` over the limit.
    """
    vocab, most = model.vocab_size, model.max_sequence_tokens
    outside = next((i for i, token in enumerate(token_ids) if not 0 <= token < vocab), None)
    if outside is not None:
        raise InvalidRequest(
            f"prompt.token_ids[{outside}]: {token_ids[outside]} is not in the vocabulary; allowed: 0..{vocab - 1}",
            reason=Reason.TOKEN_ID_OUT_OF_RANGE,
            field=f"prompt.token_ids[{outside}]",
            value=token_ids[outside],
            limit=vocab - 1,
        )
    total = len(token_ids) + sampling.max_new_tokens
    if total > most:
        raise SequenceTooLong(
            f"prompt: {len(token_ids)} prompt tokens plus max_new_tokens {sampling.max_new_tokens} make {total}; "
            f"allowed: {most}",
            field="prompt",
            value=total,
            limit=most,
        )


def refuse_overload(requests: Sequence[SequenceRequest], held: int, most: int, tokens_per_second: float) -> None:
    """Refuses sequences that are too many beside those that are held; where nothing is held, any are taken.

    Args:
        requests: that come.
        held: tokens of what is there, prompts and allowed new ones.
        most: of these tokens in all.
        tokens_per_second: that get done; 0 where it is not known.

    Raises:
        Overloaded: says when to come back.
    """
    wanted = sum(one.most_tokens for one in requests)
    if held == 0 or held + wanted <= most:
        return
    excess = held + wanted - most
    raise Overloaded(
        f"prompts: {wanted} tokens are asked for while {held} are held; allowed: {most} in all",
        field="prompts",
        value=wanted,
        limit=most,
        retry_after_s=min(60.0, max(0.1, excess / tokens_per_second)) if tokens_per_second else 1.0,
    )
