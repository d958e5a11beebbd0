"""What may be asked of the OpenAI front, field by field; the reference is OpenAI's public API.

Beside OpenAI's own fields it takes `top_k` and `ignore_eos`, which clients of other servers send.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from transformers import PreTrainedTokenizerBase

from trimtab.errors import InvalidRequest, NotFound, Reason, Unsupported
from trimtab.types import SamplingParams
from trimtab.types.shared import INT32_END, MAX_TEMPERATURE, MAX_TOP_N, MIN_TOP_P, Text
from trimtab_models.tokenizer import encode_document, encode_prompt
from trimtab_services.generation.http.bodies import Body, StopStrings, neutral, parse
from trimtab_services.generation.http.sampling import Asked

__all__ = ["ChatRequest", "CompletionRequest", "chat_request", "completion_request"]

_PLACEHOLDERS = ("tgi", "dummy")
"""Model names that clients send when they were given an address only."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
}
_NEUTRAL_OF_COMPLETIONS = {**_NEUTRAL, "suffix": ("",)}
_NEUTRAL_OF_CHAT = {
    **_NEUTRAL,
    "tools": ([],),
    "tool_choice": ("none", "auto"),  # neither can do anything without tools
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "web_search_options": (),
}


class Message(Body):
    """One turn of a conversation; control tokens inside the text are text."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[Text, Field(min_length=1)]


class StreamOptions(Body):
    """How a stream is sent."""

    include_usage: bool = False
    include_obfuscation: bool = False  # events are never padded, whatever it says


class _Common(Body):
    """Fields of both kinds of request."""

    model: Text = ""
    n: int = Field(default=1, ge=1, lt=INT32_END)
    temperature: float = Field(default=1.0, ge=0, le=MAX_TEMPERATURE)
    top_p: float = Field(default=1.0, ge=MIN_TOP_P, le=1)
    top_k: int = Field(default=0, ge=0, lt=INT32_END)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    stop: StopStrings = []
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    # What changes nothing in a result:
    user: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    verbosity: Any = None

    def asked(self, prompts: Sequence[tuple[int, ...]], fields: Sequence[str], max_new_tokens: int) -> Asked:
        """What is to be sampled.

        Args:
            prompts: token ids of each.
            fields: name of each prompt's field.
            max_new_tokens: most tokens of a completion.
        """
        sampling = SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_new_tokens=max_new_tokens,
            stop_strings=tuple(self.stop),
            ignore_eos=self.ignore_eos,
        )
        if self.seed is None:
            return Asked(prompts, fields, "max_tokens", sampling, self.n)
        return Asked(prompts, fields, "max_tokens", sampling, self.n, self.seed % 2**64)

    def check_model(self, name: str) -> None:
        """Refuses another model than the one that is served.

        Raises:
            NotFound: it is not served.
        """
        if self.model not in ("", name, *_PLACEHOLDERS):
            raise NotFound(f"model: {self.model!r} is not served; {name!r} is", field="model", value=self.model)


class CompletionRequest(_Common):
    """`POST /v1/completions`."""

    prompt: Any
    max_tokens: int = Field(default=16, ge=0, lt=INT32_END)
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_N)
    echo: bool = False
    best_of: int | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise _unsupported("best_of", self.best_of, f"n, which is {self.n}")
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequest(
                "max_tokens: 0 is allowed with echo only", field="max_tokens", value=0, limit=">= 1 without echo"
            )
        if self.stream and self.echo:
            raise _unsupported("echo", True, "false in a stream")
        if self.stream and self.logprobs:
            raise _unsupported("logprobs", self.logprobs, "0 in a stream: the likeliest tokens are known at its end")
        return self

    def prompts(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
        """Token ids of each prompt; text is continued as it is, without a chat template.

        Raises:
            InvalidRequest: not a prompt, or an empty one.
        """
        return [_prompt_ids(tokenizer, field, prompt) for field, prompt in self.named_prompts()]

    def named_prompts(self) -> list[tuple[str, Any]]:
        """Each prompt with the name of its field: a list is several prompts unless it holds token ids."""
        prompt = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            return [(f"prompt[{i}]", one) for i, one in enumerate(prompt)]
        return [("prompt", prompt)]


class ChatRequest(_Common):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1, lt=INT32_END)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=INT32_END)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_N)
    parallel_tool_calls: Any = None

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise InvalidRequest(
                f"max_completion_tokens: {self.max_completion_tokens} differs from max_tokens {self.max_tokens}",
                field="max_completion_tokens",
                value=self.max_completion_tokens,
                limit=self.max_tokens,
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest(
                "top_logprobs: needs logprobs true", field="top_logprobs", value=self.top_logprobs, limit="unset"
            )
        if self.stream and self.top_logprobs:
            raise _unsupported(
                "top_logprobs", self.top_logprobs, "0 in a stream: the likeliest tokens are known at its end"
            )
        return self

    def prompt(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Token ids of the conversation, rendered by the chat template.

        Raises:
            InvalidRequest: it ends in an assistant's turn, or the tokenizer has no template.
        """
        if self.messages[-1].role == "assistant":
            raise InvalidRequest(
                "messages: a conversation to be continued must end in a user turn", field="messages", value="assistant"
            )
        return tuple(encode_prompt(tokenizer, [message.model_dump() for message in self.messages]))

    def max_new_tokens(self, prompt_tokens: int, max_sequence_tokens: int) -> int:
        """Most tokens of the answer; when not said, what the context has left, at least 1."""
        asked = self.max_completion_tokens or self.max_tokens
        return asked or max(1, max_sequence_tokens - prompt_tokens)


def completion_request(body: dict[str, Any]) -> CompletionRequest:
    """Checks the body of `/v1/completions`.

    Raises:
        InvalidRequest: names the field, its value and what is allowed.
        Unsupported: a field that cannot be honoured.
    """
    return parse(CompletionRequest, neutral(body, _NEUTRAL_OF_COMPLETIONS))


def chat_request(body: dict[str, Any]) -> ChatRequest:
    """Checks the body of `/v1/chat/completions`; errors as `completion_request`."""
    values = neutral(body, _NEUTRAL_OF_CHAT)
    if isinstance(values.get("messages"), list):
        values["messages"] = [_message(i, message) for i, message in enumerate(values["messages"])]
    return parse(ChatRequest, values)


def _message(index: int, message: Any) -> Any:
    """A message with its text parts joined, `developer` being today's name for `system`."""
    if not isinstance(message, dict):
        return message
    content: Any = message.get("content")
    if isinstance(content, list):
        for number, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise _unsupported(f"messages[{index}].content[{number}]", part, 'a part of type "text"')
        content = "".join(part["text"] for part in content)
    role = "system" if message.get("role") == "developer" else message.get("role")
    known = {"role": role, "content": content}
    return {**message, **{key: value for key, value in known.items() if value is not None}}


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, field: str, prompt: Any) -> tuple[int, ...]:
    if isinstance(prompt, str) and prompt:
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"{field}: it is no text: half of a surrogate pair", field=field) from None
        return tuple(encode_document(tokenizer, prompt)[:-1])  # a document whose end is yet to come
    if isinstance(prompt, list) and prompt and all(type(item) is int for item in prompt):
        for i, item in enumerate(prompt):
            if not 0 <= item < INT32_END:
                raise InvalidRequest(
                    f"{field}[{i}]: {item} is no token id",
                    reason=Reason.TOKEN_ID_OUT_OF_RANGE,
                    field=f"{field}[{i}]",
                    value=item,
                    limit=f"0..{INT32_END - 1}",
                )
        return tuple(prompt)
    if prompt in ("", []):
        raise InvalidRequest(f"{field}: must not be empty", reason=Reason.EMPTY_PROMPT, field=field)
    raise InvalidRequest(
        f"{field}: must be a string, a list of strings, token ids, or a list of lists of token ids",
        field=field,
        value=type(prompt).__name__,
    )


def _unsupported(field: str, value: object, allowed: str) -> Unsupported:
    return Unsupported(
        f"{field}: {value!r} is not supported; allowed: {allowed}", field=field, value=value, limit=allowed
    )
