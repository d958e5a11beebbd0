"""Generation throughput: Trimtab's transformers engine against Hugging Face `generate` in static batches.

Claim: at least 3 times the useful tokens/s. One process, one model (Llama-shaped, 10.5 M parameters, random weights),
one set of 64 requests with mixed prompt lengths and mixed limits (8 to 128 tokens, exponential with mean 40),
temperature 1 over the whole vocabulary, end-of-sequence ignored on both sides, so that both make the same useful
tokens: those within a request's own limit. `generate` runs left-padded batches of 16 in arrival order, each to its
longest limit; the engine gets all requests at once. After a warm-up of each, both run in turn, and the ratio is of the
medians.

    python benchmarks/generation.py [--repeats 5] [--slots 32] [--threads 2]
    python benchmarks/generation.py --device cuda --dtype bfloat16 --model 1b --slots 64 --batch 64 --requests 256
    .venv-vllm/bin/python benchmarks/generation.py --vllm

With `--vllm`, in the environment that `make vllm` sets up, the engine over vLLM runs in turn with them.

On a GPU it also times a decode step with every slot busy, and sets it beside the time that reading the weights once
takes at the bandwidth of a large copy, below which no step can be.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig as HuggingFaceConfig
from workloads.models import SHAPES, VOCAB, policy_model

from trimtab.types import SamplingParams
from trimtab_models.loading import DTYPES
from trimtab_services.generation.config import GenerationConfig
from trimtab_services.generation.engines.base import Engine, SequenceRequest
from trimtab_services.generation.engines.transformers import TransformersEngine

GOAL = 3.0
Work = list[tuple[tuple[int, ...], int]]


def build_requests(count: int, seed: int = 7) -> Work:
    """(prompt token ids, limit) of each request."""
    draw = random.Random(seed)

    def length() -> int:
        return max(8, min(128, int(draw.expovariate(1 / 40))))

    return [(tuple(draw.randrange(3, VOCAB) for _ in range(length())), length()) for _ in range(count)]


def static_batches(model: Any, work: Work, batch: int) -> Callable[[], int]:
    """Hugging Face `generate`, left-padded batches in arrival order; returns a function that makes one pass."""

    @torch.inference_mode()
    def once() -> int:
        for start in range(0, len(work), batch):
            part = work[start : start + batch]
            width, limit = max(len(p) for p, _ in part), max(n for _, n in part)
            ids = torch.tensor([[0] * (width - len(p)) + list(p) for p, _ in part], device=model.device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p, _ in part], device=model.device)
            settings = HuggingFaceConfig(
                max_new_tokens=limit, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0
            )
            out = model.generate(inputs=ids, attention_mask=mask, generation_config=settings)
            if out.shape[1] != width + limit:
                raise SystemExit(f"generate stopped early: {out.shape[1]} of {width + limit} tokens")
        return sum(n for _, n in work)

    model.generation_config.eos_token_id = None
    return once


def continuous(engine: Engine, work: Work) -> Callable[[], int]:
    """An engine, all requests submitted at once; returns a function that makes one pass."""

    def once() -> int:
        for i, (prompt, limit) in enumerate(work):
            sampling = SamplingParams(temperature=1.0, max_new_tokens=limit, ignore_eos=True)
            engine.submit(SequenceRequest(i, prompt, sampling, seed=i))
        made = 0
        while engine.has_work:
            for done in engine.step():
                if len(done.token_ids) != work[done.sequence_id][1]:
                    raise SystemExit(f"sequence {done.sequence_id} stopped early")
                made += len(done.token_ids)
        return made

    return once


def decode_step(engine: TransformersEngine, slots: int, prompt_tokens: int) -> dict[str, float]:
    """Milliseconds of a decode step with every slot busy, and of what it cannot be faster than."""
    sampling = SamplingParams(temperature=1.0, max_new_tokens=100, ignore_eos=True)
    for i in range(slots):
        prompt = tuple(3 + (i + k) % (VOCAB - 3) for k in range(prompt_tokens))
        engine.submit(SequenceRequest(i, prompt, sampling, seed=i))
    while not engine.load().computed_decode_tokens or engine.load().waiting_sequences or not _all_decode(engine):
        engine.step()
    seconds = []
    while engine.has_work:
        began = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - began)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in engine.model.parameters())
    keys_and_values = slots * prompt_tokens * kv_bytes_per_token(engine.model)
    rate = copy_bytes_per_second(engine.model.device)
    return {
        "decode_step_ms": round(1e3 * statistics.median(seconds), 3),
        "floor_ms": round(1e3 * (weights + keys_and_values) / rate, 3),
        "copy_tb_per_s": round(rate / 1e12, 2),
    }


def _all_decode(engine: TransformersEngine) -> bool:
    before = engine.load().computed_prefill_tokens
    engine.step()
    return engine.load().computed_prefill_tokens == before


def kv_bytes_per_token(model: Any) -> int:
    config = model.config
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize


def copy_bytes_per_second(device: torch.device) -> float:
    """Bytes read and written by a copy of 2 GiB on the device, a second."""
    source = torch.empty(2**31, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    seconds = []
    for _ in range(10):
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return 2 * 2**31 / statistics.median(seconds)


def vllm_engine(args: argparse.Namespace, defaults: GenerationConfig) -> Engine:
    from trimtab_services.generation.engines.vllm.engine import VLLMEngine

    return VLLMEngine(
        policy_model(args.model, dtype=DTYPES[args.dtype]),
        device=args.device,
        slots=args.slots,
        prefill_tokens_per_step=defaults.prefill_tokens_per_step,
        prefill_chunk_tokens=defaults.prefill_chunk_tokens,
    )


def main() -> None:
    """Run both sides in turn and print the figures."""
    parser = argparse.ArgumentParser(description=str(__doc__))
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16, help="rows of a static batch")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="torch threads; default: torch's own")
    parser.add_argument("--vllm", action="store_true", help="beside them the engine over vLLM")
    parser.add_argument("--deterministic", action="store_true", help="the engine in deterministic mode")
    parser.add_argument("--model", choices=sorted(SHAPES), default="10m", help="shape of the model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="of the sequences of the decode step on a GPU")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = policy_model(args.model, dtype=DTYPES[args.dtype], device=args.device)
    work = build_requests(args.requests)
    static = static_batches(model, work, args.batch)
    defaults = GenerationConfig(model_folder=Path(), device=args.device)
    engine = TransformersEngine(
        policy_model(args.model, dtype=DTYPES[args.dtype], device=args.device),
        slots=args.slots,
        deterministic=args.deterministic,
        prefill_tokens_per_step=defaults.prefill_tokens_per_step,
        prefill_chunk_tokens=defaults.prefill_chunk_tokens,
    )
    sides = {"generate_static": static, "engine": continuous(engine, work)}
    if args.vllm:
        sides["vllm"] = continuous(vllm_engine(args, defaults), work)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(args.repeats + 1):
        for name, once in sides.items():
            start = time.perf_counter()
            tokens = once()
            if repeat:  # the first pass warms up
                rates[name].append(tokens / (time.perf_counter() - start))
    for name, values in rates.items():
        print(f"{name:16} {min(values):7.0f} / {statistics.median(values):7.0f} / {max(values):7.0f} useful tokens/s")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "benchmark": "generation",
        "ratio": round(medians["engine"] / medians["generate_static"], 2),
        "goal": GOAL,
        "useful_tokens": sum(limit for _, limit in work),
        "tokens_per_s": {name: round(value, 1) for name, value in medians.items()},
        "requests": args.requests,
        "static_batch": args.batch,
        "slots": args.slots,
        "deterministic": args.deterministic,
        "repeats": args.repeats,
        "model": args.model,
        "dtype": args.dtype,
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else args.device,
        **({"engine_over_vllm": round(medians["engine"] / medians["vllm"], 2)} if args.vllm else {}),
        **(decode_step(engine, args.slots, args.prompt_tokens) if model.device.type == "cuda" else {}),
        "threads": torch.get_num_threads(),
        "load_1m": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
