"""Records of every call. Requests are checked here, once, for both sides: the limits of the contract live in this file.

Requests are frozen pydantic models: a wrong value raises `InvalidRequest` with the path of the field, the value and
what is allowed, before anything is sent, and again in the server for callers that do not use this package. Replies are
frozen dataclasses. Log-probs are float32 numpy arrays in nats. What a limit depends on the served model (context
length, vocabulary, items a request) is in `ServiceInfo` and checked by the server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from trimtab.errors import InvalidRequest, Reason, TrimtabError

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

FloatArray = npt.NDArray[np.float32]

INT32_END, INT64_END = 2**31, 2**63
"""One past what the wire's integers hold."""
MAX_TEMPERATURE = 100.0
MIN_TEMPERATURE = 1e-6
"""Least temperature but 0: below it float32 logits overflow, and the wire's float ends in 0: no sampling."""
MIN_TOP_P = 1e-30
"""Above 0 and, as the wire's float, still above 0."""
MAX_STOP_STRINGS = 16
MAX_TOP_N = 20
MAX_ID_CHARACTERS = 256
DEFAULT_MAX_NEW_TOKENS = 128


class Record(BaseModel):
    """A checked record: unknown fields are errors, and a wrong value raises `InvalidRequest`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    def __init__(self, **values: Any) -> None:
        """Checks the values.

        Raises:
            InvalidRequest: names the first wrong field, its value and what is allowed.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise invalid_request(error, type(self).__name__) from None


def invalid_request(error: ValidationError, where: str = "") -> InvalidRequest:
    """The first problem that pydantic found, as an error of the contract.

    Args:
        error: what pydantic raised.
        where: name of the record, for problems that no single field has.
    """
    problem = error.errors()[0]
    path = ""
    for part in problem["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    path = path or where
    message = problem["msg"].removeprefix("Value error, ")
    shown = repr(problem["input"])
    shown = shown if len(shown) <= 200 else f"{shown[:197]}..."
    reason = Reason.FIELD_MISSING if problem["type"] == "missing" else Reason.FIELD_INVALID
    if problem["type"] == "prompt_empty" or (path.endswith("token_ids") and problem["type"] == "too_short"):
        reason = Reason.EMPTY_PROMPT
    context = problem.get("ctx", {})
    limit = next((context[k] for k in ("le", "lt", "ge", "gt", "max_length", "min_length") if k in context), None)
    return InvalidRequest(
        f"{path}: {message}; found {shown}", reason=reason, field=path, value=problem["input"], limit=limit
    )


class Priority(StrEnum):
    """Order among waiting work; waiting work ages upwards."""

    INTERACTIVE = "INTERACTIVE"
    ROLLOUT = "ROLLOUT"
    BULK = "BULK"


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "STOP"
    """An end-of-sequence token, a stop id (both kept in the completion) or a stop string."""
    LENGTH = "LENGTH"
    """`max_new_tokens` was reached."""
    CANCELLED = "CANCELLED"
    """It was given up. Inside a server only; never sent."""


class TruncationSide(StrEnum):
    """Which end of a too long sequence may be cut."""

    NONE = "NONE"
    """Nothing is cut: too long is an error."""
    LEFT = "LEFT"
    RIGHT = "RIGHT"


class ServiceState(StrEnum):
    """Where a server is in its life."""

    LOADING = "LOADING"
    WAITING_FOR_VERSION = "WAITING_FOR_VERSION"
    SERVING = "SERVING"
    DRAINING = "DRAINING"
    FAILED = "FAILED"


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half a surrogate pair at character {error.start}, which is no Unicode text") from None
    return text


def _form(value: object) -> str:
    """Which form of a prompt a value wants to be, so that an error speaks of that form only."""
    if isinstance(value, str):
        return "text"
    first = value[0] if isinstance(value, Sequence) and value else None
    return "messages" if isinstance(first, ChatMessage | Mapping) else "token_ids"


Text = Annotated[str, AfterValidator(_check_text)]

TokenIds = tuple[Annotated[int, Field(ge=0, lt=INT32_END)], ...]


class ChatMessage(Record):
    """One turn of a conversation. Special tokens inside the text are text, never control tokens."""

    role: Literal["system", "user", "assistant"]
    content: Text = Field(min_length=1)


PromptLike = str | TokenIds | tuple[ChatMessage, ...]
"""A prompt: text, token ids used as they are, or a conversation."""

_Prompt = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[TokenIds, Tag("token_ids")]
    | Annotated[tuple[ChatMessage, ...], Tag("messages")],
    Discriminator(_form),
]
_CompletionTokens = Annotated[
    Annotated[Text, Tag("text")] | Annotated[TokenIds, Tag("token_ids")], Discriminator(_form)
]


class SamplingParams(Record):
    """How tokens are drawn, with the names and meanings of Hugging Face's GenerationConfig.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token and reports log-probs at temperature 1.
        top_p: keeps the smallest set of likeliest tokens that reaches this probability; 1 keeps all.
        top_k: keeps this many likeliest tokens; 0 keeps all.
        min_new_tokens: no end-of-sequence token before this many tokens.
        max_new_tokens: most tokens of a completion.
        stop_token_ids: end a completion besides the model's own end-of-sequence set.
        stop_strings: end a completion once they appear in its text.
        ignore_eos: runs on over end-of-sequence tokens.
    """

    temperature: float = Field(default=1.0, ge=0, le=MAX_TEMPERATURE)
    top_p: float = Field(default=1.0, ge=MIN_TOP_P, le=1)
    top_k: int = Field(default=0, ge=0, lt=INT32_END)
    min_new_tokens: int = Field(default=0, ge=0, lt=INT32_END)
    max_new_tokens: int = Field(default=DEFAULT_MAX_NEW_TOKENS, ge=1, lt=INT32_END)
    stop_token_ids: TokenIds = ()
    stop_strings: tuple[Annotated[Text, Field(min_length=1)], ...] = Field(default=(), max_length=MAX_STOP_STRINGS)
    ignore_eos: bool = False

    @field_validator("temperature")
    @classmethod
    def _no_trace_of_temperature(cls, temperature: float) -> float:
        if 0 < temperature < MIN_TEMPERATURE:
            raise ValueError(f"must be 0 or at least {MIN_TEMPERATURE:g}")
        return temperature

    @model_validator(mode="after")
    def _minimum_fits(self) -> SamplingParams:
        if self.min_new_tokens > self.max_new_tokens:
            raise InvalidRequest(
                f"min_new_tokens: {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}",
                field="min_new_tokens",
                value=self.min_new_tokens,
                limit=self.max_new_tokens,
            )
        return self

    @property
    def is_truncated(self) -> bool:
        """Whether tokens are drawn from another distribution than the one whose log-probs are reported."""
        return self.top_p < 1 or self.top_k > 0 or self.min_new_tokens > 0 or self.temperature == 0


class VersionRequirement(Record):
    """Which model version may do the work; with neither field set any may.

    Attributes:
        exactly: this version; a sequence under it also finishes on it.
        at_least: this version or a later one.
    """

    exactly: int | None = Field(default=None, ge=0, lt=INT64_END)
    at_least: int | None = Field(default=None, ge=0, lt=INT64_END)

    @model_validator(mode="after")
    def _one(self) -> VersionRequirement:
        if self.exactly is not None and self.at_least is not None:
            raise InvalidRequest(
                "at_least: set one of exactly and at_least, not both", field="at_least", value=self.at_least
            )
        return self

    def allows(self, version: int) -> bool:
        """Whether a version may do the work."""
        if self.exactly is not None:
            return version == self.exactly
        return self.at_least is None or version >= self.at_least

    def __str__(self) -> str:
        if self.exactly is not None:
            return f"exactly {self.exactly}"
        return "any" if self.at_least is None else f"at least {self.at_least}"


def _check_prompt(prompt: PromptLike) -> PromptLike:
    if len(prompt) == 0:
        raise InvalidRequest("prompt: must not be empty", reason=Reason.EMPTY_PROMPT, field="prompt", value=prompt)
    if isinstance(prompt, tuple) and isinstance(prompt[-1], ChatMessage) and prompt[-1].role == "assistant":
        raise InvalidRequest(
            "prompt: a conversation to be continued must end in a user turn", field="prompt", value=prompt[-1].role
        )
    return prompt


class GenerationPrompt(Record):
    """One prompt of a generation request.

    Attributes:
        prompt_id: unique in the request; comes back with each completion.
        prompt: text, token ids or a conversation.
        seed: key of the random numbers, 64 bits.
        num_samples: completions wanted.
        first_sample_index: sample index of the first of them.
        max_new_tokens: overrides the request's for this prompt; 0 does not.
    """

    prompt_id: Text = Field(min_length=1, max_length=MAX_ID_CHARACTERS)
    prompt: _Prompt
    seed: int = Field(default=0, ge=0, lt=2**64)
    num_samples: int = Field(default=1, ge=1, lt=INT32_END)
    first_sample_index: int = Field(default=0, ge=0, lt=INT32_END)
    max_new_tokens: int = Field(default=0, ge=0, lt=INT32_END)

    @model_validator(mode="after")
    def _has_prompt(self) -> GenerationPrompt:
        _check_prompt(self.prompt)
        return self


class GenerateRequest(Record):
    """Asks for completions.

    Attributes:
        prompts: at least one, ids unique.
        sampling: how tokens are drawn.
        version: which policy version may sample them.
        max_wait_ms: how long a replica that is behind may wait for the version.
        priority: order among waiting work.
        return_text: adds the decoded text.
        model: by name; empty is the only one.
        per_item_errors: a bad prompt is answered with its error instead of refusing the request.
        request_id: in logs and traces; empty: the server makes one.
    """

    prompts: tuple[GenerationPrompt, ...] = Field(min_length=1)
    sampling: SamplingParams = SamplingParams()
    version: VersionRequirement = VersionRequirement()
    max_wait_ms: int = Field(default=0, ge=0, lt=INT64_END)
    priority: Priority = Priority.ROLLOUT
    return_text: bool = False
    model: Text = ""
    per_item_errors: bool = False
    request_id: Text = Field(default="", max_length=MAX_ID_CHARACTERS)

    @model_validator(mode="after")
    def _unique(self) -> GenerateRequest:
        _refuse_duplicates((prompt.prompt_id for prompt in self.prompts), "prompts", "prompt_id")
        return self


def _refuse_duplicates(ids: Any, items: str, key: str) -> None:
    seen: set[str] = set()
    for index, value in enumerate(ids):
        if value and value in seen:
            raise InvalidRequest(
                f"{items}[{index}].{key}: {value!r} stands for two items of this request",
                reason=Reason.DUPLICATE_ID,
                field=f"{items}[{index}].{key}",
                value=value,
            )
        seen.add(value)


class ScoreItem(Record):
    """One thing to score: a prompt with its completion, a conversation that ends in an assistant turn, or token ids.

    Attributes:
        item_id: comes back with the result; must be set in a stream.
        prompt, completion: a pair; the completion is text (the EOS is added, as in training) or token ids (as is).
        messages: a whole conversation.
        token_ids: a whole sequence, read at its last token.
    """

    item_id: Text = Field(default="", max_length=MAX_ID_CHARACTERS)
    prompt: _Prompt | None = None
    completion: _CompletionTokens | None = None
    messages: tuple[ChatMessage, ...] | None = None
    token_ids: TokenIds | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_form(self) -> ScoreItem:
        forms = [self.prompt is not None, self.messages is not None, self.token_ids is not None]
        if sum(forms) != 1 or (self.prompt is None) != (self.completion is None):
            raise InvalidRequest(
                "input: set exactly one of prompt with completion, messages, token_ids",
                reason=Reason.FIELD_MISSING,
                field="input",
            )
        if self.prompt is not None:
            _check_prompt(self.prompt)
        if self.completion is not None and len(self.completion) == 0:
            raise InvalidRequest("completion: must not be empty", field="completion", value=self.completion)
        if self.messages is not None and (not self.messages or self.messages[-1].role != "assistant"):
            raise InvalidRequest("messages: must end in an assistant turn", field="messages")
        return self


class ScoreRequest(Record):
    """Asks for rewards.

    Attributes:
        items: at least one; ids, where given, unique.
        model: reward model by name; empty is the service's default.
        truncation: which end may be cut when too long.
        per_item_errors: a bad item is answered with its error instead of refusing the request.
        priority, version, request_id: as in `GenerateRequest`.
    """

    items: tuple[ScoreItem, ...] = Field(min_length=1)
    model: Text = ""
    truncation: TruncationSide = TruncationSide.NONE
    per_item_errors: bool = False
    priority: Priority = Priority.ROLLOUT
    version: VersionRequirement = VersionRequirement()
    request_id: Text = Field(default="", max_length=MAX_ID_CHARACTERS)

    @model_validator(mode="after")
    def _unique(self) -> ScoreRequest:
        _refuse_duplicates((item.item_id for item in self.items), "items", "item_id")
        return self


class RankRequest(Record):
    """Asks for an order of K >= 2 answers to one prompt; fields as in `ScoreRequest`."""

    prompt: _Prompt
    answers: tuple[Annotated[Text, Field(min_length=1)], ...] = Field(min_length=2)
    model: Text = ""
    truncation: TruncationSide = TruncationSide.NONE
    priority: Priority = Priority.INTERACTIVE
    version: VersionRequirement = VersionRequirement()
    request_id: Text = Field(default="", max_length=MAX_ID_CHARACTERS)

    @model_validator(mode="after")
    def _has_prompt(self) -> RankRequest:
        _check_prompt(self.prompt)
        return self


class LogProbsItem(Record):
    """One sequence whose log-probs are wanted.

    Attributes:
        item_id: comes back with the result; must be set in a stream.
        token_ids: the whole sequence, at least 2 ids.
        start_index: first token whose log-prob is wanted; token 0 has none.
    """

    item_id: Text = Field(default="", max_length=MAX_ID_CHARACTERS)
    token_ids: TokenIds = Field(min_length=2)
    start_index: int = Field(default=1, ge=1, lt=INT32_END)

    @model_validator(mode="after")
    def _starts_inside(self) -> LogProbsItem:
        if self.start_index >= len(self.token_ids):
            raise InvalidRequest(
                f"start_index: {self.start_index} is not below the sequence's {len(self.token_ids)} tokens",
                field="start_index",
                value=self.start_index,
                limit=len(self.token_ids) - 1,
            )
        return self


class LogProbsOptions(Record):
    """What is computed for each sequence.

    Attributes:
        temperature: divides the logits.
        entropy: adds the entropy of each token's distribution, in nats.
        top_n: adds this many likeliest tokens at each position.
    """

    temperature: float = Field(default=1.0, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)
    entropy: bool = False
    top_n: int = Field(default=0, ge=0, le=MAX_TOP_N)


class LogProbsRequest(Record):
    """Asks for log-probs; fields as in `ScoreRequest`."""

    items: tuple[LogProbsItem, ...] = Field(min_length=1)
    options: LogProbsOptions = LogProbsOptions()
    model: Text = ""
    per_item_errors: bool = False
    priority: Priority = Priority.ROLLOUT
    version: VersionRequirement = VersionRequirement()
    request_id: Text = Field(default="", max_length=MAX_ID_CHARACTERS)

    @model_validator(mode="after")
    def _unique(self) -> LogProbsRequest:
        _refuse_duplicates((item.item_id for item in self.items), "items", "item_id")
        return self


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Which model answered; `version` is 0 for one loaded from a folder."""

    name: str = ""
    version: int = 0
    weights_digest: str = ""
    tokenizer_digest: str = ""
    chat_template_digest: str = ""


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Which policy version sampled tokens [start_token, end_token) of a completion.

    `kv_kept` is true when the KV cache of the tokens before was kept from the older weights instead of recomputed.
    """

    start_token: int
    end_token: int
    version: int
    kv_kept: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished completion; `logprobs` is float32 [tokens], before top-p and top-k."""

    sample_index: int
    token_ids: tuple[int, ...]
    logprobs: FloatArray
    finish_reason: FinishReason
    version_spans: tuple[VersionSpan, ...]
    text: str = ""
    prompt_token_count: int = 0
    queue_ms: float = 0.0
    compute_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """One completion, or the error of one prompt (only with `per_item_errors`)."""

    prompt_id: str
    served: ServedModel
    completion: Completion | None = None
    error: TrimtabError | None = None


@dataclass(frozen=True, slots=True)
class ItemScore:
    """The raw reward of one item; `error` is set only with `per_item_errors` or in a stream."""

    reward: float
    token_count: int
    truncated_token_count: int = 0
    item_id: str = ""
    error: TrimtabError | None = None


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """Scores in the order of the request; times in milliseconds."""

    scores: tuple[ItemScore, ...]
    served: ServedModel
    queue_ms: float = 0.0
    compute_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class RankResult:
    """Scores, indices best first, and float32 [K, K] probabilities that answer i beats answer j."""

    scores: tuple[ItemScore, ...]
    order: tuple[int, ...]
    pairwise_probabilities: FloatArray
    served: ServedModel
    queue_ms: float = 0.0
    compute_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class ItemLogProbs:
    """Float32 log-probs of the tokens from `start_index` on; `entropies` and `top_tokens` (ids, log-probs) if asked."""

    logprobs: FloatArray
    entropies: FloatArray | None = None
    top_tokens: tuple[tuple[tuple[int, ...], FloatArray], ...] = ()
    item_id: str = ""
    error: TrimtabError | None = None


@dataclass(frozen=True, slots=True)
class LogProbsResult:
    """Results in the order of the request; times in milliseconds."""

    results: tuple[ItemLogProbs, ...]
    served: ServedModel
    queue_ms: float = 0.0
    compute_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model of a server; see `trimtab.v1.ModelInfo` for each field."""

    served: ServedModel
    channel: str = ""
    architecture: str = ""
    parameter_count: int = 0
    dtype: str = ""
    vocab_size: int = 0
    max_sequence_tokens: int = 0
    eos_token_ids: tuple[int, ...] = ()
    channel_version: int = 0
    last_swap_error: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a server; 0 means that the limit does not apply."""

    max_items_per_request: int = 0
    max_batch_tokens: int = 0
    max_queue_tokens: int = 0
    max_request_bytes: int = 0
    default_deadline_ms: int = 0
    max_concurrent_sequences: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """A moment's look at the work in a server."""

    waiting_items: int = 0
    waiting_tokens: int = 0
    running_items: int = 0
    tokens_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """What a server is and what it takes; see `trimtab.v1.GetInfoResponse` for each field."""

    service: str
    replica: str
    state: ServiceState
    state_reason: str = ""
    models: tuple[ModelInfo, ...] = ()
    limits: Limits = field(default_factory=Limits)
    device: str = ""
    build_version: str = ""
    deterministic: bool = False
    threads: int = 0
    http_url: str = ""
    engine: str = ""
    load: Load = field(default_factory=Load)


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One run of the trainer service; `state` is STARTING, RUNNING, STOPPING, STOPPED, SUCCEEDED or FAILED."""

    name: str
    state: str
    error: str
    spec_yaml: str
    create_time: datetime
    update_time: datetime
    stage: str
    step: int
    total_steps: int
    directory: str


Metrics = Mapping[str, float]
