"""Log-probs of given tokens under the served policy, in pieces between the engine's steps.

A piece is as long as what the engine's own prefill computes between two steps, and never are two pieces waiting: those
that sample are delayed as by a newcomer's prompt. A sequence is computed by the weights that its first piece met, to
its end; the keys and values of the pieces before are kept in a cache of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PreTrainedModel

from trimtab.errors import InternalError, Overloaded, Reason, Unsupported, VersionUnavailable
from trimtab_models.anatomy import backbone
from trimtab_models.logprobs import token_logprobs
from trimtab_services.generation.config import GenerationConfig
from trimtab_services.generation.engines.base import Engine
from trimtab_services.generation.host import EngineHost
from trimtab_services.generation.serving import SequenceHost
from trimtab_services.runtime.calls import current_call
from trimtab_services.runtime.frozen import BatchShapes

__all__ = ["ScoredTokens", "SequenceScorer"]


@dataclass(slots=True)
class ScoredTokens:
    """What is known of a sequence's tokens from the start asked for.

    Attributes:
        version: of the weights.
        logprobs: of each token, in nats.
        top: for each token the likeliest ones in its place, likeliest first, as (id, log-prob).
    """

    version: int
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)


class SequenceScorer:
    """Scores sequences, one piece of one of them at a time.

    Args:
        config: of the service.
        charge: takes tokens off a caller's quota; raises where that has too few left.
    """

    def __init__(
        self, config: GenerationConfig, charge: Callable[[str, int], None] = lambda caller, tokens: None
    ) -> None:
        self._charge = charge
        self._piece_tokens = min(config.prefill_chunk_tokens, config.prefill_tokens_per_step)
        self._max_tokens = config.max_queue_tokens
        self._shapes = BatchShapes.of(config)
        self._held_tokens = 0
        self._turn = asyncio.Lock()

    async def score(
        self,
        host: SequenceHost,
        token_ids: Sequence[int],
        *,
        start: int,
        temperature: float,
        top_n: int,
        sampled_by: Sequence[int] = (),
    ) -> ScoredTokens:
        """Log-probs of the tokens from `start` on.

        Args:
            host: of the engine that sampled.
            token_ids: the whole sequence, inside vocabulary and context.
            start: first token wanted, at least 1.
            temperature: divides the logits; 0 counts as 1, as it does for sampled tokens.
            top_n: also the n likeliest tokens at each place.
            sampled_by: versions that sampled some of the tokens; empty: none was sampled.

        Raises:
            Overloaded: too many tokens wait to be scored, or the caller's quota has too few left.
            Unsupported: the engine holds no weights.
            VersionUnavailable: a token was sampled by another version than would score it.
            InternalError: a log-prob is not finite, or the engine has failed.
        """
        if not isinstance(host, EngineHost):
            raise _no_weights()
        if self._held_tokens and self._held_tokens + len(token_ids) > self._max_tokens:
            raise Overloaded(
                f"logprobs: {len(token_ids)} tokens are to be scored while {self._held_tokens} wait; allowed: "
                f"{self._max_tokens} in all",
                field="logprobs",
                value=len(token_ids),
                limit=self._max_tokens,
                retry_after_s=1.0,
            )
        call = current_call()
        self._charge(call.caller if call is not None else "", len(token_ids))
        self._held_tokens += len(token_ids)
        try:
            async with self._turn:
                progress = _Progress(
                    tuple(token_ids), start, temperature or 1.0, top_n, self._piece_tokens, self._shapes
                )
                while not await host.call(progress.advance):
                    pass
        finally:
            self._held_tokens -= len(token_ids)
        _check_versions(sampled_by, progress.scored.version)
        return progress.scored


class _Progress:
    """A sequence that is being scored; touched by the engine's thread while a piece is computed."""

    def __init__(
        self,
        token_ids: tuple[int, ...],
        start: int,
        temperature: float,
        top_n: int,
        piece_tokens: int,
        shapes: BatchShapes,
    ) -> None:
        self._ids = torch.tensor(token_ids)
        self._start = start
        self._temperature = temperature
        self._top_n = top_n
        self._piece_tokens = piece_tokens
        self._shapes = shapes
        self._model: PreTrainedModel | None = None
        self._cache = DynamicCache()
        self._done = 0
        self.scored = ScoredTokens(0)

    @torch.inference_mode()
    def advance(self, engine: Engine) -> bool:
        """Computes the next piece; returns whether it was the last."""
        model = self._model or self._begin(engine)
        begin, end = self._done, min(self._done + self._piece_tokens, len(self._ids) - 1)
        positions = torch.arange(begin, end, device=model.device)[None]
        with self._shapes.attention():
            hidden = backbone(model)(
                input_ids=self._ids[None, begin:end],
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state[0]
        first = max(self._start - 1, begin)
        if first < end:
            self._keep(model, hidden[first - begin :], self._ids[first + 1 : end + 1])
        self._done = end
        return end >= len(self._ids) - 1

    def _begin(self, engine: Engine) -> PreTrainedModel:
        model = engine.model
        if model is None:
            raise _no_weights()
        self._model = model
        self._cache = DynamicCache(config=model.config)
        self._ids = self._ids.to(model.device)
        self.scored.version = engine.version
        return model

    def _keep(self, model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor) -> None:
        found = token_logprobs(
            model,
            hidden,
            targets,
            temperature=self._temperature,
            top_n=self._top_n,
            row_multiple=self._shapes.multiple,
        )
        if not bool(torch.isfinite(found.logprobs).all()):
            raise InternalError("a log-prob is not finite", reason=Reason.NOT_FINITE, field="logprobs")
        self.scored.logprobs += found.logprobs.tolist()
        if found.top_ids is None or found.top_logprobs is None:
            self.scored.top += [[] for _ in targets]
            return
        pairs = zip(found.top_ids.tolist(), found.top_logprobs.tolist(), strict=True)
        self.scored.top += [list(zip(ids, values, strict=True)) for ids, values in pairs]


def _no_weights() -> Unsupported:
    return Unsupported("logprobs: the engine has no weights to score given tokens with", field="logprobs")


def _check_versions(sampled_by: Sequence[int], scored: int) -> None:
    other = next((version for version in sampled_by if version != scored), None)
    if other is not None:
        raise VersionUnavailable(
            f"logprobs: the policy moved from version {other} to {scored} while the request was answered, so that "
            "sampled and given tokens would have log-probs of two policies; ask again",
            field="logprobs",
            value=other,
            limit=scored,
            metadata={"served_version": str(scored)},
        )
