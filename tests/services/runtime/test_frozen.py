"""Services with a frozen model: one version a reply, deadlines of stream items, the end of the compute thread."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.convert import (
    logprobs_request_to_message,
    logprobs_result_from_message,
    score_request_to_message,
    score_result_from_message,
)
from trimtab.errors import InternalError
from trimtab.types import LogProbsItem, LogProbsRequest, ScoreItem, ScoreRequest
from trimtab.v1 import errors_pb2, info_pb2, reward_pb2, types_pb2, weights_pb2
from trimtab.weights import FetchedVersion
from trimtab_models.loading import load_policy, load_reward_model
from trimtab_models.versions import read_folder_tensors, tensor_to_data
from trimtab_services.reference.scorer import LogProbScorer
from trimtab_services.reference.scorer import canary as reference_canary
from trimtab_services.reference.servicer import ReferenceServicer
from trimtab_services.reward.hosted import HostedModel
from trimtab_services.reward.models import RewardModels
from trimtab_services.reward.scorer import Scorer
from trimtab_services.reward.scorer import canary as reward_canary
from trimtab_services.reward.servicer import RewardServicer
from trimtab_services.runtime.calls import Call, begin_call
from trimtab_services.runtime.config import FrozenModelConfig
from trimtab_services.runtime.frozen import BatchShapes, FrozenModelService
from trimtab_services.runtime.replica import ModelVersion
from trimtab_services.runtime.slots import ModelSlot
from trimtab_services.runtime.state import Runtime
from trimtab_services.runtime.tokenizers import tokenizer_of

PAIR = types_pb2.TokenIds(ids=[5, 6])
IDS = [(5, 6, 7, 8), (9,) * 7, (11, 12, 13), tuple(range(20, 27)), (3, 4), (70, 71, 72, 73)]


def model_version(folder: Path, directory: Path, version: int, **other_files: bytes) -> ModelVersion:
    """A folder's model as a version of a channel, its weights moved a little for each number."""
    tensors = {
        name: tensor_to_data(name, tensor + 0.02 * (version - 1))
        for name, tensor in read_folder_tensors(folder).items()
    }
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"}
    files |= other_files
    manifest = weights_pb2.Manifest(
        version=version,
        weights_digest=f"{version:064}",
        files=[
            weights_pb2.FileEntry(path=name, digest=hashlib.sha256(content).hexdigest(), length_bytes=len(content))
            for name, content in files.items()
        ],
    )
    return ModelVersion(directory / str(version), fetched=FetchedVersion(manifest, tensors, files))


@dataclass
class Bench:
    """A reward or reference service without its wire, whose batches can be held before they are given out."""

    kind: str
    folder: Path
    directory: Path

    def __post_init__(self) -> None:
        config = FrozenModelConfig(model_folder=self.folder, max_batch_tokens=16, default_deadline_s=0.3)
        self.runtime: Runtime[FrozenModelConfig] = Runtime(config, self.kind, f"trimtab.v1.{self.kind}")
        shapes = BatchShapes.of(config)
        is_reward = self.kind == "reward"
        load, canary = (load_reward_model, reward_canary) if is_reward else (load_policy, reference_canary)
        self.slot = ModelSlot(self.kind, load, canary)
        self._scorer: Any = Scorer(shapes) if is_reward else LogProbScorer(shapes)
        self.service = FrozenModelService(self.runtime, [(self.slot, config.source)], self._compute)
        scheduler = self.service.scheduler
        if is_reward:
            hosted = HostedModel(self.slot, scheduler, logit=0)
            models = RewardModels([hosted], max_items=config.max_items_per_request, metrics=self.runtime.metrics)
            self.servicer: Any = RewardServicer(config, models, charge=lambda caller: None)
        else:
            self.servicer = ReferenceServicer(config, self.slot, scheduler, charge=lambda caller: None)
        self.computed, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def _compute(self, group: Any, payloads: list[Any]) -> Sequence[Any]:
        found = self._scorer.compute(group, payloads)
        self.computed.set()
        assert self.go_on.wait(20)
        return found

    async def load(self, version: int) -> None:
        await self.slot.load(model_version(self.folder, self.directory, version))

    async def ask(self) -> tuple[int, list[Any]]:
        """All sequences in one request; the version that the reply claims, and a value for each."""
        if self.kind == "reward":
            score_request = ScoreRequest(items=tuple(ScoreItem(token_ids=ids) for ids in IDS))
            scored = score_result_from_message(await self.servicer.Score(score_request_to_message(score_request), None))
            return scored.served.version, [score.reward for score in scored.scores]
        request = LogProbsRequest(items=tuple(LogProbsItem(token_ids=ids) for ids in IDS))
        found = logprobs_result_from_message(await self.servicer.LogProbs(logprobs_request_to_message(request), None))
        return found.served.version, [result.logprobs.sum() for result in found.results]


def run(bench_of: Callable[[], Bench], body: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = bench_of()
        await bench.load(1)
        await bench.runtime.set_state(info_pb2.SERVICE_STATE_SERVING)
        try:
            async with asyncio.timeout(60):
                await body(bench)
        finally:
            bench.go_on.set()
            await bench.service.scheduler.close()

    asyncio.run(main())


@pytest.mark.parametrize(("kind", "folder"), [("reward", "reward_folder"), ("reference", "llama_folder")])
def test_a_reply_comes_from_one_version_whatever_is_swapped_meanwhile(
    kind: str, folder: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async def body(bench: Bench) -> None:
        _, expected = await bench.ask()
        bench.computed.clear()
        bench.go_on.clear()
        asking = asyncio.create_task(bench.ask())
        await asyncio.to_thread(bench.computed.wait, 10)  # its first batch of several is computed
        await bench.load(2)
        bench.go_on.set()
        version, found = await asking
        assert version == 1 and np.allclose(found, expected, atol=1e-5)
        version, changed = await bench.ask()
        assert version == 2 and not np.allclose(changed, expected, atol=1e-3)

    run(lambda: Bench(kind, request.getfixturevalue(folder), tmp_path), body)


def test_a_tokenizer_is_loaded_again_only_when_a_file_changes(llama_folder: Path, tmp_path: Path) -> None:
    first = tokenizer_of(model_version(llama_folder, tmp_path, 1), None)
    assert tokenizer_of(model_version(llama_folder, tmp_path, 2), first) is first
    template = b"{{ messages[0]['content'] }}"
    changed = tokenizer_of(model_version(llama_folder, tmp_path, 3, **{"chat_template.jinja": template}), first)
    assert changed.digest == first.digest and changed.chat_template_digest != first.chat_template_digest
    assert list(tmp_path.iterdir()) == []  # no weights were written for it


def test_an_item_of_a_stream_has_the_default_deadline(reward_folder: Path, tmp_path: Path) -> None:
    """The stream goes on: only the answer that does not come in time is an error."""

    async def body(bench: Bench) -> None:
        first_answered = asyncio.Event()

        async def items() -> AsyncIterator[reward_pb2.ScoreStreamRequest]:
            yield reward_pb2.ScoreStreamRequest(item=reward_pb2.ScoreItem(item_id="late", token_ids=PAIR))
            await first_answered.wait()
            await asyncio.sleep(0.5)  # longer than an item has
            yield reward_pb2.ScoreStreamRequest(item=reward_pb2.ScoreItem(item_id="good", token_ids=PAIR))

        bench.go_on.clear()
        begin_call(Call("ScoreStream", "id", "caller", None))
        began = time.monotonic()
        answers: dict[str, reward_pb2.ItemScore] = {}
        async for reply in bench.servicer.ScoreStream(items(), None):
            answers[reply.score.item_id] = reply.score
            if len(answers) == 1:
                assert 0.3 <= time.monotonic() - began < 5
            bench.go_on.set()
            first_answered.set()
        assert answers["late"].error.reason == errors_pb2.REASON_DEADLINE_EXCEEDED
        assert not answers["good"].HasField("error")

    run(lambda: Bench("reward", reward_folder, tmp_path), body)


def test_a_service_whose_compute_thread_has_ended_is_failed(reward_folder: Path, tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        def end() -> None:
            raise SystemExit("out of memory")

        waiting = asyncio.create_task(bench.service.scheduler.run_between(end))
        with pytest.raises(InternalError, match="SystemExit: out of memory"):
            await waiting
        while bench.runtime.state != info_pb2.SERVICE_STATE_FAILED:
            await asyncio.sleep(0.01)
        assert "SystemExit: out of memory" in bench.runtime.state_reason
        for refused in (bench.ask(), _refused(bench.runtime)):
            with pytest.raises(InternalError, match="SystemExit: out of memory"):
                await refused
        await bench.load(2)
        await bench.runtime.set_state(info_pb2.SERVICE_STATE_SERVING)  # as a follower does after a swap
        assert bench.runtime.state == info_pb2.SERVICE_STATE_FAILED

    run(lambda: Bench("reward", reward_folder, tmp_path), body)


async def _refused(runtime: Runtime[FrozenModelConfig]) -> None:
    runtime.refuse_unless_serving()
