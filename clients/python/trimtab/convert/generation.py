"""Generation: requests, and completions with their version spans."""

from __future__ import annotations

from trimtab.convert.shared import (
    each,
    enum_from_reply,
    floats,
    item_error_from_message,
    item_error_to_message,
    priority_from_message,
    priority_to_message,
    prompt_from_message,
    prompt_to_message,
    sampling_from_message,
    sampling_to_message,
    served_from_message,
    served_to_message,
    version_from_message,
    version_to_message,
)
from trimtab.types import (
    Completion,
    FinishReason,
    GenerateRequest,
    GenerateResult,
    GenerationPrompt,
    VersionSpan,
)
from trimtab.v1 import generation_pb2

_SEED_BITS = 2**64


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
        prompts=each("prompts", message.prompts, _generation_prompt),
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
                finish_reason=generation_pb2.FinishReason.Value(f"FINISH_REASON_{done.finish_reason.value}"),
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
        logprobs=floats(done.logprobs),
        finish_reason=enum_from_reply(
            FinishReason, generation_pb2.FinishReason, "FINISH_REASON_", "finish_reason", done.finish_reason
        ),
        version_spans=tuple(
            VersionSpan(span.start_token, span.end_token, span.version, span.kv_kept) for span in done.version_spans
        ),
        text=done.text,
        prompt_token_count=done.prompt_token_count,
        queue_ms=done.queue_ms,
        compute_ms=done.compute_ms,
    )
    return GenerateResult(message.prompt_id, served, completion=completion)
