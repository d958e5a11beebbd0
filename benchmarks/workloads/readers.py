"""A large model of random weights, and processes that read versions of it as a replica does, without serving them."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from workloads.models import EOS, PAD, id_tokenizer

from trimtab import Client
from trimtab.v1 import weights_pb2
from trimtab.weights import FetchedVersion, fetch_version

_VOCAB = 32_000


class LargeModel:
    """A Llama of about 1 billion random bfloat16 parameters.

    Attributes:
        model, tokenizer: to publish.
        parameters: their number.
        largest_tensor_bytes: bytes of the largest one.
    """

    def __init__(self) -> None:
        torch.manual_seed(7)
        config = LlamaConfig(
            vocab_size=_VOCAB,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=16,
            num_key_value_heads=4,
            max_position_embeddings=512,
            pad_token_id=PAD,
            eos_token_id=EOS,
            bos_token_id=None,
            tie_word_embeddings=True,
            dtype=torch.bfloat16,
        )
        self.model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
        self.tokenizer = id_tokenizer(_VOCAB)
        sizes = [parameter.numel() for parameter in self.model.parameters()]
        self.parameters = sum(sizes)
        self.largest_tensor_bytes = 2 * max(sizes)

    @torch.no_grad()
    def change(self, density: float) -> None:
        """Moves a share of all elements by one unit in the last place."""
        generator = torch.Generator().manual_seed(0)
        for parameter in self.model.parameters():
            bits = parameter.view(torch.int16).view(-1)
            for piece in bits.split(1 << 24):
                piece += (torch.rand(piece.shape, generator=generator) < density).to(torch.int16)


class Readers:
    """Processes that follow a channel; made by `read_versions`."""

    def __init__(self, processes: list[BaseProcess], pipes: list[Connection]) -> None:
        self._processes = processes
        self._pipes = pipes
        self._memory: list[float] = []

    def wait_for(self, version: int, timeout_s: float = 900.0) -> None:
        """Returns once every reader has a version, whole and verified."""
        give_up = time.monotonic() + timeout_s
        for pipe in self._pipes:
            found = 0
            while found != version:
                if not pipe.poll(max(0.0, give_up - time.monotonic())):
                    raise SystemExit(f"a reader does not have version {version} after {timeout_s:g} s")
                found, memory = pipe.recv()
                self._memory.append(memory)

    def memory_growth_mb(self) -> float:
        """Most anonymous memory that any reader needed beyond what it began with, in MB."""
        return round(max(self._memory) / 1e6)

    def end(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.terminate()
            process.join()


@contextmanager
def read_versions(target: str, channel: str, folder: Path, count: int) -> Iterator[Readers]:
    """Readers of a channel for as long as the context lasts."""
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = []
    pipes: list[Connection] = []
    for number in range(count):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_read, args=(target, channel, folder / str(number), theirs), daemon=True)
        process.start()
        processes.append(process)
        pipes.append(ours)
    readers = Readers(processes, pipes)
    try:
        yield readers
    finally:
        readers.end()


def _read(target: str, channel: str, folder: Path, told: Connection) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    held: FetchedVersion | None = None
    with Client(target, timeout_s=600) as client:
        for reply in client.watch(weights_pb2.WatchRequest(channel=channel), timeout_s=3600):
            if reply.version and (held is None or held.version != reply.version):
                with _PeakMemory() as memory:
                    held = fetch_version(client, version=reply.version, cache=folder, base=held)
                told.send((held.version, memory.growth_bytes))


class _PeakMemory:
    """Most memory that no file backs, sampled while the body runs.

    Attributes:
        growth_bytes: beyond what it was at the start.
    """

    def __enter__(self) -> _PeakMemory:
        self.growth_bytes = 0
        self._began = _anonymous_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.growth_bytes = max(self.growth_bytes, _anonymous_bytes() - self._began)


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
