"""Configuration of the generation service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trimtab.errors import ConfigError
from trimtab_services.runtime.config import ModelServiceConfig, check_one_source, is_loopback

__all__ = ["GenerationConfig", "TGIConfig"]

_OWN_MODEL = {
    "model_folder": "the remote server has the model",
    "weights": "TGI cannot change its weights, so no channel can be followed",
    "cache_directory": "no version is ever fetched",
    "dtype": "the remote server decides it",
    "device": "the remote server decides it",
    "deterministic": "the remote server promises no bit-equal answers",
    "kv_on_swap": "TGI cannot change its weights",
    "kv_cache_gib": "the remote server has the keys and values",
    "prefill_tokens_per_step": "the remote server schedules prefill",
    "prefill_chunk_tokens": "the remote server schedules prefill",
}
"""Keys that mean nothing for a model that runs elsewhere, and why."""

_MOST_REMOTE_SLOTS = 100
"""Connections that the HTTP client of huggingface_hub opens at most; more requests would wait in it unseen."""


class TGIConfig(BaseModel):
    """A remote server of text-generation-inference (TGI), or one that speaks its API."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$", description="Such as `http://tgi:80`.")
    tokenizer_folder: Path = Field(
        description="Folder with the remote model's tokenizer; its config.json, where there, tells further EOS ids."
    )
    token_file: Path | None = Field(default=None, description="File that holds the bearer token, re-read on change.")
    timeout_s: float = Field(
        default=600.0, gt=0, le=86400, description="Most seconds that the remote server gets for one completion."
    )

    @field_validator("url")
    @classmethod
    def _has_a_host(cls, url: str) -> str:
        parts = urlsplit(url)
        if not parts.hostname or parts.port == 0:  # asking for the port checks it
            raise ValueError("must have a host, and a port of 1 to 65535 where it has one")
        return url

    @field_validator("tokenizer_folder")
    @classmethod
    def _is_a_folder(cls, folder: Path) -> Path:
        if not folder.is_dir():
            raise ValueError("no such folder")
        return folder

    @field_validator("token_file")
    @classmethod
    def _is_a_file(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError("no such file")
        return path


class GenerationConfig(ModelServiceConfig):
    """What `trimtab serve generation` takes besides what every model service takes."""

    engine: Literal["transformers", "vllm", "tgi"] = Field(
        default="transformers",
        description="What samples tokens. vllm: vLLM in this process, which must be installed. tgi: a remote server, "
        "for evaluation, baselines and labeling.",
    )
    tgi: TGIConfig | None = Field(default=None, description="The remote server of the engine `tgi`.")
    slots: int = Field(
        default=32, ge=1, le=4096, description="Sequences that run at the same time; with `tgi`, requests to it."
    )
    max_sequence_tokens: int | None = Field(
        default=None, ge=2, description="Most tokens of prompt plus completion. Unset: the model's context length."
    )
    prefill_tokens_per_step: int = Field(
        default_factory=lambda known: 512 if known.get("device") == "cpu" else 4096,
        ge=1,
        description="Most prompt tokens computed between two decode steps: bounds the stall. Unset: 512 on a CPU, "
        "4,096 elsewhere.",
    )
    prefill_chunk_tokens: int = Field(
        default_factory=lambda known: 256 if known.get("device") == "cpu" else 2048,
        ge=1,
        description="Longest piece of one prompt in a forward; at most what a step computes. Unset: 256 on a CPU, "
        "2,048 elsewhere.",
    )
    kv_on_swap: Literal["recompute", "keep"] = Field(
        default="recompute", description="What becomes of the KV cache of a sequence that goes on under new weights."
    )
    kv_cache_gib: float | None = Field(
        default=None,
        gt=0,
        description="GiB for keys and values, with engine vllm. Unset: what all slots need on a CPU, what vLLM finds "
        "free on a GPU.",
    )
    max_items_per_request: int = Field(default=8192, ge=1, description="Most completions of one request.")
    max_queue_tokens: int = Field(
        default=4_000_000, ge=1, description="Most tokens (prompts and allowed new ones) waiting and running."
    )

    @property
    def remote(self) -> TGIConfig:
        """The remote server of the engine `tgi`.

        Raises:
            ConfigError: there is none, since the engine is another one.
        """
        if self.tgi is None:
            raise ConfigError(f"tgi: is not set with engine {self.engine!r}", field="tgi")
        return self.tgi

    @model_validator(mode="after")
    def _one_source(self) -> GenerationConfig:
        if self.engine == "tgi":
            self._check_remote()
            return self
        if self.tgi is not None:
            raise ValueError(f"tgi: means nothing for engine {self.engine!r}; allowed: engine tgi")
        if self.engine == "vllm" and self.deterministic:
            raise ValueError(
                "deterministic: true is not possible with engine 'vllm', whose kernels add up in an order that depends "
                "on the neighbours; allowed: false, or engine transformers"
            )
        if self.engine != "vllm" and self.kv_cache_gib is not None:
            raise ValueError(f"kv_cache_gib: means nothing for engine {self.engine!r}; allowed: engine vllm")
        check_one_source(self.model_folder, self.weights)
        return self

    def _check_remote(self) -> None:
        """Refuses an engine `tgi` without a remote server, and with what only a model of one's own can have."""
        if self.tgi is None:
            raise ValueError("tgi.url: is missing; engine 'tgi' needs `tgi` with `url` and `tokenizer_folder`")
        for key, why in _OWN_MODEL.items():
            value, field = getattr(self, key), type(self).model_fields[key]
            if value != field.get_default(call_default_factory=True, validated_data={"device": self.device}):
                raise ValueError(f"{key}: {value} is not allowed with engine 'tgi': {why}")
        if self.slots > _MOST_REMOTE_SLOTS:
            raise ValueError(f"slots: {self.slots} is too many for engine 'tgi'; allowed: 1..{_MOST_REMOTE_SLOTS}")
        url = urlsplit(self.tgi.url)
        if self.tgi.token_file is None or url.scheme == "https" or self.insecure:
            return
        if not is_loopback(url.hostname or ""):
            raise ValueError(
                f"tgi.token_file: its token would cross the network to {self.tgi.url} in plaintext; allowed: an https "
                "URL, or an explicit `insecure: true`"
            )
