"""The OpenAI front: `/v1/completions`, `/v1/chat/completions`, `/v1/models`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from typing import Any

from aiohttp import web

from trimtab.errors import NotFound, Unsupported
from trimtab.types import SamplingParams
from trimtab_services.generation.completions import Completions
from trimtab_services.generation.http import openai_answers as answers
from trimtab_services.generation.http.answering import Answering, Events, json_answer
from trimtab_services.generation.http.bodies import read_body
from trimtab_services.generation.http.openai_requests import (
    ChatRequest,
    CompletionRequest,
    chat_request,
    completion_request,
)
from trimtab_services.generation.http.sampling import Asked, ChoicePart, sample, stream
from trimtab_services.generation.http.scoring import ScoredTokens, SequenceScorer
from trimtab_services.generation.http.text import TextStream
from trimtab_services.generation.serving import Policy, model_facts
from trimtab_services.runtime.reading import characters_of

__all__ = ["OpenAIFront"]


class OpenAIFront:
    """Handlers of OpenAI's API.

    Args:
        policy: what is served.
        completions: samples.
        scorer: scores given tokens.
        deadline_s: seconds that a call may take.
    """

    def __init__(self, policy: Policy, completions: Completions, scorer: SequenceScorer, deadline_s: float) -> None:
        self._policy = policy
        self._completions = completions
        self._scorer = scorer
        self._created = int(time.time())
        self.answering = Answering(
            error_body=answers.error_body,
            status={Unsupported: 400},
            prefix="data: ",
            last_event="[DONE]",
            deadline_s=deadline_s,
        )

    async def models(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/models`."""
        return json_answer({"object": "list", "data": [self._model()]}, {self._policy.served.version})

    async def model(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/models/{model}`."""
        name = request.match_info["model"]
        if name != self._policy.name:
            raise NotFound(f"model: {name!r} is not served; {self._policy.name!r} is", field="model", value=name)
        return json_answer(self._model(), {self._policy.served.version})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/completions`."""
        asked = completion_request(await read_body(request))
        asked.check_model(self._policy.name)
        fields = {field: characters_of(prompt) for field, prompt in asked.named_prompts()}
        self._completions.check_count(len(fields) * asked.n, "prompt")
        prompts = await self._completions.read(fields, asked.prompts)
        work = asked.asked(prompts, [*fields], max(1, asked.max_tokens))
        if asked.stream:
            envelope = answers.Envelope("text_completion", "cmpl", self._policy.served)
            events = self._completion_events(asked, work, envelope)
            return await self.answering.stream(request, events, envelope.served.version)
        if asked.max_tokens == 0:
            with work.in_callers_words():
                self._completions.check(work.request())
            parts = [None] * (len(work.prompts) * work.samples)
        else:
            parts = await sample(self._completions, self._policy, work)
        choices, versions = [], set[int]()
        for index, part in enumerate(parts):
            choice, version = await self._completion_choice(asked, work, index, part)
            choices.append(choice)
            versions |= {version, *(part.versions if part is not None else ())}
        usage = _usage(work.prompts, [part for part in parts if part is not None])
        envelope = answers.Envelope("text_completion", "cmpl", self._policy.served)
        return json_answer(envelope.wrap(choices, max(versions), usage=usage), versions)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`."""
        asked = chat_request(await read_body(request))
        asked.check_model(self._policy.name)
        characters = sum(len(message.content) for message in asked.messages)
        prompt = await self._completions.read({"messages": characters}, asked.prompt)
        most = asked.max_new_tokens(len(prompt), model_facts(self._policy).max_sequence_tokens)
        work = asked.asked([prompt], ["messages"], most)
        if asked.stream:
            envelope = answers.Envelope("chat.completion.chunk", "chatcmpl", self._policy.served)
            events = self._chat_events(asked, work, envelope)
            return await self.answering.stream(request, events, envelope.served.version)
        parts = await sample(self._completions, self._policy, work)
        choices = [await self._chat_choice(asked, work, part) for part in parts]
        versions = {version for part in parts for version in part.versions}
        envelope = answers.Envelope("chat.completion", "chatcmpl", self._policy.served)
        return json_answer(envelope.wrap(choices, max(versions), usage=_usage(work.prompts, parts)), versions)

    async def _completion_choice(
        self, asked: CompletionRequest, work: Asked, index: int, part: ChoicePart | None
    ) -> tuple[dict[str, Any], int]:
        """A choice, and the version that it comes from; the part is None where nothing was to be sampled."""
        prompt = work.prompts[index // work.samples]
        version = part.versions[-1] if part is not None else self._policy.served.version
        echoed, offsets = self._echo(asked, index // work.samples, prompt) if asked.echo else ("", [])
        rows: list[answers.TokenRow] = []
        if asked.logprobs is not None:
            scored = await self._scored(prompt, part, work.sampling, 1 if asked.echo else len(prompt), asked.logprobs)
            if scored is not None:
                version = scored.version
            if asked.echo:
                rows += _prompt_rows(prompt, offsets, scored)
            if part is not None:
                rows += answers.rows_of(part, _top_of(part, scored), len(echoed))
        choice = {
            "index": index,
            "text": echoed + (part.text if part is not None else ""),
            "logprobs": answers.completion_logprobs(self._policy.tokenizer, rows)
            if asked.logprobs is not None
            else None,
            "finish_reason": answers.finish_reason(part.end) if part is not None else "length",
        }
        return choice, version

    async def _chat_choice(self, asked: ChatRequest, work: Asked, part: ChoicePart) -> dict[str, Any]:
        logprobs = None
        if asked.logprobs:
            top_n, prompt = asked.top_logprobs or 0, work.prompts[0]
            scored = await self._scored(prompt, part, work.sampling, len(prompt), top_n)
            rows = answers.rows_of(part, _top_of(part, scored))
            logprobs = answers.chat_logprobs(self._policy.tokenizer, rows, top_n)
        return {
            "index": part.index,
            "message": {"role": "assistant", "content": part.text, "refusal": None},
            "logprobs": logprobs,
            "finish_reason": answers.finish_reason(part.end),
        }

    async def _scored(
        self, prompt: tuple[int, ...], part: ChoicePart | None, sampling: SamplingParams, start: int, top_n: int
    ) -> ScoredTokens | None:
        """Log-probs from `start` on under the weights that sampled; None where the sampler has told all that is asked.

        Raises:
            VersionUnavailable: the policy has moved on since a token was sampled.
        """
        ids = prompt + tuple(token.token_id for token in part.tokens) if part is not None else prompt
        if start >= len(ids) or (start == len(prompt) and top_n == 0):
            return None
        return await self._scorer.score(
            self._policy.host,
            ids,
            start=start,
            temperature=sampling.temperature,
            top_n=top_n,
            sampled_by=part.versions if part is not None else (),
        )

    async def _completion_events(self, asked: CompletionRequest, work: Asked, envelope: answers.Envelope) -> Events:
        usage = _Usage(work.prompts)
        async with aclosing(stream(self._completions, self._policy, work)) as parts:
            async for part in parts:
                usage.add(part)
                logprobs = None
                if asked.logprobs is not None:
                    logprobs = answers.completion_logprobs(self._policy.tokenizer, answers.rows_of(part))
                choice = {
                    "index": part.index,
                    "text": part.text,
                    "logprobs": logprobs,
                    "finish_reason": answers.finish_reason(part.end),
                }
                yield envelope.wrap([choice], part.versions[-1])
        if asked.stream_options.include_usage:
            yield envelope.wrap([], usage.version, usage=usage.body())

    async def _chat_events(self, asked: ChatRequest, work: Asked, envelope: answers.Envelope) -> Events:
        usage = _Usage(work.prompts)
        begun: set[int] = set()
        async with aclosing(stream(self._completions, self._policy, work)) as parts:
            async for part in parts:
                usage.add(part)
                if part.index not in begun:
                    begun.add(part.index)
                    yield envelope.wrap([_delta(part.index, {"role": "assistant", "content": ""})], part.versions[0])
                logprobs = None
                if asked.logprobs and part.tokens:
                    logprobs = answers.chat_logprobs(self._policy.tokenizer, answers.rows_of(part), 0)
                delta = {"content": part.text} if part.text or logprobs else {}
                reason = answers.finish_reason(part.end)
                yield envelope.wrap([_delta(part.index, delta, logprobs, reason)], part.versions[-1])
        if asked.stream_options.include_usage:
            yield envelope.wrap([], usage.version, usage=usage.body())

    def _echo(self, asked: CompletionRequest, index: int, prompt: tuple[int, ...]) -> tuple[str, list[int]]:
        """The prompt's text, as it was sent or what its ids spell, and where each token begins in it."""
        _, given = asked.named_prompts()[index]
        text = TextStream(self._policy.tokenizer, keep_special=not isinstance(given, str))
        pieces = [piece for token_id in prompt for piece in text.feed(token_id)] + text.finish()
        spelled = "".join(piece.text for piece in pieces)
        return given if isinstance(given, str) else spelled, [piece.offset for piece in pieces]

    def _model(self) -> dict[str, Any]:
        facts = model_facts(self._policy)
        return {
            "id": self._policy.name,
            "object": "model",
            "created": self._created,
            "owned_by": "trimtab",
            "max_model_len": facts.max_sequence_tokens,
        }


class _Usage:
    """Tokens of a stream, counted as it goes.

    Args:
        prompts: of the request.
    """

    def __init__(self, prompts: Sequence[tuple[int, ...]]) -> None:
        self._prompts = prompts
        self._parts: dict[int, ChoicePart] = {}
        self.version = 0

    def add(self, part: ChoicePart) -> None:
        self._parts[part.index] = part
        self.version = max(self.version, *part.versions)

    def body(self) -> dict[str, int]:
        return _usage(self._prompts, self._parts.values())


def _usage(prompts: Sequence[tuple[int, ...]], last_parts: Iterable[ChoicePart]) -> dict[str, int]:
    prompt_tokens = sum(len(prompt) for prompt in prompts)
    completion_tokens = sum(part.sampled_tokens for part in last_parts)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _prompt_rows(prompt: tuple[int, ...], offsets: list[int], scored: ScoredTokens | None) -> list[answers.TokenRow]:
    """Rows of a prompt; nothing predicts its first token."""
    rows = [answers.TokenRow(prompt[0], None, offsets[0])]
    if scored is None:  # there is no second one
        return rows
    rest = zip(prompt[1:], scored.logprobs, offsets[1:], scored.top, strict=False)  # the completion's may follow
    return rows + [answers.TokenRow(*row) for row in rest]


def _top_of(part: ChoicePart, scored: ScoredTokens | None) -> Sequence[Sequence[tuple[int, float]]]:
    """The likeliest tokens in the places of a completion's, which end the scored sequence."""
    return scored.top[-len(part.tokens) :] if scored is not None else ()


def _delta(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
