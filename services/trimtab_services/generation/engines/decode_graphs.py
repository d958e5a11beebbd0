"""Decode steps on a GPU, recorded once for each shape and replayed.

A decode step is some hundred small kernels, and starting them one by one from Python takes several times as long as
they run. A CUDA graph starts them all at once. It is bound to shapes and addresses: those of one model, one cache and
one number of rows and keys; whoever changes the model or grows the cache throws the graphs away.

While a step is recorded, no other thread of the process may draw from the GPU's default random generator: torch refuses
it there. The services never do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab_services.generation.sampling import SampledTokens, SamplingRow, draw, sample_tokens, sampled_tokens

__all__ = ["DecodeGraphs", "NotRecordable"]

Forward = Callable[[Tensor, Tensor, int], Tensor]
"""(token ids [rows], positions [rows], keys that attention reads) -> logits [rows, vocab]."""


class NotRecordable(Exception):
    """The model's forward waits for the GPU or decides by what it computed, so no graph can hold it."""


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A step of one shape.

    Attributes:
        graph: forward and `draw`.
        written: float64 [4, rows] in page-locked host memory: token ids, positions, temperatures, uniform numbers.
        inputs: the same on the device, which the graph reads.
        logits, drawn: what the graph leaves behind, good until any graph runs again.
    """

    graph: torch.cuda.CUDAGraph
    written: Tensor
    inputs: Tensor
    logits: Tensor
    drawn: Tensor


class DecodeGraphs:
    """The recorded steps of one model over one cache.

    Args:
        device: of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._recorded: dict[tuple[int, int], _Recorded] = {}

    def sample(
        self,
        forward: Forward,
        tokens: Sequence[int],
        positions: Sequence[int],
        length: int,
        sampling: Sequence[SamplingRow],
    ) -> SampledTokens:
        """One decode step and one token for each row.

        Args:
            forward: makes the step, of the one model and cache; twice on the same input must leave the same state.
            tokens, positions, length: what it is given.
            sampling: as of `sample_tokens`.

        Raises:
            NotRecordable: see there; the step was not made.
        """
        rows = [list(tokens), list(positions), [row.temperature or 1.0 for row in sampling]]
        written = torch.tensor([*rows, [row.uniform for row in sampling]], dtype=torch.float64)
        step = self._recorded.get((len(tokens), length))
        if step is None:
            step = self._recorded[len(tokens), length] = self._record(forward, written, length)
        step.written.copy_(written)
        step.inputs.copy_(step.written, non_blocking=True)
        step.graph.replay()
        if all(row.plain for row in sampling):
            return sampled_tokens(step.drawn)
        return sample_tokens(step.logits, sampling)

    def _record(self, forward: Forward, written: Tensor, length: int) -> _Recorded:
        inputs = written.to(self._device)

        def body() -> tuple[Tensor, Tensor]:
            logits = forward(inputs[0].long(), inputs[1].long(), length)
            return logits, draw(logits, inputs[2].float(), inputs[3])

        body()  # what is set up on first use cannot be set up while recording
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on using the device, as one that stages new weights does.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits, drawn = body()
        except RuntimeError as error:
            raise NotRecordable(" ".join(str(error).split())[:200]) from error
        return _Recorded(graph, written.pin_memory(), inputs, logits, drawn)
