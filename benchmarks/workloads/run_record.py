"""What a finished run leaves behind, and in what another one differs from it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab import Client
from trimtab.v1 import weights_pb2
from trimtab_trainer.checkpoint_tensors import TensorFiles
from trimtab_trainer.ppo_metrics import WORK
from trimtab_trainer.reporter import EventKind, read_events

__all__ = ["RunRecord"]

Sample = tuple[str, int, str]
"""prompt_id, sample index, digest of all that the services said of it."""


@dataclass(frozen=True)
class RunRecord:
    """One finished run; an iteration that was done again after a kill counts with each of its tries.

    Attributes:
        files: SHA-256 of the trained models and of the last checkpoint's tensors and state: weights of policy and
            values, their running mean, optimizers, all else.
        metrics: of each iteration, version and lag among them, without what its work took.
        batches: the samples of each iteration, in the order in which they were learnt from.
        versions: (stage, step, weights digest) of those that the store has kept, by number.
        latest: version that the policy's channel points to at the end.
        step_times: when each iteration ended, seconds since the epoch, in order.
    """

    files: dict[str, str]
    metrics: dict[int, list[dict[str, float]]]
    batches: dict[int, list[list[Sample]]]
    versions: dict[int, tuple[str, int, str]]
    latest: int
    step_times: list[float]

    @classmethod
    def read(cls, directory: Path, batches: Path, weights_address: str) -> RunRecord:
        """Reads what a run has left in its folder, its witness in `batches`, and the weights service in its store."""
        metrics: dict[int, list[dict[str, float]]] = defaultdict(list)
        times = []
        for event in read_events(directory / "events.jsonl"):
            if event.event is EventKind.STEP_DONE:
                told = event.fields["metrics"].items()
                metrics[event.step].append({name: value for name, value in told if not name.startswith(WORK)})
                times.append(event.time)
        with Client(weights_address, timeout_s=60) as client:
            versions = dict(_versions(client))
            channels = client.list_channels(weights_pb2.ListChannelsRequest(prefix="policy/latest")).channels
        return cls(_digests(directory), dict(metrics), _batches(batches), versions, channels[0].version, sorted(times))

    @property
    def redone(self) -> int:
        """Iterations that were begun again after a kill."""
        return sum(len(tries) - 1 for tries in self.batches.values())

    def lost_and_duplicated(self, prompts: int, samples: int) -> tuple[int, int]:
        """Samples that a batch lacks, and those that it has twice or should not have, over all batches.

        Args:
            prompts: of an iteration; their ids are counted through all of them.
            samples: completions of a prompt.
        """
        lost = surplus = 0
        for iteration in range(1, max(self.metrics) + 1):
            ids = range((iteration - 1) * prompts, iteration * prompts)
            expected = Counter((str(prompt), index) for prompt in ids for index in range(samples))
            for batch in self.batches.get(iteration, [[]]):
                found = Counter((prompt_id, index) for prompt_id, index, _ in batch)
                lost += (expected - found).total()
                surplus += (found - expected).total()
        return lost, surplus

    def differences(self, other: RunRecord) -> list[str]:
        """In what another run of the same spec differs; empty when it is the same to the last bit."""
        kept = (
            self.versions.keys() & other.versions.keys()
        )  # what else is kept as a base depends on where a run resumed
        newest = [{"the newest version": max(run.versions), "policy/latest": run.latest} for run in (self, other)]
        return [
            *_differing("", self.files, other.files),
            *_differing("metrics of iteration ", _each(self.metrics), _each(other.metrics)),
            *_differing("samples of iteration ", _each(self.batches), _each(other.batches)),
            *_differing("version ", *({number: run.versions[number] for number in kept} for run in (self, other))),
            *_differing("", *newest),
        ]


def _each(tries: Mapping[int, Sequence[object]]) -> dict[int, object]:
    """What all tries of an iteration have in common: the one value, or all of them where they differ."""
    return {key: values[0] if all(value == values[0] for value in values) else values for key, values in tries.items()}


def _differing(what: str, one: Mapping[Any, object], other: Mapping[Any, object]) -> list[str]:
    return [f"{what}{key}" for key in dict.fromkeys((*one, *other)) if one.get(key) != other.get(key)]


def _digests(directory: Path) -> dict[str, str]:
    last = max((directory / "checkpoints" / "ppo").glob("step-*"))
    files = [*sorted((directory / "models").rglob("*.safetensors")), last / "state.json"]
    digests = {str(f.relative_to(directory)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    tensors = hashlib.sha256()  # not the bytes of their files, whose headers have an order of chance
    for name, tensor in sorted(TensorFiles(last).items()):
        tensors.update(name.encode() + tensor.numpy().tobytes())
    return {**digests, str(last.relative_to(directory)): tensors.hexdigest()}


def _batches(folder: Path) -> dict[int, list[list[Sample]]]:
    found: dict[int, list[list[Sample]]] = defaultdict(list)
    for path in sorted(folder.glob("[0-9]*.json")):
        found[int(path.name.partition(".")[0])].append([tuple(sample) for sample in json.loads(path.read_text())])
    return dict(found)


def _versions(client: Client) -> Iterator[tuple[int, tuple[str, int, str]]]:
    token = ""
    while True:
        page = client.list_versions(weights_pb2.ListVersionsRequest(page_size=1000, page_token=token))
        yield from ((row.version, (row.stage, row.step, row.weights_digest)) for row in page.versions)
        if not (token := page.next_page_token):
            return
