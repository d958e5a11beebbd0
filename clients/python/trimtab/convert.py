"""Records to messages and back: pure functions, the only place that knows both.

`x_to_message` makes what is sent, `x_from_message` reads what came. Reading a request checks it (the records do) and
raises `InvalidRequest` with the path of the field, so that a server refuses with the same words as the client would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from trimtab.errors import REASONS, InvalidRequest, Reason, TrimtabError
from trimtab.types import (
    DEFAULT_MAX_NEW_TOKENS,
    ChatMessage,
    Completion,
    FinishReason,
    FloatArray,
    GenerateRequest,
    GenerateResult,
    GenerationPrompt,
    ItemLogProbs,
    ItemScore,
    Limits,
    Load,
    LogProbsItem,
    LogProbsOptions,
    LogProbsRequest,
    LogProbsResult,
    ModelInfo,
    Priority,
    PromptLike,
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
from trimtab.v1 import errors_pb2, generation_pb2, info_pb2, reference_pb2, reward_pb2, types_pb2

T = TypeVar("T")
R = TypeVar("R")

_SEED_BITS = 2**64


@contextmanager
def _under(path: str) -> Iterator[None]:
    """Puts a path in front of the field that an InvalidRequest names."""
    try:
        yield
    except InvalidRequest as error:
        field = f"{path}.{error.field}" if error.field else path
        message = error.message.removeprefix(f"{error.field}: ")
        raise type(error)(
            f"{field}: {message}",
            reason=error.reason,
            field=field,
            value=error.value or None,
            limit=error.limit or None,
            metadata=error.metadata,
        ) from None


def _each(path: str, items: Iterable[T], convert: Callable[[T], R]) -> tuple[R, ...]:
    made = []
    for index, item in enumerate(items):
        with _under(f"{path}[{index}]"):
            made.append(convert(item))
    return tuple(made)


# Prompts, versions, sampling


def prompt_to_message(prompt: PromptLike) -> types_pb2.Prompt:
    """A prompt in the form it has."""
    if isinstance(prompt, str):
        return types_pb2.Prompt(text=prompt)
    if prompt and isinstance(prompt[0], ChatMessage):
        return types_pb2.Prompt(messages=_messages_to_message(prompt))  # type: ignore[arg-type]
    return types_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=prompt))  # type: ignore[arg-type]


def prompt_from_message(message: types_pb2.Prompt) -> PromptLike:
    """The form that is set.

    Raises:
        InvalidRequest: no form is set, or a message of a conversation is wrong.
    """
    form = message.WhichOneof("form")
    if form is None:
        raise InvalidRequest(
            "prompt: one of token_ids, text, messages must be set", reason=Reason.FIELD_MISSING, field="prompt"
        )
    if form == "text":
        return message.text
    if form == "messages":
        return messages_from_message(message.messages)
    return tuple(message.token_ids.ids)


def messages_from_message(message: types_pb2.ChatMessages) -> tuple[ChatMessage, ...]:
    """A conversation."""
    return _each(
        "messages",
        message.messages,
        lambda m: ChatMessage(role=m.role, content=m.content),  # type: ignore[arg-type]  # checked by the record
    )


def _messages_to_message(messages: Iterable[ChatMessage]) -> types_pb2.ChatMessages:
    return types_pb2.ChatMessages(messages=[types_pb2.ChatMessage(role=m.role, content=m.content) for m in messages])


def version_to_message(version: VersionRequirement) -> types_pb2.VersionRequirement:
    """A version requirement."""
    return types_pb2.VersionRequirement(exactly=version.exactly, at_least=version.at_least)


def version_from_message(message: types_pb2.VersionRequirement) -> VersionRequirement:
    """A version requirement; none set means any."""
    which = message.WhichOneof("requirement")
    with _under("version"):
        return VersionRequirement(**({which: getattr(message, which)} if which else {}))


def sampling_to_message(sampling: SamplingParams) -> types_pb2.SamplingParams:
    """Sampling parameters, every one stated."""
    return types_pb2.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_new_tokens=sampling.min_new_tokens,
        max_new_tokens=sampling.max_new_tokens,
        stop_token_ids=sampling.stop_token_ids,
        stop_strings=sampling.stop_strings,
        ignore_eos=sampling.ignore_eos,
    )


def sampling_from_message(message: types_pb2.SamplingParams) -> SamplingParams:
    """Sampling parameters; what is not set has its default."""
    with _under("sampling"):
        return SamplingParams(
            temperature=message.temperature if message.HasField("temperature") else 1.0,
            top_p=message.top_p if message.HasField("top_p") else 1.0,
            top_k=message.top_k,
            min_new_tokens=message.min_new_tokens,
            max_new_tokens=message.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
            stop_token_ids=tuple(message.stop_token_ids),
            stop_strings=tuple(message.stop_strings),
            ignore_eos=message.ignore_eos,
        )


def priority_to_message(priority: Priority) -> types_pb2.Priority:
    """A priority."""
    return types_pb2.Priority.Value(f"PRIORITY_{priority.value}")  # type: ignore[arg-type]


def priority_from_message(value: int) -> Priority:
    """A priority; unspecified is ROLLOUT.

    Raises:
        InvalidRequest: no known value.
    """
    return Priority.ROLLOUT if value == 0 else _enum(Priority, types_pb2.Priority, "PRIORITY_", "priority", value)


def truncation_to_message(side: TruncationSide) -> reward_pb2.TruncationSide:
    """A truncation side."""
    name = "UNSPECIFIED" if side is TruncationSide.NONE else side.value
    return reward_pb2.TruncationSide.Value(f"TRUNCATION_SIDE_{name}")  # type: ignore[arg-type]


def truncation_from_message(value: int) -> TruncationSide:
    """A truncation side; unspecified cuts nothing.

    Raises:
        InvalidRequest: no known value.
    """
    if value == 0:
        return TruncationSide.NONE
    return _enum(TruncationSide, reward_pb2.TruncationSide, "TRUNCATION_SIDE_", "truncation", value)


def _enum(record, message, prefix: str, field: str, value: int):  # type: ignore[no-untyped-def]  # any pair of enums
    try:
        return record(message.Name(value).removeprefix(prefix))
    except ValueError:
        allowed = ", ".join(name for name in message.keys() if not name.endswith("_UNSPECIFIED"))  # noqa: SIM118
        raise InvalidRequest(
            f"{field}: {value} is no known value; allowed: {allowed}", field=field, value=value, limit=allowed
        ) from None


def served_to_message(served: ServedModel) -> types_pb2.ServedModel:
    """Which model answered."""
    return types_pb2.ServedModel(
        name=served.name,
        version=served.version,
        weights_digest=served.weights_digest,
        tokenizer_digest=served.tokenizer_digest,
        chat_template_digest=served.chat_template_digest,
    )


def served_from_message(message: types_pb2.ServedModel) -> ServedModel:
    """Which model answered."""
    return ServedModel(
        name=message.name,
        version=message.version,
        weights_digest=message.weights_digest,
        tokenizer_digest=message.tokenizer_digest,
        chat_template_digest=message.chat_template_digest,
    )


def item_error_to_message(error: TrimtabError) -> errors_pb2.ItemError:
    """The error of one item."""
    return errors_pb2.ItemError(
        reason=errors_pb2.Reason.Value(f"REASON_{error.reason.value}"),  # type: ignore[arg-type]
        message=error.message,
        field=error.field,
        value=error.value,
        limit=error.limit,
    )


def item_error_from_message(message: errors_pb2.ItemError) -> TrimtabError:
    """The error of one item, as the exception that the same reason raises."""
    try:
        reason = Reason(errors_pb2.Reason.Name(message.reason).removeprefix("REASON_"))
    except ValueError:
        reason = Reason.INTERNAL  # a newer server's reason
    return REASONS[reason][1](
        message.message, reason=reason, field=message.field, value=message.value or None, limit=message.limit or None
    )


# Generation


def generate_request_to_message(request: GenerateRequest) -> generation_pb2.GenerateRequest:
    """A generation request."""
    return generation_pb2.GenerateRequest(
        request_id=request.request_id,
        prompts=[
            generation_pb2.GenerationPrompt(
                prompt_id=prompt.prompt_id,
                prompt=prompt_to_message(prompt.prompt),
                seed=prompt.seed - _SEED_BITS if prompt.seed >= _SEED_BITS // 2 else prompt.seed,
                num_samples=prompt.num_samples,
                first_sample_index=prompt.first_sample_index,
                max_new_tokens=prompt.max_new_tokens,
            )
            for prompt in request.prompts
        ],
        sampling=sampling_to_message(request.sampling),
        version=version_to_message(request.version),
        max_wait_ms=request.max_wait_ms,
        priority=priority_to_message(request.priority),
        return_text=request.return_text,
        model=request.model,
        per_item_errors=request.per_item_errors,
    )


def generate_request_from_message(message: generation_pb2.GenerateRequest) -> GenerateRequest:
    """A generation request, checked.

    Raises:
        InvalidRequest: names the first wrong field.
    """
    return GenerateRequest(
        prompts=_each("prompts", message.prompts, _generation_prompt),
        sampling=sampling_from_message(message.sampling),
        version=version_from_message(message.version),
        max_wait_ms=message.max_wait_ms,
        priority=priority_from_message(message.priority),
        return_text=message.return_text,
        model=message.model,
        per_item_errors=message.per_item_errors,
        request_id=message.request_id,
    )


def _generation_prompt(message: generation_pb2.GenerationPrompt) -> GenerationPrompt:
    return GenerationPrompt(
        prompt_id=message.prompt_id,
        prompt=prompt_from_message(message.prompt),
        seed=message.seed % _SEED_BITS,
        num_samples=message.num_samples or 1,
        first_sample_index=message.first_sample_index,
        max_new_tokens=message.max_new_tokens,
    )


def generate_result_to_message(result: GenerateResult) -> generation_pb2.GenerateResponse:
    """One finished completion, or the error of one prompt."""
    response = generation_pb2.GenerateResponse(prompt_id=result.prompt_id, served=served_to_message(result.served))
    if result.error is not None:
        response.error.CopyFrom(item_error_to_message(result.error))
    elif result.completion is not None:
        done = result.completion
        response.completion.CopyFrom(
            generation_pb2.Completion(
                sample_index=done.sample_index,
                token_ids=done.token_ids,
                logprobs=done.logprobs,
                finish_reason=generation_pb2.FinishReason.Value(f"FINISH_REASON_{done.finish_reason.value}"),  # type: ignore[arg-type]
                version_spans=[
                    generation_pb2.VersionSpan(
                        start_token=span.start_token,
                        end_token=span.end_token,
                        version=span.version,
                        kv_kept=span.kv_kept,
                    )
                    for span in done.version_spans
                ],
                text=done.text,
                prompt_token_count=done.prompt_token_count,
                queue_ms=done.queue_ms,
                compute_ms=done.compute_ms,
            )
        )
    return response


def generate_result_from_message(message: generation_pb2.GenerateResponse) -> GenerateResult:
    """One finished completion, or the error of one prompt."""
    served = served_from_message(message.served)
    if message.WhichOneof("result") == "error":
        return GenerateResult(message.prompt_id, served, error=item_error_from_message(message.error))
    done = message.completion
    completion = Completion(
        sample_index=done.sample_index,
        token_ids=tuple(done.token_ids),
        logprobs=_floats(done.logprobs),
        finish_reason=FinishReason(generation_pb2.FinishReason.Name(done.finish_reason).removeprefix("FINISH_REASON_")),
        version_spans=tuple(
            VersionSpan(span.start_token, span.end_token, span.version, span.kv_kept) for span in done.version_spans
        ),
        text=done.text,
        prompt_token_count=done.prompt_token_count,
        queue_ms=done.queue_ms,
        compute_ms=done.compute_ms,
    )
    return GenerateResult(message.prompt_id, served, completion=completion)


# Reward


def score_item_to_message(item: ScoreItem) -> reward_pb2.ScoreItem:
    """One thing to score."""
    message = reward_pb2.ScoreItem(item_id=item.item_id)
    if item.token_ids is not None:
        message.token_ids.ids.extend(item.token_ids)
    elif item.messages is not None:
        message.messages.CopyFrom(_messages_to_message(item.messages))
    elif item.prompt is not None and item.completion is not None:
        message.pair.prompt.CopyFrom(prompt_to_message(item.prompt))
        if isinstance(item.completion, str):
            message.pair.text = item.completion
        else:
            message.pair.token_ids.ids.extend(item.completion)
    return message


def score_item_from_message(message: reward_pb2.ScoreItem) -> ScoreItem:
    """One thing to score, checked.

    Raises:
        InvalidRequest: names the wrong field.
    """
    match message.WhichOneof("input"):
        case "pair":
            pair = message.pair
            form = pair.WhichOneof("completion")
            if form is None:
                raise InvalidRequest(
                    "pair.completion: one of text, token_ids must be set",
                    reason=Reason.FIELD_MISSING,
                    field="pair.completion",
                )
            completion = pair.text if form == "text" else tuple(pair.token_ids.ids)
            return ScoreItem(item_id=message.item_id, prompt=prompt_from_message(pair.prompt), completion=completion)
        case "messages":
            return ScoreItem(item_id=message.item_id, messages=messages_from_message(message.messages))
        case "token_ids":
            return ScoreItem(item_id=message.item_id, token_ids=tuple(message.token_ids.ids))
        case _:
            return ScoreItem(item_id=message.item_id)  # refuses: no form is set


def score_request_to_message(request: ScoreRequest) -> reward_pb2.ScoreRequest:
    """A score request."""
    return reward_pb2.ScoreRequest(
        request_id=request.request_id,
        model=request.model,
        items=[score_item_to_message(item) for item in request.items],
        truncation=truncation_to_message(request.truncation),
        per_item_errors=request.per_item_errors,
        priority=priority_to_message(request.priority),
        version=version_to_message(request.version),
    )


def score_request_from_message(message: reward_pb2.ScoreRequest) -> ScoreRequest:
    """A score request, checked.

    Raises:
        InvalidRequest: names the first wrong field.
    """
    return ScoreRequest(
        request_id=message.request_id,
        model=message.model,
        items=_each("items", message.items, score_item_from_message),
        truncation=truncation_from_message(message.truncation),
        per_item_errors=message.per_item_errors,
        priority=priority_from_message(message.priority),
        version=version_from_message(message.version),
    )


def item_score_to_message(score: ItemScore) -> reward_pb2.ItemScore:
    """The score of one item."""
    return reward_pb2.ItemScore(
        item_id=score.item_id,
        reward=score.reward,
        token_count=score.token_count,
        truncated_token_count=score.truncated_token_count,
        error=item_error_to_message(score.error) if score.error is not None else None,
    )


def item_score_from_message(message: reward_pb2.ItemScore) -> ItemScore:
    """The score of one item."""
    return ItemScore(
        reward=message.reward,
        token_count=message.token_count,
        truncated_token_count=message.truncated_token_count,
        item_id=message.item_id,
        error=item_error_from_message(message.error) if message.HasField("error") else None,
    )


def score_result_to_message(result: ScoreResult) -> reward_pb2.ScoreResponse:
    """Scores in the order of the request."""
    return reward_pb2.ScoreResponse(
        scores=[item_score_to_message(score) for score in result.scores],
        served=served_to_message(result.served),
        timing=types_pb2.Timing(queue_ms=result.queue_ms, compute_ms=result.compute_ms),
    )


def score_result_from_message(message: reward_pb2.ScoreResponse) -> ScoreResult:
    """Scores in the order of the request."""
    return ScoreResult(
        scores=tuple(item_score_from_message(score) for score in message.scores),
        served=served_from_message(message.served),
        queue_ms=message.timing.queue_ms,
        compute_ms=message.timing.compute_ms,
    )


def rank_request_to_message(request: RankRequest) -> reward_pb2.RankRequest:
    """A rank request."""
    return reward_pb2.RankRequest(
        request_id=request.request_id,
        model=request.model,
        prompt=prompt_to_message(request.prompt),
        answers=request.answers,
        truncation=truncation_to_message(request.truncation),
        priority=priority_to_message(request.priority),
        version=version_to_message(request.version),
    )


def rank_request_from_message(message: reward_pb2.RankRequest) -> RankRequest:
    """A rank request, checked.

    Raises:
        InvalidRequest: names the wrong field.
    """
    return RankRequest(
        request_id=message.request_id,
        model=message.model,
        prompt=prompt_from_message(message.prompt),
        answers=tuple(message.answers),
        truncation=truncation_from_message(message.truncation),
        priority=priority_from_message(message.priority),
        version=version_from_message(message.version),
    )


def rank_result_to_message(result: RankResult) -> reward_pb2.RankResponse:
    """An order of answers."""
    return reward_pb2.RankResponse(
        scores=[item_score_to_message(score) for score in result.scores],
        order=result.order,
        pairwise_probabilities=result.pairwise_probabilities.ravel(),
        served=served_to_message(result.served),
        timing=types_pb2.Timing(queue_ms=result.queue_ms, compute_ms=result.compute_ms),
    )


def rank_result_from_message(message: reward_pb2.RankResponse) -> RankResult:
    """An order of answers."""
    count = len(message.scores)
    return RankResult(
        scores=tuple(item_score_from_message(score) for score in message.scores),
        order=tuple(message.order),
        pairwise_probabilities=_floats(message.pairwise_probabilities).reshape(count, count),
        served=served_from_message(message.served),
        queue_ms=message.timing.queue_ms,
        compute_ms=message.timing.compute_ms,
    )


# Reference


def logprobs_options_to_message(options: LogProbsOptions) -> reference_pb2.LogProbsOptions:
    """What is computed for each sequence."""
    return reference_pb2.LogProbsOptions(temperature=options.temperature, entropy=options.entropy, top_n=options.top_n)


def logprobs_options_from_message(message: reference_pb2.LogProbsOptions) -> LogProbsOptions:
    """What is computed for each sequence, checked; temperature 0 stands for 1."""
    with _under("options"):
        return LogProbsOptions(temperature=message.temperature or 1.0, entropy=message.entropy, top_n=message.top_n)


def logprobs_item_to_message(item: LogProbsItem) -> reference_pb2.LogProbsItem:
    """One sequence."""
    return reference_pb2.LogProbsItem(item_id=item.item_id, token_ids=item.token_ids, start_index=item.start_index)


def logprobs_item_from_message(message: reference_pb2.LogProbsItem) -> LogProbsItem:
    """One sequence, checked; start index 0 stands for 1."""
    return LogProbsItem(
        item_id=message.item_id, token_ids=tuple(message.token_ids), start_index=message.start_index or 1
    )


def logprobs_request_to_message(request: LogProbsRequest) -> reference_pb2.LogProbsRequest:
    """A log-probs request."""
    return reference_pb2.LogProbsRequest(
        request_id=request.request_id,
        model=request.model,
        items=[logprobs_item_to_message(item) for item in request.items],
        options=logprobs_options_to_message(request.options),
        per_item_errors=request.per_item_errors,
        priority=priority_to_message(request.priority),
        version=version_to_message(request.version),
    )


def logprobs_request_from_message(message: reference_pb2.LogProbsRequest) -> LogProbsRequest:
    """A log-probs request, checked.

    Raises:
        InvalidRequest: names the first wrong field.
    """
    return LogProbsRequest(
        request_id=message.request_id,
        model=message.model,
        items=_each("items", message.items, logprobs_item_from_message),
        options=logprobs_options_from_message(message.options),
        per_item_errors=message.per_item_errors,
        priority=priority_from_message(message.priority),
        version=version_from_message(message.version),
    )


def item_logprobs_to_message(item: ItemLogProbs) -> reference_pb2.ItemLogProbs:
    """The log-probs of one sequence."""
    return reference_pb2.ItemLogProbs(
        item_id=item.item_id,
        logprobs=item.logprobs,
        entropies=item.entropies if item.entropies is not None else (),
        top_tokens=[reference_pb2.TopTokens(token_ids=ids, logprobs=values) for ids, values in item.top_tokens],
        error=item_error_to_message(item.error) if item.error is not None else None,
    )


def item_logprobs_from_message(message: reference_pb2.ItemLogProbs) -> ItemLogProbs:
    """The log-probs of one sequence."""
    return ItemLogProbs(
        logprobs=_floats(message.logprobs),
        entropies=_floats(message.entropies) if message.entropies else None,
        top_tokens=tuple((tuple(top.token_ids), _floats(top.logprobs)) for top in message.top_tokens),
        item_id=message.item_id,
        error=item_error_from_message(message.error) if message.HasField("error") else None,
    )


def logprobs_result_to_message(result: LogProbsResult) -> reference_pb2.LogProbsResponse:
    """Log-probs in the order of the request."""
    return reference_pb2.LogProbsResponse(
        results=[item_logprobs_to_message(item) for item in result.results],
        served=served_to_message(result.served),
        timing=types_pb2.Timing(queue_ms=result.queue_ms, compute_ms=result.compute_ms),
    )


def logprobs_result_from_message(message: reference_pb2.LogProbsResponse) -> LogProbsResult:
    """Log-probs in the order of the request."""
    return LogProbsResult(
        results=tuple(item_logprobs_from_message(item) for item in message.results),
        served=served_from_message(message.served),
        queue_ms=message.timing.queue_ms,
        compute_ms=message.timing.compute_ms,
    )


# Info


def info_from_message(message: info_pb2.GetInfoResponse) -> ServiceInfo:
    """What a server is."""
    limits, load = message.limits, message.load
    return ServiceInfo(
        service=message.service,
        replica=message.replica,
        state=ServiceState(info_pb2.ServiceState.Name(message.state).removeprefix("SERVICE_STATE_")),
        state_reason=message.state_reason,
        models=tuple(
            ModelInfo(
                served=served_from_message(model.served),
                channel=model.channel,
                architecture=model.architecture,
                parameter_count=model.parameter_count,
                dtype=model.dtype,
                vocab_size=model.vocab_size,
                max_sequence_tokens=model.max_sequence_tokens,
                eos_token_ids=tuple(model.eos_token_ids),
                channel_version=model.channel_version,
                last_swap_error=model.last_swap_error,
            )
            for model in message.models
        ),
        limits=Limits(
            limits.max_items_per_request,
            limits.max_batch_tokens,
            limits.max_queue_tokens,
            limits.max_request_bytes,
            limits.default_deadline_ms,
            limits.max_concurrent_sequences,
        ),
        device=message.device,
        build_version=message.build_version,
        deterministic=message.deterministic,
        threads=message.threads,
        http_url=message.http_url,
        engine=message.engine,
        load=Load(load.waiting_items, load.waiting_tokens, load.running_items, load.tokens_per_second),
    )


def _floats(values: Iterable[float]) -> FloatArray:
    return np.fromiter(values, dtype=np.float32)
