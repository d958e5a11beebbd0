"""Our sampling inside vLLM, by its interface for logits processors.

vLLM would sample with a generator for each request whose state hangs on what ran before, and states log-probs either
before the temperature or after truncation. Here the processor draws each row's token as every engine of ours does
(`generation.sampling`: a function of seed, sample index and position; log-probs at the stated temperature before
truncation) and leaves that token alone possible, so that vLLM's greedy choice is ours.
"""

# vLLM has an environment of its own.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from trimtab_services.generation.engines.base import SequenceRequest
from trimtab_services.generation.sampling import SamplingRow, sample_tokens, uniforms

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams
    from vllm.config import VllmConfig

__all__ = ["CounterSampler", "Drawn", "WorkerExtension", "sampling_arguments"]

_KEY = "trimtab"

Drawn = tuple[int, float, bool]
"""Token id, log-prob in nats, whether the logits were finite."""


def sampling_arguments(
    request: SequenceRequest, number: int, start: int, suppressed: tuple[int, ...]
) -> dict[str, Any]:
    """What `SamplingParams.extra_args` must hold of a request.

    Args:
        request: what was asked.
        number: names the row in what is drawn.
        start: tokens of the completion that are part of vLLM's prompt already.
        suppressed: ids that it cannot sample before `min_new_tokens`.
    """
    sampling = request.sampling
    return {
        _KEY: {
            "number": number,
            "seed": request.seed,
            "sample_index": request.sample_index,
            "start": start,
            "end": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "suppressed": list(suppressed),
            "min_new_tokens": sampling.min_new_tokens,
        }
    }


@dataclass(slots=True)
class _Row:
    """A sequence of the batch.

    Attributes:
        asked: as `sampling_arguments` made it.
        uniforms: of the tokens from `start` on.
        output: what vLLM has sampled since; vLLM appends to it.
    """

    asked: Mapping[str, Any]
    uniforms: NDArray[np.float64]
    output: list[int]

    def next(self) -> SamplingRow:
        """How the row's next token is sampled."""
        asked, n = self.asked, len(self.output)
        return SamplingRow(
            uniform=float(self.uniforms[n]),
            temperature=asked["temperature"],
            top_k=asked["top_k"],
            top_p=asked["top_p"],
            suppressed=tuple(asked["suppressed"]) if asked["start"] + n < asked["min_new_tokens"] else (),
        )


class CounterSampler(LogitsProcessor):
    """Draws one token for each row of a batch; see the module.

    Attributes:
        drawn: of the last step, by the row's number.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.drawn: dict[int, Drawn] = {}
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        """It decides what is chosen."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follows what comes into the batch, leaves it and moves in it."""
        process_dict_updates(self._rows, batch_update, _row)

    def apply(self, logits: Tensor) -> Tensor:
        """Draws from float32 [rows, vocab] logits, and leaves in them the drawn token alone."""
        rows = [self._rows[i] for i in range(len(logits))]
        tokens = sample_tokens(logits, [row.next() for row in rows])
        drawn = zip(tokens.token_ids, tokens.logprobs, tokens.finite, strict=True)
        self.drawn = {row.asked["number"]: one for row, one in zip(rows, drawn, strict=True)}
        chosen = logits.new_tensor(tokens.token_ids).long()[:, None]
        return logits.fill_(float("-inf")).scatter_(1, chosen, 0.0)


class WorkerExtension:
    """What vLLM's worker can be asked besides, through `collective_rpc`."""

    model_runner: Any

    def trimtab_drawn(self) -> dict[int, Drawn]:
        """What the last step drew, by the row's number."""
        for processor in self.model_runner.input_batch.logitsprocs.non_argmax_invariant:
            if isinstance(processor, CounterSampler):
                return processor.drawn
        raise RuntimeError("vLLM runs without the logits processor that samples")


def _row(params: SamplingParams, prompt: list[int] | None, output: list[int]) -> _Row:
    asked = (params.extra_args or {})[_KEY]
    positions = np.arange(asked["start"], asked["end"])
    return _Row(asked, uniforms(asked["seed"], asked["sample_index"], positions), output)
