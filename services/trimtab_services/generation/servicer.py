"""GenerationService: checks a request, waits for its version, streams each completion the moment it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import grpc

from trimtab.convert import generate_request_from_message, generate_result_to_message
from trimtab.errors import InternalError, InvalidRequest, NotFound, Reason, TrimtabError, VersionUnavailable
from trimtab.types import (
    Completion,
    GenerateRequest,
    GenerateResult,
    GenerationPrompt,
    Priority,
    SamplingParams,
    ServedModel,
    VersionRequirement,
)
from trimtab.v1 import generation_pb2, generation_pb2_grpc
from trimtab_models.tokenizer import decode, encode_prompt
from trimtab_services.generation.config import GenerationConfig
from trimtab_services.generation.engines.base import Engine, FinishedSequence, SequenceRequest
from trimtab_services.generation.host import EngineHost
from trimtab_services.generation.policy import PolicyHolder
from trimtab_services.runtime.calls import current_call, rename_call

__all__ = ["GenerationServicer"]

_PRIORITIES = {Priority.INTERACTIVE: 0, Priority.ROLLOUT: 1, Priority.BULK: 2}


@dataclass(frozen=True)
class _Sequence:
    """What a finished sequence is answered with."""

    prompt_id: str
    sample_index: int
    prompt_token_count: int


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Samples completions from the policy.

    Args:
        config: of the service.
        policy: the engine with its policy, once there is one.
    """

    def __init__(self, config: GenerationConfig, policy: PolicyHolder) -> None:
        self._config = config
        self._policy = policy

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """Samples every prompt of the request; see the proto for the promises."""
        rename_call(request.request_id)
        asked = generate_request_from_message(request)
        self._check(asked)
        sequences, known, refused = self._sequences(asked)
        for prompt_id, error in refused:
            yield generate_result_to_message(GenerateResult(prompt_id, self._policy.served, error=error))
        if not sequences:
            return
        finished: asyncio.Queue[FinishedSequence] = asyncio.Queue()
        arrived = time.monotonic()
        host, ids = await self._admit(asked, sequences, finished)
        waiting = dict(zip(ids, known, strict=True))
        try:
            while waiting:
                done = await finished.get()
                if done.error is not None:
                    raise done.error
                self._check_spans(asked.version, done)
                sequence = waiting.pop(done.sequence_id)
                yield generate_result_to_message(self._result(asked, sequence, done, arrived))
        finally:
            host.cancel(list(waiting))  # a caller that went away frees its slots

    def _check(self, request: GenerateRequest) -> None:
        if request.model not in ("", self._policy.name):
            raise NotFound(
                f"model: {request.model!r} is not served; {self._policy.name!r} is", field="model", value=request.model
            )
        count = sum(prompt.num_samples for prompt in request.prompts)
        if count > self._config.max_items_per_request:
            raise InvalidRequest(
                f"prompts: {count} completions are asked for; allowed in one request: "
                f"{self._config.max_items_per_request}",
                reason=Reason.TOO_MANY_ITEMS,
                field="prompts",
                value=count,
                limit=self._config.max_items_per_request,
            )

    def _sequences(
        self, request: GenerateRequest
    ) -> tuple[list[SequenceRequest], list[_Sequence], list[tuple[str, TrimtabError]]]:
        """The engine's requests, what each will be answered with, and the prompts that are refused one by one."""
        sequences: list[SequenceRequest] = []
        known: list[_Sequence] = []
        refused: list[tuple[str, TrimtabError]] = []
        for index, prompt in enumerate(request.prompts):
            try:
                ids = tuple(encode_prompt(self._policy.tokenizer, prompt.prompt))
                made = self._of_prompt(request, prompt, ids)
                self._policy.check_sequence(ids, made[0].sampling)
            except TrimtabError as error:
                if request.per_item_errors:
                    refused.append((prompt.prompt_id, error))
                    continue
                raise _at(f"prompts[{index}]", error) from None
            sequences += made
            known += [_Sequence(prompt.prompt_id, one.sample_index, len(ids)) for one in made]
        return sequences, known, refused

    def _of_prompt(
        self, request: GenerateRequest, prompt: GenerationPrompt, token_ids: tuple[int, ...]
    ) -> list[SequenceRequest]:
        sampling: SamplingParams = request.sampling
        if prompt.max_new_tokens:
            sampling = sampling.model_copy(update={"max_new_tokens": prompt.max_new_tokens})
        pinned = request.version.exactly is not None or self._config.deterministic
        return [
            SequenceRequest(
                sequence_id=0,  # the host gives one
                prompt_token_ids=token_ids,
                sampling=sampling,
                seed=prompt.seed,
                sample_index=prompt.first_sample_index + number,
                finish_on_version=pinned,
                priority=_PRIORITIES[request.priority],
            )
            for number in range(prompt.num_samples)
        ]

    async def _admit(
        self, request: GenerateRequest, sequences: list[SequenceRequest], finished: asyncio.Queue[FinishedSequence]
    ) -> tuple[EngineHost, list[int]]:
        """Hands the sequences to the engine on a version that is allowed, waiting for it up to `max_wait_ms`.

        Returns:
            The host that took them, and their ids there.
        """
        give_up = time.monotonic() + request.max_wait_ms / 1000
        call = current_call()
        deadline = call.deadline if call is not None else None

        def check(engine: Engine) -> None:
            if not request.version.allows(engine.version):
                raise self._wrong_version(request.version, engine.version)

        while True:
            moved = self._policy.version_moved
            try:
                host = self._policy.host
                return host, await host.submit(sequences, finished.put_nowait, check, deadline)
            except VersionUnavailable:
                wanted = request.version.exactly
                too_late = wanted is not None and wanted < self._policy.served.version
                if too_late or time.monotonic() >= give_up:
                    raise
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + give_up - time.monotonic()):
                    await moved.wait()
            except TimeoutError:
                continue  # one last look, then the error

    def _check_spans(self, requirement: VersionRequirement, done: FinishedSequence) -> None:
        """Lets no token out that another version sampled than the request allows.

        Raises:
            VersionUnavailable: the replica was rolled back below `at_least` while the sequence ran or waited.
            InternalError: the engine broke its promise that the sequence finishes on the version that it came under.
        """
        versions = [span.version for span in done.version_spans]
        wrong = next((version for version in versions if not requirement.allows(version)), None)
        if wrong is not None and requirement.at_least is not None:
            raise self._wrong_version(requirement, wrong)
        is_mixed = self._config.deterministic and len(set(versions)) > 1
        if wrong is not None or is_mixed:
            raise InternalError(
                f"version: a completion was sampled by versions {versions} where {requirement} is asked for"
                + (" and the service is deterministic" if is_mixed else ""),
                field="version",
                value=versions,
                limit=requirement,
            )

    def _wrong_version(self, requirement: VersionRequirement, served: int) -> VersionUnavailable:
        return VersionUnavailable(
            f"version: {requirement} is asked for; this replica serves {served}",
            field="version",
            value=str(requirement),
            limit=served,
            metadata={"served_version": str(served)},
        )

    def _result(
        self, request: GenerateRequest, sequence: _Sequence, done: FinishedSequence, arrived: float
    ) -> GenerateResult:
        started = done.slot_time or time.monotonic()
        completion = Completion(
            sample_index=sequence.sample_index,
            token_ids=done.token_ids,
            logprobs=done.logprobs,
            finish_reason=done.finish_reason,
            version_spans=done.version_spans,
            text=decode(self._policy.tokenizer, done.token_ids) if request.return_text else "",
            prompt_token_count=sequence.prompt_token_count,
            queue_ms=(started - arrived) * 1000,
            compute_ms=(time.monotonic() - started) * 1000,
        )
        served: ServedModel = self._policy.served
        last = done.version_spans[-1].version if done.version_spans else served.version
        return GenerateResult(
            sequence.prompt_id,
            served if served.version == last else replace(served, version=last, weights_digest=""),
            completion=completion,
        )


def _at(path: str, error: TrimtabError) -> TrimtabError:
    """The same error with the item's path in front of its field."""
    field = f"{path}.{error.field}" if error.field else path
    message = error.message.removeprefix(f"{error.field}: ")
    return type(error)(
        f"{field}: {message}",
        reason=error.reason,
        field=field,
        value=error.value or None,
        limit=error.limit or None,
        metadata=error.metadata,
    )
