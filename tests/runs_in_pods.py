"""Runs in the pods of a release, started through its TrainerService as a user would, and read by their events.

    with release_for_runs(kubeconfig, {}) as release, started(release, "calm", iterations=3) as run:
        run.wait_step(2)

The policy of these runs is untrained and lies on a claim, so that PPO begins at once. It is small: how long a batch
takes is set by the slots of a replica. Everything is deterministic, so that figures of two runs can be compared.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from deployed import Deployed, deployed, merged, trimtab, wait_for
from trimtab import Client
from trimtab.errors import Cancelled
from trimtab.v1 import trainer_pb2 as pb

__all__ = ["PROMPTS", "Run", "release_for_runs", "started"]

PROMPTS = 256
"""Rollouts of an iteration."""

T = TypeVar("T")

_CLAIM = "models"
_MODELS = """
import sys
from pathlib import Path
from trimtab_models.loading import reward_model_from_policy, save_model
from trimtab_models.tokenizer import load_tokenizer
from trimtab_trainer.miniature.tokenizer import save_base

folder = Path(sys.argv[1])
save_base(folder / "policy", seed=0)
tokenizer = load_tokenizer(folder / "policy")
save_model(reward_model_from_policy(folder / "policy", tokenizer=tokenizer, seed=0), tokenizer, folder / "reward")
"""
_SPEC = {
    "preset": "tiny",
    "model": "/models/policy",
    "stages": ["ppo"],
    "deterministic": True,
    "tensorboard": False,
    "miniature": {
        "pretrain": 200,
        "pretrain_held_out": 20,
        "demonstrations": 20,
        "prompts": 500,
        "prompts_held_out": 20,
    },
    "ppo": {
        "policy": "base",
        "reward_model": "/models/reward",
        "prompts_per_iteration": PROMPTS,
        "critic_warmup_iterations": 1,
        "checkpoint_every": 1,
        "kl_stop": None,
    },
}
_VALUES = {
    "trainer": {"run": {"modelVolume": {"persistentVolumeClaim": {"claimName": _CLAIM, "readOnly": True}}}},
    **{name: {"config": {"deterministic": True}} for name in ("generation", "reward", "reference")},
}
"""Values of a release whose runs read models from the claim, and whose figures are the same whatever happens to it."""


@contextmanager
def release_for_runs(kubeconfig: Path, values: Mapping[str, Any]) -> Iterator[Deployed]:
    """A release with the models that runs read; `values` as of `deployed`."""
    with deployed(kubeconfig, merged(_VALUES, values), prepare=_make_models) as release:
        yield release


def _make_models(release: Deployed) -> None:
    wanted = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "100Mi"}}}
    release.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": _CLAIM}, "spec": wanted})
    release.start_pod("models", _MODELS, "/models", caller="", claim=_CLAIM)
    release.wait_ended("models")


@contextmanager
def started(release: Deployed, name: str, **ppo: Any) -> Iterator[Run]:
    """A run of PPO, started by `trimtab runs start`.

    Args:
        release: where to.
        name: of the run.
        ppo: over the section `ppo` of its spec.
    """
    spec = release.folder / f"{name}.yaml"
    spec.write_text(yaml.safe_dump(merged(_SPEC, {"name": name, "ppo": ppo})))
    with release.client("trainer") as client:
        trimtab("runs", "start", name, str(spec), "--target", client.target, "--token-file", str(release.token_file))
        yield Run(client, name)


@dataclass
class Run:
    """A run under way, and its events as they come.

    Attributes:
        client: of the TrainerService.
        name: of the run.
        events: so far.
    """

    client: Client
    name: str
    events: list[pb.RunEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        threading.Thread(target=self._watch, name=f"watch {self.name}", daemon=True).start()

    def _watch(self) -> None:
        """Ends with the run, or with the connection."""
        with suppress(Cancelled):
            for reply in self.client.watch_run(pb.WatchRunRequest(name=self.name), timeout_s=900):
                self.events.append(reply.event)

    def of(self, kind: str) -> list[pb.RunEvent]:
        """The events of a kind so far."""
        return [event for event in list(self.events) if event.WhichOneof("event") == kind]

    def messages(self) -> list[str]:
        """What the run has told so far."""
        return [event.message.text for event in self.of("message")]

    def steps(self) -> list[int]:
        """Iterations that are done."""
        return [event.step for event in self.of("step_done")]

    def figures(self) -> list[dict[str, float]]:
        """Of each iteration, what does not depend on how long things took and who did them."""
        metrics = [dict(event.step_done.metrics) for event in self.of("step_done")]
        return [{name: value for name, value in one.items() if not name.startswith(_WORK)} for one in metrics]

    def wait(self, look: Callable[[], T | None], what: str, *, within_s: float = 180.0) -> T:
        """As `wait_for`, and fails at once when the run has ended."""

        def look_again() -> T | None:
            found = look()
            ends = self.of("run_ended")
            assert found or not ends, f"{self.name} ended before {what}: {ends} {self.messages()[-5:]}"
            return found

        return wait_for(look_again, what, within_s=within_s)

    def wait_step(self, step: int) -> None:
        """Until so many iterations are done."""
        self.wait(lambda: step in self.steps(), f"step {step} of {self.name}")

    def wait_queue(self, look: Callable[[pb.RolloutQueue], Any], what: str) -> pb.RunEvent:
        """The first of the coming events on the rollout queue that is as `look` says."""
        seen = len(self.events)

        def coming() -> list[pb.RunEvent]:
            queues = [one for one in self.events[seen:] if one.HasField("rollout_queue")]
            return [one for one in queues if look(one.rollout_queue)]

        return self.wait(coming, what)[0]

    def wait_rollouts(self) -> None:
        """Until rollouts are being generated and many still wait."""
        self.wait_queue(lambda queue: queue.running_rollouts and queue.waiting_rollouts > PROMPTS // 2, "rollouts")

    def batches(self) -> list[int]:
        """Rollouts that were wanted at the start of each batch that came to its end."""
        sizes: list[int] = []
        wanted = 0
        for event in self.of("rollout_queue"):
            now = event.rollout_queue.waiting_rollouts + event.rollout_queue.running_rollouts
            if not now:
                sizes.append(wanted)
            wanted = (wanted or now) if now else 0
        return sizes

    def wait_succeeded(self, *, within_s: float = 300.0) -> None:
        """Until the run has ended, which must be well."""
        ended = wait_for(lambda: self.of("run_ended"), f"the end of {self.name}", within_s=within_s)[0].run_ended
        assert ended.state == pb.RUN_STATE_SUCCEEDED, ended


_WORK = ("seconds_", "tokens_per_second", "publication_share", "hedged_samples", "version")
"""How the names of other figures begin."""
