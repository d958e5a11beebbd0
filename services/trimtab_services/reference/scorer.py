"""Log-probs of token sequences under the served policy, without a tensor of [tokens, vocab]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trimtab.errors import InternalError, Reason, TrimtabError
from trimtab.types import FloatArray
from trimtab_models.heads import hidden_states
from trimtab_models.logprobs import TokenLogProbs, token_logprobs
from trimtab_models.packing import pad_right
from trimtab_services.runtime.frozen import BatchShapes
from trimtab_services.runtime.slots import ServedVersion

__all__ = ["LogProbScorer", "Options", "Scored", "TargetSequence", "canary"]


@dataclass(frozen=True, slots=True)
class TargetSequence:
    """Token ids, and from which on log-probs are wanted."""

    token_ids: tuple[int, ...]
    start_index: int


@dataclass(frozen=True, slots=True)
class Options:
    """What is computed, and by which version: sequences of equal options share a batch."""

    served: ServedVersion
    temperature: float
    entropy: bool
    top_n: int


@dataclass(frozen=True, slots=True)
class Scored:
    """What is known of one sequence's tokens from its start index on.

    Attributes:
        logprobs: float32 [tokens].
        entropies: float32 [tokens] or None.
        top_ids, top_logprobs: [tokens, n] or None.
    """

    logprobs: FloatArray
    entropies: FloatArray | None
    top_ids: np.ndarray | None
    top_logprobs: FloatArray | None


class LogProbScorer:
    """Computes batches in the compute thread.

    Args:
        shapes: what batches are computed in.
    """

    def __init__(self, shapes: BatchShapes) -> None:
        self._shapes = shapes

    @torch.inference_mode()
    def compute(self, options: Options, sequences: Sequence[TargetSequence]) -> list[Scored | TrimtabError]:
        """Log-probs of a batch, all by the version that its requests were admitted under."""
        results: list[Scored | TrimtabError] = [InternalError("not computed")] * len(sequences)
        for positions in self._shapes.split([len(sequence.token_ids) for sequence in sequences]):
            found = self._forward([sequences[position] for position in positions], options)
            for position, result in zip(positions, found, strict=True):
                results[position] = result
        return results

    def _forward(self, sequences: Sequence[TargetSequence], options: Options) -> list[Scored | TrimtabError]:
        model = options.served.model
        device = model.device
        input_ids, lengths = pad_right([s.token_ids for s in sequences], multiple=self._shapes.multiple)
        input_ids = input_ids.to(device)
        with self._shapes.attention():
            hidden = hidden_states(model, input_ids)
        starts = torch.tensor([s.start_index for s in sequences])
        columns = torch.arange(input_ids.shape[1])
        wanted = (columns >= starts[:, None]) & (columns < lengths[:, None])
        rows, columns = (index.to(device) for index in wanted.nonzero(as_tuple=True))
        found = token_logprobs(
            model,
            hidden[rows, columns - 1],
            input_ids[rows, columns],
            temperature=options.temperature,
            entropy=options.entropy,
            top_n=options.top_n,
            row_multiple=self._shapes.multiple,
        )
        return _split(found, (lengths - starts).tolist())


@torch.inference_mode()
def canary(served: ServedVersion) -> None:
    """Computes the log-probs of a fixed sequence.

    Raises:
        InternalError: one is not finite.
    """
    ids = torch.arange(min(8, served.vocab_size), device=served.model.device)[None]
    hidden = hidden_states(served.model, ids)[0, :-1]
    logprobs = token_logprobs(served.model, hidden, ids[0, 1:]).logprobs
    if not bool(torch.isfinite(logprobs).all()):
        raise InternalError("canary: a log-prob is not finite; the version is not served", reason=Reason.NOT_FINITE)


def _split(found: TokenLogProbs, counts: list[int]) -> list[Scored | TrimtabError]:
    def parts(tensor: torch.Tensor | None) -> list[np.ndarray] | list[None]:
        if tensor is None:
            return [None] * len(counts)
        return [part.numpy() for part in tensor.cpu().split(counts)]

    results: list[Scored | TrimtabError] = []
    rows = zip(
        parts(found.logprobs), parts(found.entropies), parts(found.top_ids), parts(found.top_logprobs), strict=True
    )
    for logprobs, entropies, top_ids, top_logprobs in rows:
        if logprobs is None or not np.isfinite(logprobs).all():
            results.append(InternalError("a log-prob is not finite", reason=Reason.NOT_FINITE, field="logprobs"))
        else:
            results.append(Scored(logprobs, entropies, top_ids, top_logprobs))
    return results
