"""What publishing a policy costs: bytes sent, time until the last replica serves, pause of generation.

Four parts, all but the first by real processes over the loopback:

- `codec`: sizes and speeds of the codec alone, on 4 million weights that AdamW has moved on simulated gradients, and
  how fast a weights service sends a blob of 256 MiB.
- `payload`: PPO-ptx runs of SmolLM2-135M at learning rates 1e-6 and 1e-5, with 1 and 8 optimizer steps to a
  publication, published in bfloat16. What a publication sends over the dense bytes, beside three other ways to send the
  same pair of versions: zstd of the dense bytes, zstd of their XOR, and int32 index + bfloat16 value of each changed
  element. The scores come from an untrained reward model: what is learnt means nothing, the steps are PPO-ptx's.
- `fleet`: the same model served by 8 replicas on this machine: from the optimizer step to the last of them serving, the
  pause of a replica that samples meanwhile, and the bytes that left the publisher.
- `large`: 1 billion random parameters, one replica that serves and seven readers that fetch, decode, verify and
  discard. Wants 24 GiB of memory and 40 GiB of disk, so it runs when it is asked for.

    python benchmarks/publication.py [--parts codec payload fleet large] [--replicas 8]

Claim: a publication at learning rate 1e-6 with one step is at most 5 % of dense. The last line is one JSON object, and
`ratio` is that share.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
import zstandard
from workloads.codec import codec_figures
from workloads.language_model import ppo_ptx_spec, smollm2, untrained_reward_model
from workloads.metrics import metric, samples
from workloads.models import SHAPES, id_tokenizer, policy_model
from workloads.readers import LargeModel, read_versions

from trimtab import Client
from trimtab.local import CHANNELS, LocalServices, read_endpoints
from trimtab.types import GenerateRequest, GenerationPrompt, SamplingParams, ServiceState
from trimtab.v1 import trainer_pb2, weights_pb2
from trimtab.weights import BlobClient, FetchedVersion, fetch_version
from trimtab_models.loading import load_policy
from trimtab_models.versions import ModelPublisher
from trimtab_trainer.reporter import step_metrics

GOAL = 0.05
PARTS = ("codec", "payload", "fleet", "large")
BLOB_BYTES = 256 * 1024 * 1024
RATES = (1e-6, 1e-5)
STEPS = (1, 8)
CHANNEL = CHANNELS["generation"]


def share(numerator: float, denominator: float) -> float:
    return round(numerator / denominator, 5)


def other_ways(before: FetchedVersion, after: FetchedVersion) -> dict[str, float]:
    """Bytes over dense of other ways to send a version to whoever has the one before."""
    sizes = {"dense_zstd": 0, "xor_zstd": 0, "index_value": 0}
    dense = changed = 0
    compressor = zstandard.ZstdCompressor(level=3)
    for name, tensor in after.tensors.items():
        old, new = before.tensors[name].array().reshape(-1), tensor.array().reshape(-1)
        count = int(np.count_nonzero(old != new))
        dense, changed = dense + new.nbytes, changed + count
        sizes["dense_zstd"] += len(compressor.compress(new.tobytes()))
        sizes["xor_zstd"] += len(compressor.compress((old ^ new).tobytes()))
        sizes["index_value"] += count * (4 + new.itemsize)
    return {"changed": share(changed * 2, dense), **{name: share(size, dense) for name, size in sizes.items()}}


def codec(work: Path) -> dict[str, Any]:
    """The part `codec`."""
    figures: dict[str, Any] = {}
    for key, row in codec_figures():
        figures[key] = row
        print(f"codec, learning rate x steps {key}: {row}", flush=True)
    with LocalServices(
        work / "codec", replicas={"generation": 0, "reward": 0, "reference": 0, "trainer": 0}
    ) as services:
        endpoint = read_endpoints(services.directory)["weights"][0]
        content = os.urandom(BLOB_BYTES)
        url = f"http://{endpoint['http'].removeprefix('http://')}/blobs/"
        digest = hashlib.sha256(content).hexdigest()
        with BlobClient(url) as blobs:
            blobs.put(digest, [memoryview(content)])
        seconds = [read_seconds(url + digest) for _ in range(5)]
    figures["one_reader_mb_per_s"] = round(len(content) / statistics.median(seconds) / 1e6)
    print(f"codec, one reader of a blob: {figures['one_reader_mb_per_s']} MB/s", flush=True)
    return figures


def read_seconds(url: str) -> float:
    began = time.perf_counter()
    with urllib.request.urlopen(url) as reply:
        while reply.read(1 << 20):
            pass
    return time.perf_counter() - began


def payload(work: Path, rates: Sequence[float], counts: Sequence[int]) -> dict[str, Any]:
    """The part `payload`."""
    policy, tokenizer = smollm2(work / "policy")
    reward = untrained_reward_model(policy, tokenizer, work / "reward")
    threads = torch.get_num_threads()
    settings: dict[str, dict[str, Any]] = {name: {"threads": threads} for name in ("generation", "reward", "reference")}
    settings["generation"]["slots"] = 16
    figures: dict[str, Any] = {}
    for rate in rates:
        for steps in counts:
            key = f"{rate:g} x {steps}"
            directory = work / f"payload-{rate:g}-{steps}"
            spec = ppo_ptx_spec(
                directory,
                policy,
                reward,
                learning_rate=rate,
                steps_per_publication=steps,
                iterations=5 if steps == 1 else 3,
            )
            with LocalServices(directory / "services", settings=settings) as services:
                endpoints = read_endpoints(services.directory)
                folder = run(endpoints["trainer"][0]["grpc"], spec)
                with Client(endpoints["weights"][0]["grpc"]) as weights:
                    figures[key] = measured(folder, weights)
            print(f"payload, learning rate x steps {key}: {figures[key]}", flush=True)
    return figures


def run(trainer: str, spec: dict[str, Any]) -> Path:
    """Runs a spec by the trainer service; returns the run's folder."""
    with Client(trainer) as client:
        client.start_run(trainer_pb2.StartRunRequest(name=spec["name"], spec_yaml=yaml.safe_dump(spec)), timeout_s=120)
        for _ in client.watch_run(trainer_pb2.WatchRunRequest(name=spec["name"]), timeout_s=3600):
            pass
        run = client.get_run(trainer_pb2.GetRunRequest(name=spec["name"])).run
        if run.state != trainer_pb2.RUN_STATE_SUCCEEDED:
            raise SystemExit(f"the run failed: {run.error}")
        return Path(run.directory)


def measured(folder: Path, weights: Client) -> dict[str, Any]:
    """Shares of a run's publications, the first whole one aside, and of its last two versions sent otherwise."""
    rows = list(step_metrics(folder / "events.jsonl", "ppo").values())[1:]
    seconds = [sum(value for key, value in row.items() if _is_phase(key)) for row in rows]
    versions = sorted(int(row["version"]) for row in rows)[-2:]
    before, after = (fetch_version(weights, version=version) for version in versions)
    return {
        "payload": round(statistics.median(row["publication_share"] for row in rows), 5),
        "payload_largest": round(max(row["publication_share"] for row in rows), 5),
        **other_ways(before, after),
        "encode_s": round(statistics.median(row["seconds_publication_encode"] for row in rows), 3),
        "upload_s": round(statistics.median(row["seconds_publication_upload"] for row in rows), 3),
        "trainer_waits": share(sum(row["seconds_publish"] for row in rows), sum(seconds)),
        "iteration_s": round(statistics.median(seconds), 2),
    }


def _is_phase(key: str) -> bool:
    return key.startswith("seconds_") and not key.startswith("seconds_publication")


def fleet(work: Path, replicas: int, shape: str | None, device: str) -> dict[str, Any]:
    """The part `fleet`; of SmolLM2-135M, or of a model of random weights."""
    if shape is None:
        policy, tokenizer = smollm2(work / "policy")
        model = load_policy(policy, device=device)
    else:
        model, tokenizer = policy_model(shape, device=device), id_tokenizer(SHAPES[shape]["vocab_size"])
    settings: dict[str, dict[str, Any]] = {"generation": {"threads": 1, "slots": 4, "max_sequence_tokens": 512}}
    if device != "cpu":
        settings["generation"] |= {"device": device, "dtype": "bfloat16"}
    with LocalServices(work / "fleet", replicas={"generation": replicas}, settings=settings) as services:
        endpoints = read_endpoints(services.directory)
        with Client(endpoints["weights"][0]["grpc"], timeout_s=600) as weights:
            publisher = ModelPublisher(weights, model, tokenizer, channels=[CHANNEL], serving_dtype="bfloat16")
            generation = endpoints["generation"]
            clients = [Client(replica["grpc"], timeout_s=60) for replica in generation]
            step = adamw_steps(model, learning_rate=1e-6)
            first = publisher.publish(publisher.snapshot())
            wait_served(clients, first.version)
            rows = []
            before = blobs(first.manifest)
            with sampling(clients[0]):
                for _ in range(8):
                    next(step)
                    began = time.monotonic()
                    snapshot = publisher.snapshot()
                    copied = time.monotonic() - began
                    publication = publisher.publish(snapshot)
                    published = time.monotonic() - began
                    wait_served(clients, publication.version)
                    needed = {
                        digest: size for digest, size in blobs(publication.manifest).items() if digest not in before
                    }
                    before |= needed
                    seconds = (copied, published, time.monotonic() - began)
                    rows.append((*seconds, publication.payload_bytes, sum(needed.values())))
            first_bytes = first.dense_bytes + sum(file.length_bytes for file in first.manifest.files)
            fetched = [metric(replica["metrics"], "trimtab_fetched_bytes_total") for replica in generation]
            pauses = pause_quantile(generation[0]["metrics"])
            for client in clients:
                client.close()
    copied, published, served, _, payload = (statistics.median(column) for column in zip(*rows, strict=True))
    sent, needed_bytes = sum(row[3] for row in rows), sum(row[4] for row in rows)
    figures = {
        "replicas": replicas,
        "model": shape or "smollm2",
        "device": device,
        "dense_mb": round(first.dense_bytes / 1e6, 1),
        "payload": share(payload, first.dense_bytes),
        "egress_over_payload": share(sent, needed_bytes),
        "read_by_a_replica_over_payload": share(statistics.median(fetched) - first_bytes, needed_bytes),
        "copy_s": round(copied, 3),
        "published_s": round(published, 3),
        "last_replica_serves_s": round(served, 2),
        "pause_p95_s_at_most": pauses,
    }
    print(f"fleet: {figures}", flush=True)
    return figures


def blobs(manifest: weights_pb2.Manifest) -> dict[str, int]:
    """Bytes of each blob with tensors of a version, by its digest."""
    sizes: dict[str, int] = {}
    for entry in manifest.tensors:
        end = entry.blob_offset_bytes + entry.blob_length_bytes
        sizes[entry.blob_digest] = max(end, sizes.get(entry.blob_digest, 0))
    return sizes


def adamw_steps(model: torch.nn.Module, *, learning_rate: float) -> Iterator[None]:
    """Steps of AdamW on random gradients, ten made before the first is given."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    number = 0
    while True:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
            parameter.grad = torch.randn(parameter.shape, generator=generator, device=device)
        optimizer.step()
        number += 1
        if number > 10:
            yield


def wait_served(clients: list[Client], version: int, timeout_s: float = 600.0) -> None:
    """Returns once every replica serves a version."""
    give_up = time.monotonic() + timeout_s
    behind = list(clients)
    while behind:
        behind = [client for client in behind if not _serves(client, version)]
        if time.monotonic() > give_up:
            raise SystemExit(f"{len(behind)} replicas do not serve version {version}: {behind[0].info()}")
        time.sleep(0.01)


def _serves(client: Client, version: int) -> bool:
    info = client.info()
    return info.state is ServiceState.SERVING and any(model.served.version == version for model in info.models)


@contextmanager
def sampling(client: Client) -> Iterator[None]:
    """Keeps a replica sampling while the body runs."""
    ended = threading.Event()

    def sample() -> None:
        seed = 0
        while not ended.is_set():
            seed += 1
            prompts = tuple(GenerationPrompt(prompt_id=str(i), prompt=(5, 6, 7, 8), seed=seed) for i in range(4))
            request = GenerateRequest(prompts=prompts, sampling=SamplingParams(max_new_tokens=64, min_new_tokens=64))
            for _ in client.generate(request, timeout_s=600):
                pass

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def pause_quantile(address: str) -> float:
    """Upper bound of the bucket that the 95 % quantile of a replica's pauses lies in, in seconds."""
    buckets = [(float(labels["le"]), value) for labels, value in samples(address, "trimtab_swap_pause_seconds_bucket")]
    total = max((value for _, value in buckets), default=0.0)
    if not total:
        raise SystemExit("no swap was observed")
    return min(bound for bound, value in buckets if value >= 0.95 * total)


def large(work: Path, readers: int) -> dict[str, Any]:
    """The part `large`."""
    settings = {"generation": {"threads": 1, "slots": 2, "dtype": "bfloat16", "max_sequence_tokens": 128}}
    with LocalServices(work / "large", replicas={"generation": 1}, settings=settings) as services:
        endpoints = read_endpoints(services.directory)
        target = endpoints["weights"][0]["grpc"]
        with Client(target, timeout_s=600) as weights, Client(endpoints["generation"][0]["grpc"]) as replica:
            model = LargeModel()
            publisher = ModelPublisher(weights, model.model, model.tokenizer, channels=[CHANNEL])
            first = publisher.publish(publisher.snapshot())
            wait_served([replica], first.version)
            with read_versions(target, CHANNEL, work / "readers", readers) as reading:
                reading.wait_for(first.version)
                model.change(0.014)
                began = time.monotonic()
                snapshot = publisher.snapshot()
                publication = publisher.publish(snapshot)
                published = time.monotonic() - began
                wait_served([replica], publication.version)
                serves = time.monotonic() - began
                reading.wait_for(publication.version)
                last = time.monotonic() - began
                grown = reading.memory_growth_mb()
    figures = {
        "parameters": model.parameters,
        "dense_mb": round(first.dense_bytes / 1e6),
        "payload": share(publication.payload_bytes, publication.dense_bytes),
        "encode_s": round(publication.encode_seconds, 2),
        "published_s": round(published, 2),
        "replica_serves_s": round(serves, 2),
        "last_of_readers_has_verified_s": round(last, 2),
        "readers": readers,
        "largest_tensor_mb": round(model.largest_tensor_bytes / 1e6),
        "reader_anonymous_memory_mb": grown,
    }
    print(f"large: {figures}", flush=True)
    return figures


def main() -> None:
    """Runs the parts that are asked for and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:-1])
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, help="learning rates of payload")
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS, help="steps to a publication of payload")
    parser.add_argument("--replicas", type=int, default=8, help="of the parts fleet and large")
    parser.add_argument("--model", choices=sorted(SHAPES), help="of the part fleet, random; else SmolLM2-135M")
    parser.add_argument("--device", default="cpu", help="of trainer and replicas in the part fleet")
    args = parser.parse_args()
    began, load = time.monotonic(), os.getloadavg()[0]
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        work = Path(name)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "codec": lambda: codec(work),
            "payload": lambda: payload(work, args.rates, args.steps),
            "fleet": lambda: fleet(work, args.replicas, args.model, args.device),
            "large": lambda: large(work, args.replicas - 1),
        }
        for part in args.parts:
            figures[part] = parts[part]()
    ratio = figures.get("payload", {}).get("1e-06 x 1", {}).get("payload")
    result = {
        "benchmark": "publication",
        "ratio": ratio,
        "goal": GOAL,
        **figures,
        "threads": torch.get_num_threads(),
        "load_1m": round(load, 2),
        "wall_s": round(time.monotonic() - began),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
