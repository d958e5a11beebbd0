"""One request to a TGI server, and what its answers and errors mean."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import httpx2
from huggingface_hub import AsyncInferenceClient, TextGenerationOutput
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, OverloadedError, TextGenerationError, ValidationError
from pydantic import ValidationError as WrongRecord

from trimtab.channel import Token
from trimtab.errors import ConfigError, InternalError, InvalidRequest, Overloaded, TrimtabError, Unavailable
from trimtab.types import SamplingParams
from trimtab_services.generation.config import TGIConfig
from trimtab_services.generation.remote.answers import (
    RemoteCompletion,
    RemoteInfo,
    RemoteToken,
    completion_of,
    token_of,
)

__all__ = ["TGIClient"]

_LOOK_S = 10.0
"""Most seconds for what samples nothing; TGI's `/health` may sample one token."""
_RETRY_AFTER_S = 1.0
"""When to come back where a server that has too much to do does not say it."""
_REFUSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)
_FAILED = (HTTPStatus.FAILED_DEPENDENCY, HTTPStatus.INTERNAL_SERVER_ERROR)
_NO_ENTRY = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class TGIClient:
    """Asks a TGI server; never tries again: who asked knows how long it can wait.

    Args:
        config: where the server is.

    Raises:
        ConfigError: the token file is wrong, or huggingface_hub is told to send nothing.
    """

    def __init__(self, config: TGIConfig) -> None:
        if is_offline_mode():
            raise ConfigError(
                f"HF_HUB_OFFLINE: is set, so huggingface_hub sends nothing, not even to {config.url}; unset it",
                field="HF_HUB_OFFLINE",
            )
        self.url = config.url.rstrip("/")
        self._timeout_s = config.timeout_s
        self._token = Token(file=config.token_file) if config.token_file is not None else None
        self._web = httpx2.AsyncClient(timeout=_LOOK_S)
        self._inference = self._new_inference()

    async def close(self) -> None:
        """Closes its connections."""
        await self._inference.close()
        await self._web.aclose()

    async def info(self) -> RemoteInfo:
        """Asks whether the server is healthy, then what it is.

        Raises:
            Unavailable: it is not, cannot be reached, or is no TGI server.
        """
        await self._ask("GET", "/health")
        answer = await self._ask("GET", "/info")
        try:
            return RemoteInfo.model_validate(answer.json())
        except WrongRecord as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise Unavailable(f"{self.url}/info tells no {field} as a TGI server does: {first['msg']}") from None
        except ValueError:
            raise Unavailable(f"{self.url}/info is no JSON, which a TGI server would answer") from None

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """How the server reads a text.

        Raises:
            Unavailable: it does not tell.
        """
        answer = await self._ask("POST", "/tokenize", {"inputs": text})
        try:
            return tuple(int(row["id"]) for row in answer.json())
        except (ValueError, TypeError, KeyError):
            raise Unavailable(f"{self.url}/tokenize answered no list of tokens") from None

    async def sample(
        self,
        text: str,
        sampling: SamplingParams,
        seed: int,
        on_token: Callable[[RemoteToken], None] | None = None,
    ) -> RemoteCompletion:
        """Samples a completion. Cancelled, the connection is closed, which ends the work there.

        Args:
            text: the prompt.
            sampling: how; what TGI has no parameter for is not sent.
            seed: unsigned 64 bit.
            on_token: told each token once it has come; None: nobody waits for single tokens.

        Raises:
            InvalidRequest: the server refuses the request.
            Overloaded: it has too much to do; says when to come back.
            Unavailable: it cannot be reached, or has not answered in time.
            InternalError: it failed, or what it told is no completion.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                with self._our_errors():
                    if on_token is None:
                        return await self._whole(text, _parameters(sampling, seed))
                    return await self._streamed(text, _parameters(sampling, seed), on_token)
        except TimeoutError:
            raise Unavailable(
                f"{self.url} had not answered after {self._timeout_s:g} s", field="tgi.timeout_s", limit=self._timeout_s
            ) from None

    async def _whole(self, text: str, parameters: dict[str, Any]) -> RemoteCompletion:
        self._inference.headers = self._inference_headers()
        found = await self._inference.text_generation(text, details=True, **parameters)
        if not isinstance(found, TextGenerationOutput) or found.details is None:
            raise InternalError(f"{self.url} answered without details, which a TGI server would tell")
        return completion_of(found.details)

    async def _streamed(
        self, text: str, parameters: dict[str, Any], on_token: Callable[[RemoteToken], None]
    ) -> RemoteCompletion:
        """As `_whole`, through a client of its own: a client holds on to a stream until it is closed itself."""
        tokens: list[RemoteToken] = []
        async with self._new_inference() as inference:
            events = await inference.text_generation(text, details=True, stream=True, **parameters)
            async for event in events:
                token = token_of(event.token, event.details, len(tokens))
                tokens.append(token)
                on_token(token)
                if token.finish_reason is not None:
                    return RemoteCompletion.of(tokens, token.finish_reason)
        raise Unavailable(f"{self.url} ended a stream after {len(tokens)} tokens, in the middle of a completion")

    async def _ask(self, method: str, path: str, body: Any = None) -> httpx2.Response:
        """A request that samples nothing; its answer is good."""
        try:
            async with asyncio.timeout(_LOOK_S):
                answer = await self._web.request(method, self.url + path, json=body, headers=self._headers())
        except (TimeoutError, httpx2.TimeoutException):
            raise Unavailable(f"{self.url}{path} did not answer within {_LOOK_S:g} s") from None
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from None
        if answer.status_code != HTTPStatus.OK:
            raise self._refusal(answer.status_code, f"{path} answered {answer.status_code}")
        return answer

    def _new_inference(self) -> AsyncInferenceClient:
        return AsyncInferenceClient(self.url, headers=self._inference_headers())

    def _inference_headers(self) -> dict[str, Any]:
        """None keeps the client from sending the user's own token for the Hugging Face Hub where we have none."""
        return {"authorization": None, **self._headers()}

    def _headers(self) -> dict[str, str]:
        """The token, where there is one.

        Raises:
            Unavailable: its file cannot be read any more.
        """
        try:
            return {"authorization": f"Bearer {self._token.value()}"} if self._token is not None else {}
        except ConfigError as error:
            raise Unavailable(f"{self.url} cannot be asked: {error.message}") from None

    @contextmanager
    def _our_errors(self) -> Iterator[None]:
        """Turns what the inference client raises into errors of ours."""
        try:
            yield
        except (TextGenerationError, HfHubHTTPError) as error:
            raise self._told(error) from None
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InternalError(f"{self.url} answered no result of TGI's: {type(error).__name__}: {error}") from None

    def _told(self, error: TextGenerationError | HfHubHTTPError) -> TrimtabError:
        """An error that the server told: by its HTTP status, or inside a stream by its type."""
        cause = error if isinstance(error, HfHubHTTPError) else error.__cause__
        if isinstance(cause, HfHubHTTPError):
            message = _message(cause.response) if cause is error else str(error)
            return self._refusal(cause.response.status_code, message, cause.response.headers.get("retry-after"))
        status = {ValidationError: HTTPStatus.UNPROCESSABLE_ENTITY, OverloadedError: HTTPStatus.TOO_MANY_REQUESTS}
        return self._refusal(status.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR), str(error))

    def _refusal(self, status: int, message: str, retry_after: str | None = None) -> TrimtabError:
        if status in _REFUSED:
            return InvalidRequest(f"{self.url} refuses the request: {message}", value=status)
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            seconds = float(retry_after) if retry_after and retry_after.isdecimal() else _RETRY_AFTER_S
            return Overloaded(f"{self.url} has too much to do: {message}", retry_after_s=seconds)
        if status in _FAILED:
            return InternalError(f"{self.url} has failed: {message}", value=status)
        if status in _NO_ENTRY:
            return Unavailable(f"{self.url} does not take the token of tgi.token_file: {message}", value=status)
        return Unavailable(f"{self.url} does not serve: {message}", value=status)

    def _unreachable(self, error: Exception) -> Unavailable:
        return Unavailable(f"{self.url} cannot be reached: {error or type(error).__name__}", value=self.url)


def _message(response: httpx2.Response) -> str:
    """What a server says of an error, where it says it as TGI does; else the status."""
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError, httpx2.ResponseNotRead):
        return f"{response.status_code} {response.reason_phrase}"


def _parameters(sampling: SamplingParams, seed: int) -> dict[str, Any]:
    """TGI's words for how to sample; what is off is left out, since TGI takes no neutral values."""
    stops: dict[str, Any] = {"max_new_tokens": sampling.max_new_tokens, "stop": list(sampling.stop_strings) or None}
    if sampling.temperature == 0:
        return {**stops, "do_sample": False}
    return {
        **stops,
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or None,
        "top_p": sampling.top_p if sampling.top_p < 1 else None,
        "seed": seed,
    }
