"""The policy that a generation replica serves: engine, tokenizer, version, and how a newer version takes its place."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.errors import Mismatch, Reason, Unavailable
from trimtab.types import GenerateRequest, SamplingParams, ServedModel
from trimtab.v1 import info_pb2
from trimtab_models.devices import give_back_memory
from trimtab_models.loading import load_policy, vocab_size
from trimtab_models.tokenizer import eos_token_ids
from trimtab_services.generation.config import GenerationConfig
from trimtab_services.generation.engines.base import Engine, EngineLoad
from trimtab_services.generation.engines.transformers import TransformersEngine
from trimtab_services.generation.host import EngineHost
from trimtab_services.generation.serving import check_fits, describe_work
from trimtab_services.runtime.replica import ModelVersion
from trimtab_services.runtime.state import Runtime
from trimtab_services.runtime.threads import in_own_thread
from trimtab_services.runtime.tokenizers import ServedTokenizer, tokenizer_of

__all__ = ["PolicyHolder"]

_IDLE_S = 1.0


class PolicyHolder:
    """Holds the engine once the first version is there, and brings later ones in.

    Args:
        runtime: of the server.

    Attributes:
        name: of the model in requests and in GetInfo.
        origin: the folder that it comes from; empty for a channel.
        served: which model answers now.
        version_moved: set, and replaced by a fresh one, each time the served version moves.
    """

    def __init__(self, runtime: Runtime[GenerationConfig]) -> None:
        self._runtime = runtime
        self._config = config = runtime.config
        self._host: EngineHost | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._model_config: dict[str, Any] = {}
        self._tokenizer: ServedTokenizer | None = None
        self._facts = info_pb2.ModelInfo()
        self.name = config.model_name or "policy"
        self.origin = str(config.model_folder or "")
        self.served = ServedModel(name=self.name)
        self.version_moved = asyncio.Event()

    @property
    def host(self) -> EngineHost:
        """The engine's host.

        Raises:
            Unavailable: there is no version yet.
        """
        if self._host is None:
            raise Unavailable(f"{self.name}: there is no version yet", reason=Reason.WAITING_FOR_VERSION)
        return self._host

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the served version; Unavailable while there is none."""
        if self._tokenizer is None:
            raise Unavailable(f"{self.name}: there is no version yet", reason=Reason.WAITING_FOR_VERSION)
        return self._tokenizer.tokenizer

    async def load(self, version: ModelVersion) -> None:
        """Serves a version: builds the engine for the first, stages and swaps every later one.

        Only the swap itself happens between two steps; sequences run on while the version is read, checked and tried. A
        version of another architecture or size gets an engine of its own, and the old one ends what it holds.

        Raises:
            TrimtabError: the version cannot be served; the one before goes on serving.
        """
        before = self._tokenizer
        tokenizer = await in_own_thread(lambda: tokenizer_of(version, before))
        if self._host is None:
            await self._start(version, tokenizer.tokenizer)
        elif version.same_weights:
            await self._host.call(lambda engine: engine.renumber(version.version))
        else:
            try:
                await self._host.stage(version.version, version.tensors)
            except Mismatch:
                if _config_of(version) == self._model_config:
                    raise
                await self._replace(version, tokenizer.tokenizer)
            else:
                self._runtime.metrics.swap_pause_seconds.observe(await self._host.swap())
        self._tokenizer = tokenizer
        self.served = ServedModel(
            name=self.name,
            version=version.version,
            weights_digest=version.weights_digest,
            tokenizer_digest=tokenizer.digest,
            chat_template_digest=tokenizer.chat_template_digest,
        )
        moved, self.version_moved = self.version_moved, asyncio.Event()
        moved.set()

    def check_request(self, request: GenerateRequest) -> None:
        """Lets every request through: the engine honours all sampling parameters, and any version may yet come."""

    def check_sequence(self, token_ids: tuple[int, ...], sampling: SamplingParams) -> None:
        """Checks a prompt against the model, before anything is queued.

        Raises:
            InvalidRequest: a token id outside the vocabulary.
            SequenceTooLong: prompt plus `max_new_tokens` over the limit.
        """
        check_fits(token_ids, sampling, self._facts)

    def describe(self, response: info_pb2.GetInfoResponse) -> None:
        """The service's part of GetInfo; channel and swap errors are the follower's."""
        response.device = self._config.device
        model = response.models.add()
        model.CopyFrom(self._facts)
        for field in ("name", "version", "weights_digest", "tokenizer_digest", "chat_template_digest"):
            setattr(model.served, field, getattr(self.served, field))
        host = self._host
        load, rate = (None, 0.0) if host is None else (host.load, host.tokens_per_second)
        describe_work(response, self._config, load, rate)

    async def close(self) -> None:
        """Ends every engine's thread."""
        for task in self._retiring:
            task.cancel()
        if self._host is not None:
            await self._host.close()

    async def _replace(self, version: ModelVersion, tokenizer: PreTrainedTokenizerBase) -> None:
        """Another engine takes what comes from now on; the old one goes once it holds nothing."""
        old = self.host
        await self._start(version, tokenizer)

        async def retire() -> None:
            try:
                idle_since = time.monotonic()
                while time.monotonic() - idle_since < _IDLE_S:  # a call that was about to submit has done so by then
                    await asyncio.sleep(0.1)
                    if old.load.busy_slots or old.load.waiting_sequences:
                        idle_since = time.monotonic()
            finally:
                await asyncio.shield(old.close())

        task = asyncio.create_task(retire())
        self._retiring.add(task)
        task.add_done_callback(self._retired)

    def _retired(self, task: asyncio.Task[None]) -> None:
        self._retiring.discard(task)
        give_back_memory()

    async def _start(self, version: ModelVersion, tokenizer: PreTrainedTokenizerBase) -> None:
        config = self._config
        device = "cpu" if config.engine == "vllm" else config.device  # vLLM has a copy of its own on the device
        model = await in_own_thread(lambda: load_policy(version.folder(), dtype=config.dtype, device=device))
        eos = eos_token_ids(tokenizer, model.config, model.generation_config)
        engine = await in_own_thread(lambda: _engine(config, model, version.version, tokenizer, eos))
        self._model_config = await in_own_thread(lambda: _config_of(version))
        self._facts = info_pb2.ModelInfo(
            architecture=type(model).__name__,
            parameter_count=sum(parameter.numel() for parameter in model.parameters()),
            dtype=config.dtype,
            vocab_size=vocab_size(model),
            max_sequence_tokens=engine.max_sequence_tokens,
            eos_token_ids=eos,
        )
        self._host = EngineHost(
            engine,
            max_queue_tokens=config.max_queue_tokens,
            loop=asyncio.get_running_loop(),
            on_step=self._count_step,
            on_fault=lambda error: self._runtime.fail(f"the engine has failed: {type(error).__name__}: {error}"),
        )

    def _count_step(self, seconds: float, tokens: int, load: EngineLoad) -> None:
        metrics = self._runtime.metrics
        metrics.compute_seconds.observe(seconds)
        metrics.batch_items.observe(load.busy_slots)
        metrics.generated_tokens.inc(tokens)
        metrics.queue_size.set(load.waiting_sequences)
        metrics.queue_tokens.set(load.outstanding_tokens)


def _engine(
    config: GenerationConfig,
    model: PreTrainedModel,
    version: int,
    tokenizer: PreTrainedTokenizerBase,
    eos: tuple[int, ...],
) -> Engine:
    """The engine that the configuration names, around a model that becomes its own."""
    if config.engine == "vllm":
        from trimtab_services.generation.engines.vllm.engine import VLLMEngine

        make = partial(
            VLLMEngine,
            device=config.device,
            kv_cache_bytes=None if config.kv_cache_gib is None else int(config.kv_cache_gib * 2**30),
        )
    else:
        make = TransformersEngine
    return make(
        model,
        version=version,
        tokenizer=tokenizer,
        eos_token_ids=eos,
        slots=config.slots,
        max_sequence_tokens=config.max_sequence_tokens,
        prefill_tokens_per_step=config.prefill_tokens_per_step,
        prefill_chunk_tokens=config.prefill_chunk_tokens,
        deterministic=config.deterministic,
        kv_on_swap=config.kv_on_swap,
    )


def _config_of(version: ModelVersion) -> dict[str, Any]:
    """What config.json says of the model, but for the dtype of its file."""
    with version.small_files() as folder:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype", "transformers_version")}
