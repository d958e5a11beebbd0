"""What the runs want of the generation replicas: the figure by which autoscalers set their number."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab_services.trainer.records import RunRecords
from trimtab_services.trainer.run_rows import AT_WORK

__all__ = ["SAMPLING_STAGES", "RolloutDemand", "demand_of"]

SAMPLING_STAGES = frozenset(
    {"collect_rankings", "sft_baseline", "ppo", "ppo_without_ptx", "ppo_without_kl", "dpo", "evaluate"}
)
"""Stages that need generation replicas to begin, when they ask each for its limits; all but `dpo` go on to sample."""


@dataclass(frozen=True, slots=True)
class RolloutDemand:
    """What runs want of the generation replicas.

    Attributes:
        rollouts: waiting for a replica or being generated.
        is_active: a run is in a stage that samples, though it may be updating its policy just now.
    """

    rollouts: int
    is_active: bool


async def demand_of(records: RunRecords) -> RolloutDemand:
    """The demand of those of the runs that are in a stage that samples, all together.

    A run that has not reported since its launch wants nothing yet: it may wait for a place of its own for long, and the
    queue that it told last is that of an earlier life. It reports before it needs the first replica.
    """
    runs = await records.ask(records.store.runs_in, AT_WORK)
    sampling = [run for run in runs if run.stage in SAMPLING_STAGES]
    with_queue = [run.name for run in sampling if run.stage != "dpo"]  # it tells of none, however far back one looks
    queues = [await records.ask(records.store.rollout_queue, name) for name in with_queue]
    rollouts = sum(queue.waiting_rollouts + queue.running_rollouts for queue in queues)
    return RolloutDemand(rollouts, is_active=bool(sampling))
