"""The policy behind a TGI server: what it is, whether it answers, and what can be asked of it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from transformers import PreTrainedTokenizerBase

from trimtab.errors import Reason, SequenceTooLong, TrimtabError, Unavailable, Unsupported, VersionUnavailable
from trimtab.types import GenerateRequest, SamplingParams, ServedModel
from trimtab.v1 import info_pb2
from trimtab_models.tokenizer import chat_template_digest, eos_token_ids, load_tokenizer, tokenizer_digest
from trimtab_services.generation.config import GenerationConfig
from trimtab_services.generation.engines.base import EngineLoad
from trimtab_services.generation.remote.answers import RemoteInfo
from trimtab_services.generation.remote.client import TGIClient
from trimtab_services.generation.remote.host import VERSION, RemoteHost
from trimtab_services.generation.remote.prompts import PromptTexts, probe_text
from trimtab_services.generation.serving import check_fits, describe_work
from trimtab_services.runtime.rate import Rate
from trimtab_services.runtime.state import Runtime, State
from trimtab_services.runtime.threads import in_own_thread

__all__ = ["RemotePolicy"]

_log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 1.0
"""How long a remote server that came or went stays unnoticed, at most, as long as it answers at all."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A remote server that answers: what it is, how it reads, and what requests are read with here."""

    info: RemoteInfo
    texts: PromptTexts
    tokenizer: PreTrainedTokenizerBase


class RemotePolicy:
    """Fills the role of `serving.Policy`; `run` is its background work.

    Args:
        runtime: of the server; its state follows the remote server's.

    Raises:
        ConfigError: as `TGIClient`.
    """

    def __init__(self, runtime: Runtime[GenerationConfig]) -> None:
        self._runtime = runtime
        self._config = runtime.config
        self._folder = self._config.remote.tokenizer_folder
        self._client = TGIClient(self._config.remote)
        self._rate = Rate()
        self._remote: _Known | None = None
        self._facts = info_pb2.ModelInfo()
        self._host = RemoteHost(
            self._client,
            slots=self._config.slots,
            max_queue_tokens=self._config.max_queue_tokens,
            text_of=lambda token_ids: self._known.texts.text_of(token_ids),
            on_finished=self._count,
            on_load=self._show_load,
        )
        self.name = self._config.model_name or "policy"
        self.origin = ""
        self.served = ServedModel(name=self.name)
        self.version_moved = asyncio.Event()

    @property
    def host(self) -> RemoteHost:
        """Where sequences go.

        Raises:
            Unavailable: the remote server does not answer.
        """
        _ = self._known
        return self._host

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the configured folder; Unavailable while the remote server does not answer."""
        return self._known.tokenizer

    async def run(self) -> None:
        """Background work of the service: reads the tokenizer, then looks after the remote server for ever.

        Raises:
            ModelFolderError: the tokenizer cannot be used.
        """
        tokenizer = await in_own_thread(self._load)
        while True:
            try:
                await self._look(tokenizer)
            except TrimtabError as error:
                self._remote = None
                await self._runtime.set_state(State.SERVICE_STATE_WAITING_FOR_VERSION, error.message)
            await asyncio.sleep(_LOOK_AGAIN_S)

    def check_request(self, request: GenerateRequest) -> None:
        """Refuses what TGI cannot do.

        Raises:
            Unsupported: a sampling parameter that TGI does not have.
            VersionUnavailable: a version is pinned.
        """
        pinned = request.version
        if pinned.exactly is not None or (pinned.at_least or 0) > VERSION:
            raise VersionUnavailable(
                f"version: {pinned} is asked for; this replica asks a TGI server, which cannot change its weights, so "
                "no version can be pinned and none will come",
                field="version",
                value=str(pinned),
                limit="any",
                metadata={"served_version": str(VERSION)},
            )
        default = SamplingParams()
        for field in ("min_new_tokens", "stop_token_ids", "ignore_eos"):
            if (value := getattr(request.sampling, field)) != getattr(default, field):
                raise Unsupported(
                    f"sampling.{field}: a TGI server cannot do that; it may be left out",
                    field=f"sampling.{field}",
                    value=value,
                    limit=getattr(default, field) or "unset",
                )

    def check_sequence(self, token_ids: tuple[int, ...], sampling: SamplingParams) -> None:
        """Checks a prompt against what the remote server takes.

        Raises:
            InvalidRequest: a token id outside the vocabulary.
            SequenceTooLong: the prompt, or prompt plus `max_new_tokens`, over the limit.
            Unsupported: no text is known that the server reads as these token ids.
        """
        known, read = self._known, len(token_ids)
        check_fits(token_ids, sampling, self._facts)
        if read > known.info.max_input_tokens:
            raise SequenceTooLong(
                f"prompt: {read} prompt tokens; the remote server reads at most {known.info.max_input_tokens}",
                field="prompt",
                value=read,
                limit=known.info.max_input_tokens,
            )
        known.texts.text_of(token_ids)

    def describe(self, response: info_pb2.GetInfoResponse) -> None:
        """The service's part of GetInfo; what the remote server told last stays while it does not answer."""
        model = response.models.add()
        model.CopyFrom(self._facts)
        for field in ("name", "version", "weights_digest", "tokenizer_digest", "chat_template_digest"):
            setattr(model.served, field, getattr(self.served, field))
        rate = self._rate.recent_tokens_per_second(time.monotonic())
        describe_work(response, self._config, self._host.load, rate)

    async def close(self) -> None:
        """Drops what is held and closes the connections."""
        await self._host.close()
        await self._client.close()

    async def _look(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Asks the remote server whether it is there; one that is new or another model is got to know first.

        Raises:
            TrimtabError: it cannot be used now; says why.
        """
        info = await self._client.info()
        if self._remote is None or info != self._remote.info:
            # one of its own: requests are read in threads, and one tokenizer is no two threads'
            own = deepcopy(tokenizer)
            texts = PromptTexts(own, await self._client.tokenize(probe_text(own)))
            self._adopt(_Known(info, texts, tokenizer))
            _log.info("remote server", extra={"url": self._client.url, "model": info.model_id, "sha": info.model_sha})
        if self._runtime.state != State.SERVICE_STATE_SERVING:
            await self._runtime.set_state(State.SERVICE_STATE_SERVING)

    def _adopt(self, remote: _Known) -> None:
        info, own_limit = remote.info, self._config.max_sequence_tokens
        self._facts.max_sequence_tokens = min(info.max_total_tokens, own_limit or info.max_total_tokens)
        self._facts.dtype = info.model_dtype or ""
        self.origin = info.model_id
        self.served = replace(self.served, weights_digest=info.digest)
        self._remote = remote

    def _load(self) -> PreTrainedTokenizerBase:
        """Reads the tokenizer and what its folder says of the model. Blocks."""
        tokenizer = load_tokenizer(self._folder)
        self._facts.vocab_size = len(tokenizer)
        self._facts.eos_token_ids.extend(eos_token_ids(tokenizer, *_model_configs(self._folder)))
        self.served = replace(
            self.served,
            tokenizer_digest=tokenizer_digest(tokenizer),
            chat_template_digest=chat_template_digest(tokenizer),
        )
        return tokenizer

    @property
    def _known(self) -> _Known:
        if self._remote is None:
            reason = self._runtime.state_reason or "it has not answered yet"
            raise Unavailable(f"{self._client.url} does not serve: {reason}", reason=Reason.WAITING_FOR_VERSION)
        return self._remote

    def _count(self, seconds: float, tokens: int) -> None:
        self._rate.add(time.monotonic(), tokens, seconds)
        self._runtime.metrics.compute_seconds.observe(seconds)
        self._runtime.metrics.generated_tokens.inc(tokens)

    def _show_load(self, load: EngineLoad) -> None:
        self._runtime.metrics.queue_size.set(load.waiting_sequences)
        self._runtime.metrics.queue_tokens.set(load.outstanding_tokens)


def _model_configs(folder: Path) -> Iterator[SimpleNamespace]:
    """The model's config and generation config, where the folder has them: they may name further EOS ids."""
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            yield SimpleNamespace(eos_token_id=content.get("eos_token_id"))
