"""What the reference model says of ranked answers: asked once of the reference service, then read from disk.

Prompts are taken in blocks of their own order. A block's log-probs are one file, named by the digest of the reference's
weights, of its tokenizer and of the block's token ids; a resumed run, another epoch or another run with the same cache
asks nothing of what is there. A file that is not what its name says is told and asked for again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from trimtab import AsyncClient
from trimtab.errors import DeadlineExceeded, Mismatch
from trimtab.local import CHANNELS
from trimtab.types import LogProbsItem, LogProbsRequest, LogProbsResult, ServedModel
from trimtab.v1 import weights_pb2
from trimtab.weights.manifest import tensor_digest, weights_digest
from trimtab_models.files import sync
from trimtab_models.tokenizer import tokenizer_digest
from trimtab_models.versions import read_folder_tensors, tensor_to_data
from trimtab_trainer.context import StageContext, StageStopped
from trimtab_trainer.examples import RankingExample
from trimtab_trainer.fleet import Fleet
from trimtab_trainer.rollout_work import most_items
from trimtab_trainer.rollouts import first_error
from trimtab_trainer.services import Services

__all__ = ["Reference", "folder_digest", "reference_logprobs"]

_BLOCK_PROMPTS = 128
"""A stop order, or a kill, costs the answers to at most one block."""
_CALLS_IN_FLIGHT = 4
_CALL_ITEMS = 64
_CALL_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Reference:
    """The model that answers are compared with.

    Attributes:
        folder: its Hugging Face folder.
        weights: digest of its weights, as services report it.
        tokenizer: digest of its tokenizer.
    """

    folder: Path
    weights: str
    tokenizer: str

    @classmethod
    def of(cls, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Reference:
        """Reads a folder's weights once to name them."""
        return cls(folder, folder_digest(folder), tokenizer_digest(tokenizer))

    def check(self, address: str, served: ServedModel) -> None:
        """Compares the model that a replica serves with this one.

        Raises:
            Mismatch: names the replica and both digests.
        """
        for name, theirs, own in (
            ("weights", served.weights_digest, self.weights),
            ("tokenizer", served.tokenizer_digest, self.tokenizer),
        ):
            if theirs != own:
                raise Mismatch(
                    f"reference at {address} serves {served.name} version {served.version} with {name} "
                    f"{theirs or 'of no digest (a folder of its own)'}; dpo.policy is {self.folder} with {name} {own}, "
                    "and log-ratios to another model mean nothing",
                    field="services.reference",
                    value=theirs,
                    limit=own,
                )


def folder_digest(folder: Path) -> str:
    """Digest of the weights in a model folder: the one that its published version has.

    Raises:
        ModelFolderError: no safetensors, or one that cannot be read.
    """
    tensors = (tensor_to_data(name, tensor) for name, tensor in read_folder_tensors(folder).items())
    return weights_digest(
        weights_pb2.TensorEntry(name=one.name, dtype=one.dtype, shape=one.shape, digest=tensor_digest(one))
        for one in tensors
    )


def reference_logprobs(
    context: StageContext,
    services: Services,
    reference: Reference,
    examples: Sequence[RankingExample],
    *,
    cache: Path,
    timeout_s: float,
) -> list[npt.NDArray[np.float64]]:
    """Log-probs of every answer given its prompt, summed over its tokens, at temperature 1.

    The reference is published and served only where something must be asked.

    Args:
        context: of the stage, which a stop order ends between two blocks.
        services: of the run.
        reference: the model.
        examples: prompts with their answers.
        cache: folder of the files.
        timeout_s: longest wait for one block.

    Returns:
        For each example float64 [answers], in nats.

    Raises:
        Mismatch: the reference service has another model, or takes no sequence so long.
        DeadlineExceeded: a block was not complete in time.
        StageStopped: a stop was asked for; the blocks before are on disk.
        TrimtabError: the service refused the work, or no replica was well for the run's patience.
    """
    blocks = [examples[start : start + _BLOCK_PROMPTS] for start in range(0, len(examples), _BLOCK_PROMPTS)]
    files = [_BlockFile.of(cache, reference, block) for block in blocks]
    known = {number: sums for number, file in enumerate(files) if (sums := file.read(context.warn)) is not None}
    if len(known) < len(blocks):
        _serve(services, reference, examples)
        answers = sum(file.answers for number, file in enumerate(files) if number not in known)
        context.reporter.message(f"asks the reference for the log-probs of {answers} answers", stage=context.stage)
    for number, (block, file) in enumerate(zip(blocks, files, strict=True)):
        if number in known:
            continue
        if context.orders.stop_asked:
            raise StageStopped(f"{context.stage} was asked to stop while it asked for log-probs of the reference")
        known[number] = services.rollouts.run(_ask(services.rollouts.reference, reference, block, timeout_s=timeout_s))
        file.write(known[number])
    return [
        sums
        for number, block in enumerate(blocks)
        for sums in np.split(known[number], np.cumsum([len(example.answers) for example in block])[:-1])
    ]


@dataclass(frozen=True)
class _BlockFile:
    """The log-probs of one block on disk, with what they belong to in the header.

    Attributes:
        path: DIR/<digest of what follows>.safetensors.
        header: digests of weights, tokenizer and token ids.
        answers: of the block.
    """

    path: Path
    header: Mapping[str, str]
    answers: int

    @classmethod
    def of(cls, cache: Path, reference: Reference, block: Sequence[RankingExample]) -> _BlockFile:
        """The file of a block, whether or not it is there."""
        rows = json.dumps([[example.prompt, example.answers] for example in block])
        header = {"weights": reference.weights, "tokenizer": reference.tokenizer, "data": _sha256(rows)}
        name = _sha256(json.dumps(header, sort_keys=True))
        return cls(cache / f"{name}.safetensors", header, sum(len(example.answers) for example in block))

    def read(self, warn: Callable[[str], None]) -> npt.NDArray[np.float64] | None:
        """float64 [answers]; None where the file is not there, or is not what its name says, which is told."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="numpy") as opened:
                header, sums = opened.metadata(), opened.get_tensor("logprobs")
        except (OSError, SafetensorError) as error:
            warn(f"{self.path}: cannot be read and is asked for again: {error}")
            return None
        if header != self.header or sums.shape != (self.answers,) or not np.isfinite(sums).all():
            warn(f"{self.path}: holds log-probs of another reference or of other answers; they are asked for again")
            return None
        return sums

    def write(self, sums: npt.NDArray[np.float64]) -> None:
        """Puts the block on disk, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".partial-{uuid.uuid4().hex[:8]}-{self.path.name}")
        try:
            save_file({"logprobs": sums}, partial, metadata=dict(self.header))
            sync(partial)
            partial.replace(self.path)
            sync(self.path.parent)
        finally:
            partial.unlink(missing_ok=True)


def _serve(services: Services, reference: Reference, examples: Sequence[RankingExample]) -> None:
    """Has the reference served, unless a replica follows no channel of the run's and has another model for good."""
    for address, info in services.infos("reference").items():
        for model in info.models:
            if model.channel != CHANNELS["reference"]:
                reference.check(address, model.served)
    services.serve("reference", reference.folder)
    longest = max(len(example.prompt) + max(map(len, example.answers)) for example in examples)
    services.check_lengths(longest, ["reference"])


async def _ask(
    fleet: Fleet, reference: Reference, block: Sequence[RankingExample], *, timeout_s: float
) -> npt.NDArray[np.float64]:
    """float64 [answers of the block], several calls in flight."""
    items = [
        LogProbsItem(token_ids=example.prompt + answer, start_index=len(example.prompt))
        for example in block
        for answer in example.answers
    ]
    in_flight = asyncio.Semaphore(_CALLS_IN_FLIGHT)

    async def ask(part: Sequence[LogProbsItem]) -> list[float]:
        async def logprobs(client: AsyncClient) -> LogProbsResult:
            result = await client.logprobs(LogProbsRequest(items=tuple(part)), timeout_s=_CALL_TIMEOUT_S)
            reference.check(client.target, result.served)
            return result

        async with in_flight:
            cost = sum(len(item.token_ids) for item in part)
            result = await fleet.call(logprobs, cost=cost, timeout_s=timeout_s)
        return [float(one.logprobs.sum(dtype=np.float64)) for one in result.results]

    most = min(most_items(replica, _CALL_ITEMS) for replica in await fleet.wait_well())
    parts = [items[start : start + most] for start in range(0, len(items), most)]
    try:
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(part)) for part in parts]
    except TimeoutError:
        raise DeadlineExceeded(
            f"reference: the log-probs of {len(items)} answers were not there after {timeout_s:g} s: "
            f"{fleet.describe()}",
            field="dpo.reference_timeout_s",
            value=timeout_s,
        ) from None
    except BaseExceptionGroup as errors:
        raise first_error(errors) from errors
    return np.array([total for task in asked for total in task.result()], np.float64)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
