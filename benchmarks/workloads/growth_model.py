"""A model of what an iteration of PPO-ptx costs: work counted by formula, over rates that were measured or are assumed.

It knows nothing of overlap within a phase but what is said here: completions are scored while others are sampled, so on
machines of their own the slowest of sampling, reward and reference counts; where services share cores their times add.
A publication is made beside the trainer's next work, but on-policy rollouts begin with it, so at `max_lag` 0 it counts
whole. Completions are as long as `new_tokens`, and a batch is spread evenly.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Deployment", "Machine", "Model", "Work", "iteration", "largest"]


@dataclass(frozen=True)
class Model:
    """Shape of a decoder; the value and reward models are as large, without the output projection.

    Attributes:
        body: parameters of the layers.
        vocab, hidden, layers, kv_heads, head_size: as in its configuration.
    """

    name: str
    body: float
    vocab: int
    hidden: int
    layers: int
    kv_heads: int
    head_size: int

    @property
    def parameters(self) -> float:
        """With one matrix of embeddings."""
        return self.body + self.vocab * self.hidden

    def forward_flops(self, tokens: float, context: float, *, head: bool = True) -> float:
        """FLOPs of a forward over so many tokens that each see `context / 2` others: 2 N D, attention 4 l h c / 2.

        Source: Kaplan et al. 2020, section 2.1.
        """
        matrices = self.body + (self.vocab * self.hidden if head else 0)
        return tokens * (2 * matrices + 4 * self.layers * self.hidden * context / 2)

    def kv_bytes(self, width: int) -> float:
        """Keys and values of one token."""
        return 2.0 * self.layers * self.kv_heads * self.head_size * width


@dataclass(frozen=True)
class Work:
    """One iteration: `prompts` x `samples` episodes, and pretraining passages for each of them."""

    prompts: int
    samples: int
    prompt_tokens: int
    new_tokens: int
    epochs: int = 1
    ptx_ratio: float = 0.0
    ptx_tokens: int = 0

    @property
    def episodes(self) -> int:
        """Completions."""
        return self.prompts * self.samples

    @property
    def tokens(self) -> float:
        """Of prompts and completions."""
        return float(self.episodes * (self.prompt_tokens + self.new_tokens))


@dataclass(frozen=True)
class Machine:
    """Rates of one device; for a CPU the device is the machine.

    Attributes:
        width: bytes of a weight.
        forward_flops_per_s, train_flops_per_s: reached in long forwards, and in forward and backward.
        decode_flops_per_s: reached by the thin matrices of decode steps.
        memory_bytes_per_s: of reading weights and keys.
        layer_overhead_s: of a decode step, for each layer: kernels, not work.
        encode_bytes_per_s, digest_bytes_per_s, apply_bytes_per_s: of a publication, dense bytes on one core: making
            the difference; SHA-256; applying the difference.
        encoders, checkers, decoders: threads of the publisher, of the weights service and of a replica.
        egress_bytes_per_s: of one weights service.
        dispatch_s: of the run's own thread for a sample.
        is_shared: True where services and trainer share the device.
    """

    name: str
    width: int
    forward_flops_per_s: float
    train_flops_per_s: float
    decode_flops_per_s: float
    memory_bytes_per_s: float
    layer_overhead_s: float
    encode_bytes_per_s: float
    digest_bytes_per_s: float
    apply_bytes_per_s: float
    egress_bytes_per_s: float
    dispatch_s: float
    encoders: int = 1
    checkers: int = 1
    decoders: int = 1
    is_shared: bool = False


@dataclass(frozen=True)
class Deployment:
    """Devices of each role. A generation replica spans `generation_span` of them and runs `slots` sequences.

    Attributes:
        span_efficiency: share of a device that is left where a replica spans several.
        changed: share of the dense bytes that a publication sends.
    """

    generation: int
    reward: int
    reference: int
    trainer: int
    slots: int
    generation_span: int = 1
    span_efficiency: float = 0.8
    changed: float = 0.02

    @property
    def replicas(self) -> int:
        """Of generation."""
        return self.generation // self.generation_span


def iteration(model: Model, work: Work, machine: Machine, fleet: Deployment) -> dict[str, float]:
    """Seconds of each phase of an on-policy iteration.

    Returns:
        `sampling`, `reward`, `reference`, `dispatch`, `experience`, `update`, `publication`; `rollouts` is what the
        trainer waits for of the first four, and `iteration` the sum of rollouts, experience, update and publication.
    """
    context = work.prompt_tokens + work.new_tokens
    whole = model.forward_flops(work.tokens, context)
    headless = model.forward_flops(work.tokens, context, head=False)
    span = fleet.generation_span * (fleet.span_efficiency if fleet.generation_span > 1 else 1.0)

    rows = min(fleet.slots, work.episodes / fleet.replicas)
    rounds = work.episodes / fleet.replicas / rows
    step = (
        model.layers * machine.layer_overhead_s
        + model.parameters * machine.width / machine.memory_bytes_per_s / span
        + rows * model.forward_flops(1, context) / machine.decode_flops_per_s / span
        + rows
        * (work.prompt_tokens + work.new_tokens / 2)
        * model.kv_bytes(machine.width)
        / machine.memory_bytes_per_s
        / span
    )
    prefill = model.forward_flops(work.episodes * work.prompt_tokens, work.prompt_tokens, head=False)
    seconds = {
        "sampling": rounds * work.new_tokens * step + prefill / (machine.forward_flops_per_s * fleet.replicas * span),
        "reward": headless / (machine.forward_flops_per_s * fleet.reward),
        "reference": whole / (machine.forward_flops_per_s * fleet.reference),
        "dispatch": work.episodes * machine.dispatch_s,
        "experience": (whole + headless) / (machine.forward_flops_per_s * fleet.trainer),
    }
    passages = work.episodes * work.ptx_ratio * work.ptx_tokens
    trained = work.epochs * 3 * (whole + headless) + 3 * model.forward_flops(passages, work.ptx_tokens)
    seconds["update"] = trained / (machine.train_flops_per_s * fleet.trainer)
    dense = model.parameters * machine.width
    encode, digest, apply = (
        dense / rate for rate in (machine.encode_bytes_per_s, machine.digest_bytes_per_s, machine.apply_bytes_per_s)
    )
    seconds["publication"] = (
        (encode + digest) / machine.encoders
        + (apply + digest) / machine.checkers  # nothing is committed before its bytes were made and compared
        + (apply + digest) / machine.decoders
        + fleet.replicas * fleet.changed * dense / machine.egress_bytes_per_s
    )
    services = [seconds[name] for name in ("sampling", "reward", "reference", "dispatch")]
    seconds["rollouts"] = sum(services) if machine.is_shared else max(services)
    seconds["iteration"] = sum(seconds[name] for name in ("rollouts", "experience", "update", "publication"))
    return seconds


def largest(seconds: dict[str, float]) -> str:
    """The part of the iteration that takes longest."""
    return max(
        ("sampling", "reward", "reference", "dispatch", "experience", "update", "publication"), key=seconds.__getitem__
    )
