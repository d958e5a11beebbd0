"""What the OpenAI front answers: objects, chunks of streams, errors; the reference is OpenAI's public API.

`system_fingerprint` names the policy version. Log-probs list every sampled token, the one that ended the completion and
those of a stop string included, although the text leaves them out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from trimtab.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    SequenceTooLong,
    TrimtabError,
    Unauthenticated,
    Unsupported,
)
from trimtab.types import ServedModel
from trimtab_services.generation.http.answering import request_id
from trimtab_services.generation.http.sampling import ChoicePart, End, fingerprint
from trimtab_services.generation.http.text import token_text

__all__ = ["Envelope", "TokenRow", "chat_logprobs", "completion_logprobs", "error_body", "finish_reason", "rows_of"]

_TYPES: Mapping[type[TrimtabError], str] = {
    Unauthenticated: "authentication_error",
    PermissionDenied: "permission_error",
    NotFound: "not_found_error",
    Overloaded: "rate_limit_error",
    InvalidRequest: "invalid_request_error",
    Unsupported: "invalid_request_error",
    DeadlineExceeded: "timeout_error",
}
_CODES: Mapping[type[TrimtabError], str] = {
    SequenceTooLong: "context_length_exceeded",
    NotFound: "model_not_found",
    Unsupported: "unsupported_parameter",
}


def error_body(error: TrimtabError) -> dict[str, Any]:
    """An error in OpenAI's shape; `code` is OpenAI's where it has one, else the service's own reason."""
    kind = next((name for known, name in _TYPES.items() if isinstance(error, known)), "server_error")
    code = next((name for known, name in _CODES.items() if isinstance(error, known)), error.reason.value)
    return {"error": {"message": error.message, "type": kind, "param": error.field or None, "code": code}}


def finish_reason(end: End | None) -> str | None:
    """OpenAI's word for why a completion ended; None while it goes on."""
    return None if end is None else "length" if end is End.LENGTH else "stop"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every object and every chunk of one answer carries.

    Attributes:
        kind: such as `text_completion`.
        prefix: of its id.
        served: the model: of a stream, as it was when it began.
    """

    kind: str
    prefix: str
    served: ServedModel
    created: int = field(default_factory=lambda: int(time.time()))

    def wrap(self, choices: Sequence[Mapping[str, Any]], version: int, **more: Any) -> dict[str, Any]:
        """The object around choices that a version sampled."""
        return {
            "id": f"{self.prefix}-{request_id()}",
            "object": self.kind,
            "created": self.created,
            "model": self.served.name,
            "system_fingerprint": fingerprint(self.served, version),
            "choices": list(choices),
            **more,
        }


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token of an answer, prompt included.

    Attributes:
        token_id: of it.
        logprob: in nats; None for the first token of a prompt, which nothing predicts.
        offset: characters of the text in front of it.
        top: the likeliest tokens in its place as (id, log-prob), likeliest first.
    """

    token_id: int
    logprob: float | None
    offset: int
    top: Sequence[tuple[int, float]] = ()

    def alternatives(self) -> list[tuple[int, float]]:
        """The likeliest tokens with this one among them, as it was sampled."""
        if self.logprob is None:
            return []
        return sorted({**dict(self.top), self.token_id: self.logprob}.items(), key=lambda pair: -pair[1])


def completion_logprobs(tokenizer: PreTrainedTokenizerBase, rows: Sequence[TokenRow]) -> dict[str, Any]:
    """`logprobs` of `/v1/completions`. Where two tokens spell the same text, it has the likelier one's log-prob."""
    top: list[dict[str, float] | None] = []
    for row in rows:
        texts: dict[str, float] = {}
        for token_id, logprob in row.alternatives():
            texts.setdefault(token_text(tokenizer, token_id), logprob)
        top.append(texts if row.logprob is not None else None)
    return {
        "tokens": [token_text(tokenizer, row.token_id) for row in rows],
        "token_logprobs": [row.logprob for row in rows],
        "top_logprobs": top,
        "text_offset": [row.offset for row in rows],
    }


def chat_logprobs(tokenizer: PreTrainedTokenizerBase, rows: Sequence[TokenRow], top_n: int) -> dict[str, Any]:
    """`logprobs` of `/v1/chat/completions`; `bytes` is null for a token that is no whole character."""

    def entry(token_id: int, logprob: float | None) -> dict[str, Any]:
        text = token_text(tokenizer, token_id)
        return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}

    content = [
        {
            **entry(row.token_id, row.logprob),
            "top_logprobs": [entry(token_id, logprob) for token_id, logprob in row.alternatives()[:top_n]],
        }
        for row in rows
    ]
    return {"content": content, "refusal": None}


def rows_of(part: ChoicePart, top: Sequence[Sequence[tuple[int, float]]] = (), shift: int = 0) -> list[TokenRow]:
    """Rows of sampled tokens.

    Args:
        part: of a completion.
        top: for each of its tokens the likeliest ones; empty: not known.
        shift: characters in front of the completion.
    """
    return [
        TokenRow(token.token_id, token.logprob, shift + token.offset, top[i] if top else ())
        for i, token in enumerate(part.tokens)
    ]
