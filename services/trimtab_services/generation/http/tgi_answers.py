"""What the TGI front answers: results, events of streams, errors, its part of `GET /info`.

A stop string is never part of a text; the tokens that spell it are listed with the text that is left of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from trimtab.errors import (
    InvalidRequest,
    NotFound,
    Overloaded,
    TrimtabError,
    Unavailable,
    Unsupported,
)
from trimtab.types.shared import MAX_STOP_STRINGS
from trimtab.v1 import info_pb2
from trimtab_services.generation.http.sampling import AnswerToken, ChoicePart, End
from trimtab_services.generation.http.text import token_text

__all__ = ["details_of", "error_body", "info_fields", "prefill_rows", "token_row"]

_TYPES: Mapping[type[TrimtabError], str] = {
    InvalidRequest: "validation",
    Unsupported: "validation",
    NotFound: "validation",
    Overloaded: "overloaded",
    Unavailable: "unhealthy",
}
_REASONS = {End.LENGTH: "length", End.EOS: "eos_token", End.STOP_STRING: "stop_sequence"}


def error_body(error: TrimtabError) -> dict[str, Any]:
    """An error in TGI's shape."""
    kind = next((name for known, name in _TYPES.items() if isinstance(error, known)), "generation")
    return {"error": error.message, "error_type": kind}


def token_row(tokenizer: PreTrainedTokenizerBase, token: AnswerToken) -> dict[str, Any]:
    """A sampled token; a special one spells itself, though it is no part of the text."""
    special = token.token_id in tokenizer.all_special_ids
    text = token_text(tokenizer, token.token_id) if special else token.text
    return {"id": token.token_id, "text": text, "logprob": token.logprob, "special": special}


def prefill_rows(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], logprobs: Sequence[float]
) -> list[dict[str, Any]]:
    """The prompt's tokens; nothing predicts the first one."""
    return [
        {"id": token_id, "text": token_text(tokenizer, token_id), "logprob": logprob}
        for token_id, logprob in zip(prompt, (None, *logprobs), strict=True)
    ]


def details_of(last: ChoicePart, prompt_tokens: int, seed: int | None) -> dict[str, Any]:
    """What a stream's last event and a result tell of a completion."""
    return {
        "finish_reason": _REASONS[last.end or End.LENGTH],
        "generated_tokens": last.sampled_tokens,
        "input_length": prompt_tokens,
        "seed": seed,
    }


def info_fields(response: info_pb2.GetInfoResponse, origin: str) -> dict[str, Any]:
    """The fields of TGI's `GET /info` that a server of ours has an answer for; `origin` as in `serving.Policy`."""
    model = response.models[0]
    most = model.max_sequence_tokens
    return {
        "model_id": origin or model.channel or model.served.name,
        "model_sha": model.served.weights_digest or None,
        "model_dtype": model.dtype,
        "model_device_type": response.device,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": response.limits.max_concurrent_sequences,
        "max_best_of": 1,
        "max_stop_sequences": MAX_STOP_STRINGS,
        "max_input_tokens": max(most - 1, 0),
        "max_total_tokens": most,
        "validation_workers": 1,
        "max_client_batch_size": 1,
        "router": "trimtab",
        "version": response.build_version,
    }
