"""The TGI front: `/generate`, `/generate_stream`, `/`, `/tokenize`, and TGI's fields in `/info`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from aiohttp import web
from google.protobuf import json_format

from trimtab.errors import InvalidRequest, NotFound, Unsupported
from trimtab.v1 import info_pb2
from trimtab_services.generation.completions import Completions
from trimtab_services.generation.http import tgi_answers as answers
from trimtab_services.generation.http.answering import Answering, Events, json_answer
from trimtab_services.generation.http.bodies import parse, read_body
from trimtab_services.generation.http.sampling import AnswerToken, Asked, ChoicePart, sample, stream
from trimtab_services.generation.http.scoring import SequenceScorer
from trimtab_services.generation.http.tgi_requests import GenerateRequest, TokenizeRequest, generate_request
from trimtab_services.generation.serving import Policy

__all__ = ["TGIFront"]


class TGIFront:
    """Handlers of TGI's API.

    Args:
        policy: what is served.
        completions: samples.
        scorer: scores given tokens.
        describe: GetInfo's answer now.
        deadline_s: seconds that a call may take.
    """

    def __init__(
        self,
        policy: Policy,
        completions: Completions,
        scorer: SequenceScorer,
        describe: Callable[[], info_pb2.GetInfoResponse],
        deadline_s: float,
    ) -> None:
        self._policy = policy
        self._completions = completions
        self._scorer = scorer
        self._describe = describe
        self.answering = Answering(
            error_body=answers.error_body,
            status={InvalidRequest: 422, Unsupported: 422, NotFound: 422},
            prefix="data:",
            last_event="",
            deadline_s=deadline_s,
        )

    async def info(self, request: web.Request) -> web.StreamResponse:
        """`GET /info`: GetInfo as JSON, with TGI's fields beside ours."""
        response = self._describe()
        ours = json_format.MessageToDict(response, preserving_proto_field_name=True)
        return web.json_response({**answers.info_fields(response, self._policy.origin), **ours})

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """`POST /generate`."""
        asked = generate_request(await read_body(request))
        return await (self._stream(request, asked) if asked.stream else self._whole(asked, as_list=False))

    async def generate_stream(self, request: web.Request) -> web.StreamResponse:
        """`POST /generate_stream`."""
        return await self._stream(request, generate_request(await read_body(request)))

    async def compatible(self, request: web.Request) -> web.StreamResponse:
        """`POST /`, which clients use that know an address only: as `/generate`, its result in a list."""
        asked = generate_request(await read_body(request))
        return await (self._stream(request, asked) if asked.stream else self._whole(asked, as_list=True))

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        """`POST /tokenize`: the tokens of a text, each with the characters of it that it stands for."""
        asked = parse(TokenizeRequest, await read_body(request))
        rows = await self._completions.read({"inputs": len(asked.inputs)}, asked.rows)
        return json_answer(rows, {self._policy.served.version})

    async def _whole(self, asked: GenerateRequest, *, as_list: bool) -> web.StreamResponse:
        work = await self._read(asked)
        (part,) = await sample(self._completions, self._policy, work)
        result: dict[str, Any] = {"generated_text": self._full_text(asked, part.text)}
        if asked.parameters.details or asked.parameters.decoder_input_details:
            result["details"] = await self._details(asked, work, part)
        return json_answer([result] if as_list else result, set(part.versions))

    async def _read(self, asked: GenerateRequest) -> Asked:
        return await self._completions.read({"inputs": len(asked.inputs)}, asked.asked)

    async def _stream(self, request: web.Request, asked: GenerateRequest) -> web.StreamResponse:
        asked.check_stream()
        events = self._events(asked, await self._read(asked))
        return await self.answering.stream(request, events, self._policy.served.version)

    async def _events(self, asked: GenerateRequest, work: Asked) -> Events:
        """An event for each token; the last one has the whole text besides."""
        text, index = "", 0
        async with aclosing(stream(self._completions, self._policy, work)) as parts:
            async for part in parts:
                text += part.text
                for token in part.tokens:
                    index += 1
                    event = {"index": index, "token": self._row(token), "generated_text": None, "details": None}
                    if part.end is not None and token is part.tokens[-1]:
                        event["generated_text"] = self._full_text(asked, text)
                        event["details"] = answers.details_of(part, len(work.prompts[0]), _seed(asked, work))
                    yield event

    async def _details(self, asked: GenerateRequest, work: Asked, part: ChoicePart) -> dict[str, Any]:
        prefill: list[dict[str, Any]] = []
        if asked.parameters.decoder_input_details:
            prefill = answers.prefill_rows(self._policy.tokenizer, work.prompts[0], await self._prefill(work, part))
        return {
            **answers.details_of(part, len(work.prompts[0]), _seed(asked, work)),
            "prefill": prefill,
            "tokens": [self._row(token) for token in part.tokens],
        }

    async def _prefill(self, work: Asked, part: ChoicePart) -> list[float]:
        """Log-probs of the prompt's tokens from the second on."""
        prompt = work.prompts[0]
        if len(prompt) == 1:
            return []
        scored = await self._scorer.score(
            self._policy.host,
            prompt,
            start=1,
            temperature=work.sampling.temperature,
            top_n=0,
            sampled_by=part.versions,
        )
        return scored.logprobs

    def _full_text(self, asked: GenerateRequest, text: str) -> str:
        return asked.inputs + text if asked.parameters.return_full_text else text

    def _row(self, token: AnswerToken) -> dict[str, Any]:
        return answers.token_row(self._policy.tokenizer, token)


def _seed(asked: GenerateRequest, work: Asked) -> int | None:
    """The seed, where tokens are drawn."""
    return work.seed if asked.parameters.samples else None
