"""The SFT baseline: the epoch of SFT whose answers the reward model likes best, on prompts held out from everything.

Held-out loss overfits after one epoch while more epochs help the reward and people's preference, so the model that
PPO-ptx is compared with is chosen by reward-model score (InstructGPT 3.5 and C.1). It is not where PPO starts; that is
`ppo.policy`. The stage trains nothing: it hands on one of `sft/epoch-N`.
"""

from __future__ import annotations

from trimtab.errors import ConfigError
from trimtab_models.loading import load_policy
from trimtab_trainer.checkpoint import Snapshot
from trimtab_trainer.claims import sample_mean
from trimtab_trainer.config import SFTBaselineConfig
from trimtab_trainer.context import StageContext, StageResult
from trimtab_trainer.held_out_answers import answer_sampler
from trimtab_trainer.rollouts import Rollout

__all__ = ["choose"]


def choose(context: StageContext, config: SFTBaselineConfig) -> StageResult:
    """Runs the stage: see the module.

    Raises:
        ConfigError: `sft` has not run before, or no prompt is held out.
    """
    if "sft" not in context.results:
        raise ConfigError("sft_baseline: it chooses among the epochs of stage sft, which has not run", field="stages")
    epochs = [name for name in context.results["sft"].details["epochs"] if name.startswith("epoch-")]
    seed = context.seed(config.seed)
    snapshot = context.checkpoints.load_latest() or Snapshot(step=0, state={"rewards": {}})
    rewards: dict[str, dict[str, float]] = dict(snapshot.state["rewards"])
    context.reporter.stage_started(context.stage, len(epochs), step=snapshot.step)
    with answer_sampler(context, seed=config.seed) as sampler:
        prompts = sampler.prompts(config.prompts, from_the_end=True)
        for number, name in enumerate(epochs[snapshot.step :], snapshot.step + 1):
            model = load_policy(context.resolve_model(f"sft/{name}", key="epochs"), device=context.spec.device)
            # one name, so that epochs differ by what they learnt and not by luck of the draw
            answers, counts = sampler.sample(
                model, prompts, name="sft_baseline", samples_per_prompt=config.samples_per_prompt
            )
            found = sample_mean(_by_prompt(answers), samples=config.bootstrap_samples, seed=seed)
            rewards[name] = {"value": found.value, "low": found.low, "high": found.high}
            context.after_step(
                number,
                len(epochs),
                1,
                lambda at=number: Snapshot(at, state={"rewards": dict(rewards)}),
                metrics={"reward": found.value, **counts},
            )
    best = max(epochs, key=lambda name: rewards[name]["value"])
    return StageResult(
        model=context.relative(context.resolve_model(f"sft/{best}", key="epochs")),
        metrics={"epoch": float(best.removeprefix("epoch-")), "reward": rewards[best]["value"]},
        details={"chosen": f"sft/{best}", "rewards": rewards},
    )


def _by_prompt(answers: list[Rollout]) -> list[list[float]]:
    grouped: dict[str, list[float]] = {}
    for answer in answers:
        grouped.setdefault(answer.prompt_id, []).append(answer.known_reward)
    return list(grouped.values())
