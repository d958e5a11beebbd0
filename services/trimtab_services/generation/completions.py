"""From a checked request to its completions: what the gRPC call and the HTTP fronts share.

Checks what depends on the served model, waits for the version asked for, hands the sequences to the engine, lets no
token out that a wrong version sampled, and gives the slots back when the caller goes away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

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
from trimtab_models.tokenizer import decode, encode_prompt
from trimtab_services.generation.config import GenerationConfig
from trimtab_services.generation.engines.base import FinishedSequence, SampledToken, SequenceRequest
from trimtab_services.generation.serving import Policy, SequenceHost, model_facts
from trimtab_services.runtime.calls import Call, current_call
from trimtab_services.runtime.reading import TextReader, characters_of, check_characters

__all__ = ["CompletionToken", "Completions"]

_PRIORITIES = {Priority.INTERACTIVE: 0, Priority.ROLLOUT: 1, Priority.BULK: 2}

T = TypeVar("T")

_Event = SampledToken | FinishedSequence


@dataclass(frozen=True, slots=True)
class CompletionToken:
    """A token the moment it is sampled; with the last one the completion itself follows at once.

    Attributes:
        prompt_id, sample_index: of the completion.
        token_id, logprob, version: as the completion has them in the end.
        is_last: whether the completion ends with it.
    """

    prompt_id: str
    sample_index: int
    token_id: int
    logprob: float
    version: int
    is_last: bool


@dataclass(frozen=True)
class _Sequence:
    """What a finished sequence is answered with."""

    prompt_id: str
    sample_index: int
    prompt_token_count: int


class Completions:
    """Samples completions from the policy.

    Args:
        config: of the service.
        policy: what samples.
        charge: takes the tokens of a request, read and sampled at most, off its caller's quota; raises where that has
            too few left. Negative ones are given back.
    """

    def __init__(
        self,
        config: GenerationConfig,
        policy: Policy,
        charge: Callable[[str, int], None] = lambda caller, tokens: None,
    ) -> None:
        self._config = config
        self._policy = policy
        self._charge = charge
        self._reader = TextReader()

    def check(self, request: GenerateRequest) -> None:
        """Refuses what `sample` would refuse before it hands anything to the engine; errors as there."""
        self._check(request)
        self._sequences(request, self._read_prompts(request, self._policy.tokenizer))

    async def read(self, fields: Mapping[str, int], read: Callable[[PreTrainedTokenizerBase], T]) -> T:
        """Reads texts with the policy's tokenizer; what takes long is read beside the event loop.

        Args:
            fields: characters of each field that is read.
            read: reads them.

        Raises:
            Unavailable: there is no version yet.
            SequenceTooLong: a text is so long that it is not even read.
            TrimtabError: what `read` raises.
        """
        tokenizer, most = self._policy.tokenizer, model_facts(self._policy).max_sequence_tokens
        for field, characters in fields.items():
            check_characters(field, characters, most)
        return await self._reader.read(sum(fields.values()), partial(read, tokenizer))

    async def sample(self, request: GenerateRequest) -> AsyncGenerator[GenerateResult, None]:
        """Samples every prompt of the request; each completion comes the moment it ends.

        Raises:
            TrimtabError: as the proto says of `Generate`.
        """
        async with aclosing(self._events(request, each_token=False)) as events:
            async for event in events:
                if isinstance(event, GenerateResult):
                    yield event

    def stream(self, request: GenerateRequest) -> AsyncGenerator[CompletionToken | GenerateResult, None]:
        """As `sample`, and each token besides, once it is sampled and before the completion that it ends in."""
        return self._events(request, each_token=True)

    async def _events(
        self, request: GenerateRequest, *, each_token: bool
    ) -> AsyncGenerator[CompletionToken | GenerateResult, None]:
        self._check(request)
        characters = sum(characters_of(prompt.prompt) for prompt in request.prompts)
        read = partial(self._read_prompts, request, self._policy.tokenizer)
        sequences, known, refused = self._sequences(request, await self._reader.read(characters, read))
        for prompt_id, error in refused:
            yield GenerateResult(prompt_id, self._policy.served, error=error)
        if not sequences:
            return
        call = current_call()
        asked = sum(one.most_tokens for one in sequences)
        caller = call.caller if call is not None else ""
        self._charge(caller, asked)
        events: asyncio.Queue[_Event] = asyncio.Queue()
        arrived = time.monotonic()
        try:
            host, ids = await self._admit(request, sequences, events, each_token)
        except BaseException:
            self._charge(caller, -asked)  # nothing is sampled
            raise
        waiting = dict(zip(ids, known, strict=True))
        try:
            while waiting:
                event = await events.get()
                sequence = waiting[event.sequence_id]
                if isinstance(event, SampledToken):
                    if not request.version.allows(event.version):
                        raise self._wrong_version(request.version, event.version)
                    yield _told(sequence, event)
                    continue
                if event.error is not None:
                    raise event.error
                self._check_spans(request.version, event)
                del waiting[event.sequence_id]
                result = self._result(request, sequence, event, arrived)
                _trace(call, result, arrived)
                yield result
        finally:
            host.cancel(list(waiting))  # a caller that went away frees its slots

    def _check(self, request: GenerateRequest) -> None:
        if request.model not in ("", self._policy.name):
            raise NotFound(
                f"model: {request.model!r} is not served; {self._policy.name!r} is", field="model", value=request.model
            )
        self.check_count(sum(prompt.num_samples for prompt in request.prompts))
        self._policy.check_request(request)

    def check_count(self, count: int, field: str = "prompts") -> None:
        """Refuses a request for too many completions; for those who have to read much before they can make one.

        Raises:
            InvalidRequest: TOO_MANY_ITEMS.
        """
        if count > self._config.max_items_per_request:
            raise InvalidRequest(
                f"{field}: {count} completions are asked for; allowed in one request: "
                f"{self._config.max_items_per_request}",
                reason=Reason.TOO_MANY_ITEMS,
                field=field,
                value=count,
                limit=self._config.max_items_per_request,
            )

    def _read_prompts(
        self, request: GenerateRequest, tokenizer: PreTrainedTokenizerBase
    ) -> list[tuple[int, ...] | TrimtabError]:
        """Token ids or error of each prompt; ends at the first error where it refuses the whole request."""
        most = model_facts(self._policy).max_sequence_tokens
        found: list[tuple[int, ...] | TrimtabError] = []
        for prompt in request.prompts:
            try:
                check_characters("prompt", characters_of(prompt.prompt), most)
                found.append(tuple(encode_prompt(tokenizer, prompt.prompt)))
            except TrimtabError as error:
                found.append(error)
                if not request.per_item_errors:
                    break
        return found

    def _sequences(
        self, request: GenerateRequest, read: Sequence[tuple[int, ...] | TrimtabError]
    ) -> tuple[list[SequenceRequest], list[_Sequence], list[tuple[str, TrimtabError]]]:
        """The engine's requests, what each will be answered with, and the prompts that are refused one by one."""
        sequences: list[SequenceRequest] = []
        known: list[_Sequence] = []
        refused: list[tuple[str, TrimtabError]] = []
        for index, (prompt, ids) in enumerate(zip(request.prompts, read, strict=False)):
            try:
                if isinstance(ids, TrimtabError):
                    raise ids
                made = self._of_prompt(request, prompt, ids)
                self._policy.check_sequence(ids, made[0].sampling)
            except TrimtabError as error:
                if request.per_item_errors:
                    refused.append((prompt.prompt_id, error))
                    continue
                raise error.under(f"prompts[{index}]") from None
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
        self,
        request: GenerateRequest,
        sequences: list[SequenceRequest],
        events: asyncio.Queue[_Event],
        each_token: bool,
    ) -> tuple[SequenceHost, list[int]]:
        """Hands the sequences to the engine on a version that is allowed, waiting for it up to `max_wait_ms`.

        Returns:
            The host that took them, and their ids there.
        """
        give_up = time.monotonic() + request.max_wait_ms / 1000
        call = current_call()
        deadline = call.deadline if call is not None else None
        receive_token = events.put_nowait if each_token else None

        def check(version: int) -> None:
            if not request.version.allows(version):
                raise self._wrong_version(request.version, version)

        while True:
            moved = self._policy.version_moved
            try:
                host = self._policy.host
                return host, await host.submit(sequences, events.put_nowait, check, deadline, receive_token)
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


def _told(sequence: _Sequence, token: SampledToken) -> CompletionToken:
    logprob = float(np.float32(token.logprob))  # as the finished completion has it
    return CompletionToken(
        sequence.prompt_id, sequence.sample_index, token.token_id, logprob, token.version, token.is_last
    )


def _trace(call: Call | None, result: GenerateResult, arrived: float) -> None:
    """Adds a completion's wait and its time in a slot to the call's trace, where it has one."""
    done = result.completion
    if done is not None and call is not None and call.trace is not None:
        call.trace.record_work(
            submitted=arrived,
            queue_s=done.queue_ms / 1000,
            compute_s=done.compute_ms / 1000,
            batch_items=1,
        )
