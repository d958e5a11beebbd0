"""From checked prompts to completions with their text, whole or token by token."""

from __future__ import annotations

import re
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from enum import Enum

from transformers import PreTrainedTokenizerBase

from trimtab.errors import InvalidRequest, Overloaded
from trimtab.types import (
    Completion,
    FinishReason,
    GenerateRequest,
    GenerationPrompt,
    Priority,
    SamplingParams,
    ServedModel,
)
from trimtab_services.generation.completions import Completions, CompletionToken
from trimtab_services.generation.http.text import TextPiece, TextStream
from trimtab_services.generation.serving import Policy, model_facts

__all__ = ["AnswerToken", "Asked", "ChoicePart", "End", "fingerprint", "sample", "stream"]


class End(Enum):
    """Why a completion ended."""

    LENGTH = "length"
    EOS = "eos"
    STOP_STRING = "stop_string"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request wants sampled.

    Attributes:
        prompts: token ids of each.
        fields: name of each prompt's field in the caller's request, such as `prompt[3]`.
        limit_field: name of the field that says how many tokens may be sampled.
        samples: completions of each.
        sampling: how.
        seed: unsigned 64 bit. Choice k, counted over all prompts, is drawn as sample_index k of this seed.
    """

    prompts: Sequence[tuple[int, ...]]
    fields: Sequence[str]
    limit_field: str
    sampling: SamplingParams
    samples: int = 1
    seed: int = field(default_factory=lambda: secrets.randbits(64))

    def request(self) -> GenerateRequest:
        """The same in the service's own words."""
        return GenerateRequest(
            prompts=tuple(
                GenerationPrompt(
                    prompt_id=str(i),
                    prompt=ids,
                    seed=self.seed,
                    num_samples=self.samples,
                    first_sample_index=i * self.samples,
                )
                for i, ids in enumerate(self.prompts)
            ),
            sampling=self.sampling,
            priority=Priority.INTERACTIVE,
        )

    @contextmanager
    def in_callers_words(self) -> Iterator[None]:
        """Errors raised inside name the fields that the caller sent."""
        try:
            yield
        except (InvalidRequest, Overloaded) as error:
            field = self._renamed(error.field)
            message = self._renamed(error.message).replace("max_new_tokens", self.limit_field)
            raise error.told(message, field=field) from None

    def _renamed(self, text: str) -> str:
        """The text with the name of a prompt's field at its beginning in the caller's words."""
        one = re.match(r"prompts\[(\d+)\]\.prompt(?:\.token_ids)?", text)
        if one is not None:
            return self.fields[int(one[1])] + text[one.end() :]
        return re.sub(r"^prompts\b", self.fields[0].partition("[")[0], text)


@dataclass(frozen=True, slots=True)
class AnswerToken:
    """A sampled token: id, text and offset as in `TextPiece`, log-prob in nats."""

    token_id: int
    text: str
    offset: int
    logprob: float


@dataclass(frozen=True, slots=True)
class ChoicePart:
    """A part of a completion, or all of it.

    Attributes:
        index: of the completion among all of the request.
        tokens: those whose text is settled.
        versions: that sampled them, in order of appearance; without tokens, the one that sampled the last.
        end: why it ended; None while it goes on.
        sampled_tokens: of the completion so far.
    """

    index: int
    tokens: tuple[AnswerToken, ...]
    versions: tuple[int, ...]
    end: End | None
    sampled_tokens: int

    @property
    def text(self) -> str:
        """Of the tokens."""
        return "".join(token.text for token in self.tokens)


class _Choice:
    """A completion while it is sampled."""

    def __init__(self, index: int, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str]) -> None:
        self._index = index
        self._text = TextStream(tokenizer, stop_strings)
        self._drawn: deque[tuple[float, int]] = deque()
        self._count = 0
        self._version = 0

    def feed(self, token_id: int, logprob: float, version: int) -> ChoicePart:
        self._drawn.append((logprob, version))
        self._count += 1
        self._version = version
        return self._part(self._text.feed(token_id), None)

    def finish(self, completion: Completion, eos_token_ids: Sequence[int]) -> ChoicePart:
        rest = self._text.finish()
        if self._text.stopped:
            end = End.STOP_STRING
        elif completion.finish_reason is FinishReason.LENGTH:
            end = End.LENGTH
        else:
            end = End.EOS if completion.token_ids[-1] in eos_token_ids else End.STOP_STRING
        return self._part(rest, end)

    def _part(self, pieces: list[TextPiece], end: End | None) -> ChoicePart:
        drawn = [self._drawn.popleft() for _ in pieces]
        tokens = tuple(
            AnswerToken(piece.token_id, piece.text, piece.offset, logprob)
            for piece, (logprob, _) in zip(pieces, drawn, strict=True)
        )
        versions = tuple(dict.fromkeys(version for _, version in drawn)) or (self._version,)
        return ChoicePart(self._index, tokens, versions, end, self._count)


async def sample(completions: Completions, policy: Policy, asked: Asked) -> list[ChoicePart]:
    """Every completion as one part, in order of index.

    Raises:
        TrimtabError: as `Completions.sample`.
    """
    tokenizer, eos = policy.tokenizer, model_facts(policy).eos_token_ids
    choices: dict[int, ChoicePart] = {}
    async with aclosing(completions.sample(asked.request())) as results:
        with asked.in_callers_words():
            async for result in results:
                if result.completion is not None:  # a wrong prompt refuses the whole request
                    choices[result.completion.sample_index] = _whole(tokenizer, asked, result.completion, eos)
    return [choices[index] for index in sorted(choices)]


async def stream(completions: Completions, policy: Policy, asked: Asked) -> AsyncGenerator[ChoicePart, None]:
    """Parts of the completions as their tokens are settled; the last part of each has its last token and its end.

    Raises:
        TrimtabError: as `Completions.stream`.
    """
    tokenizer, eos = policy.tokenizer, model_facts(policy).eos_token_ids
    choices: dict[int, _Choice] = {}  # made as they begin: what is asked for may be refused for its number
    last: dict[int, ChoicePart] = {}
    async with aclosing(completions.stream(asked.request())) as events:
        with asked.in_callers_words():
            async for event in events:
                if isinstance(event, CompletionToken):
                    index = event.sample_index
                    if index not in choices:
                        choices[index] = _Choice(index, tokenizer, asked.sampling.stop_strings)
                    part = choices[index].feed(event.token_id, event.logprob, event.version)
                    if event.is_last:
                        last[part.index] = part
                    elif part.tokens:
                        yield part
                elif event.completion is not None:
                    part = choices.pop(event.completion.sample_index).finish(event.completion, eos)
                    yield _joined([last.pop(part.index), part])


def fingerprint(served: ServedModel, version: int) -> str:
    """`v<version>-<first 12 digits of the weights digest>`.

    Without digits where the digest is not known: for a model from a folder, and for a version other than `served` has.
    """
    known = served.weights_digest if served.version == version else ""
    return f"v{version}-{known[:12]}" if known else f"v{version}"


def _whole(
    tokenizer: PreTrainedTokenizerBase, asked: Asked, completion: Completion, eos_token_ids: Sequence[int]
) -> ChoicePart:
    choice = _Choice(completion.sample_index, tokenizer, asked.sampling.stop_strings)
    parts = [
        choice.feed(completion.token_ids[i], float(completion.logprobs[i]), span.version)
        for span in completion.version_spans
        for i in range(span.start_token, span.end_token)
    ]
    return _joined([*parts, choice.finish(completion, eos_token_ids)])


def _joined(parts: list[ChoicePart]) -> ChoicePart:
    last = parts[-1]
    tokens = tuple(token for part in parts for token in part.tokens)
    versions = tuple(dict.fromkeys(version for part in parts for version in part.versions))
    return ChoicePart(last.index, tokens, versions, last.end, last.sampled_tokens)
