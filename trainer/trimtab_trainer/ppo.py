"""Stage 3, PPO-ptx. READ THIS FIRST: one iteration of RLHF from prompts to published weights.

    prompts -> rollouts (generation) -> scores (reward), reference log-probs -> advantages -> PPO-ptx update -> publish

Collaborators: `ppo_data` says which passages a step takes, `rollout_pipeline` which prompts an iteration takes and what
policy samples them; `services` connects, `policy_publisher` sends each new policy beside the next work; `rollouts`
dispatches over replicas, each completion scored the moment it ends; `experience` holds what came back; `logprob_gate`
refuses a batch on which sampler and trainer disagree, `divergence` saves what is unfit to train on and goes back;
`advantages` and `losses` are the formulas; `actor_critic` holds both models and makes the step; `ppo_metrics` counts.
None of them knows this module.

Source: InstructGPT (Ouyang et al. 2022), section 3.5 and appendix C.4; what it leaves open follows Huang et al. 2024.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trimtab.weights import Publication
from trimtab_models.loading import load_policy, load_reward_model
from trimtab_models.tokenizer import check_same_tokenizer, load_tokenizer
from trimtab_trainer.actor_critic import ActorCritic, UpdateFigures
from trimtab_trainer.advantages import (
    generalized_advantages,
    kl_penalties,
    replace_missing_eos,
    shaped_rewards,
    whiten,
)
from trimtab_trainer.checkpoint import Snapshot
from trimtab_trainer.config import PPOConfig
from trimtab_trainer.context import StageContext, StageResult, StageStopped
from trimtab_trainer.distributed import ranks, save_whole, shard
from trimtab_trainer.divergence import check_kl, going_back, saving_experience
from trimtab_trainer.experience import Experience, Minibatch, pad_rows, plan_minibatches
from trimtab_trainer.health import is_negative_kl, warn_of_low_scores, warn_of_negative_kl
from trimtab_trainer.kl import AdaptiveKLController
from trimtab_trainer.logprob_gate import check_logprobs
from trimtab_trainer.losses import importance_weights
from trimtab_trainer.optimization import make_learner, prepare_for_training
from trimtab_trainer.policy_publisher import PolicyPublisher, publication_figures
from trimtab_trainer.ppo_data import PPOData
from trimtab_trainer.ppo_metrics import Clock, check_age, iteration_metrics, mean_gold, mean_kl, samples_of
from trimtab_trainer.reporter import RolloutSample
from trimtab_trainer.reward_normalizer import RewardNormalizer
from trimtab_trainer.rollout_pipeline import RolloutPipeline
from trimtab_trainer.rollouts import Rollout
from trimtab_trainer.running_mean import running_mean_of
from trimtab_trainer.services import connect

__all__ = ["PPOState", "build_experience", "missing_eos_score", "train"]

T = TypeVar("T")

_CHECK_EVERY = 10
"""Iterations between two comparisons of log-probs where the trainer's own are not computed anyway."""


def train(context: StageContext, config: PPOConfig) -> StageResult:
    """Runs the stage: see the module."""
    folder = context.resolve_model(config.policy, key="policy")
    reward_folder = context.resolve_model(config.reward_model, key="reward_model")
    tokenizer = load_tokenizer(folder)
    check_same_tokenizer("ppo.reward_model", reward_folder, folder)
    data = PPOData.read(context, config, tokenizer)
    longest = data.longest_prompt + config.sampling.max_new_tokens
    with connect(context, rollout_timeout_s=config.rollout_timeout_s) as services:
        services.check_lengths(longest)
        services.check_tokenizers(tokenizer, ["generation"])
        services.serve("reference", folder)
        services.serve("reward", reward_folder)
        agent, state = _start_or_resume(context, config)
        context.reporter.stage_started(context.stage, config.iterations, step=state.iteration)
        pipeline = RolloutPipeline(context, config, services, data.prompts)
        with PolicyPublisher(services, agent.policy.model, tokenizer, serving_dtype=config.serving_dtype) as publisher:
            publishing = _publish(publisher, agent, state.iteration)
            version = _wait_for(context, publishing, lambda: _snapshot(agent, state)).version
            services.check_policy(tokenizer, version, longest=longest)
            pipeline.start(state.iteration, version, state.recent_versions)
            good_version = version  # the last one whose rollouts were fit to train on

            while state.iteration < config.iterations and not state.stopped_by_kl:
                clock = Clock()
                with clock.phase("rollouts"):
                    rollouts = _wait_for(context, pipeline.next(), lambda: _snapshot(agent, state))
                begun = copy.deepcopy(state)  # what a stop goes back to: experience moves the normaliser
                with clock.phase("experience"):
                    plan = _plan(context, config, rollouts, state.iteration, epoch=0)
                    experience = build_experience(agent, rollouts, plan, config, state)
                    _watch_health(context, experience, state)
                with clock.phase("publish"):  # of this policy; a batch of older ones does not wait for it
                    if context.spec.deterministic or not pipeline.knows(rollouts):
                        publication = _wait_for(context, publishing, partial(_snapshot, agent, begun))
                        pipeline.policy_is(publication.version, state.iteration)
                age = check_age(rollouts, pipeline.sampled_at, state.iteration, max_lag=config.max_lag)
                back = going_back(context, services, publishing, good_version=good_version, iteration=state.iteration)
                with clock.phase("update"), back, saving_experience(context, experience, state.iteration):
                    newest = pipeline.newest(state.iteration)
                    check_logprobs(
                        config, experience, newest, precision=context.spec.precision, first=state.iteration == 0
                    )
                    check_kl(config, experience)
                    figures = _update(context, config, agent, experience, plan, data, state)
                    agent.kl.update(mean_kl(experience), len(experience.rollouts))
                with clock.phase("publish"):
                    after = replace(state, iteration=state.iteration + 1)
                    publication = _wait_for(context, publishing, partial(_snapshot, agent, after))
                    good_version = publication.version
                    pipeline.policy_is(good_version, state.iteration)
                    state.recent_versions = pipeline.recent_versions
                    pipeline.settle()
                    publishing = _publish(publisher, agent, state.iteration + 1)
                pipeline.submit_after(state.iteration + 1, publishing)
                metrics = iteration_metrics(experience, figures, agent, clock) | publication_figures(publication)
                metrics["hedged_samples"] = services.rollouts.take_hedged()
                if context.spec.miniature is not None:
                    metrics["gold"] = mean_gold(rollouts, tokenizer)
                samples = samples_of(rollouts, tokenizer, config.reported_samples)
                metrics |= {**age, "version": publication.version}
                _finish_iteration(context, config, agent, state, metrics, samples)

            pipeline.cancel()
            version = _wait_for(context, publishing, lambda: _snapshot(agent, state)).version
        return _finish(context, agent, tokenizer, version, state)


def build_experience(
    agent: ActorCritic, rollouts: Sequence[Rollout], plan: Sequence[Minibatch], config: PPOConfig, state: PPOState
) -> Experience:
    """Joins rollouts with the trainer's own log-probs and values into advantages and returns.

    Args:
        agent: before the update.
        rollouts: scored and referenced.
        plan: the first epoch's minibatches; log-probs are computed in them, so that the first ratio is exactly 1.
        config: of the stage.
        state: its KL coefficient and missing-EOS score; the latter is set by the first batch.
    """
    mask = pad_rows([np.ones(len(r.token_ids), np.float32) for r in rollouts]).bool()
    generation = pad_rows([r.generation_logprobs for r in rollouts])
    reference = pad_rows([r.known_ref_logprobs for r in rollouts])
    shape = (mask.shape[0], mask.shape[1])
    own = None
    if config.old_logprobs == "recompute" or state.iteration % _CHECK_EVERY == 0:
        own = agent.logprobs(plan, shape, config.sampling.temperature)
    old = own if own is not None and config.old_logprobs == "recompute" else generation
    values = agent.value_estimates(plan, shape)

    scores = torch.tensor([r.known_reward for r in rollouts], dtype=torch.float32)
    ended = torch.tensor([r.ended for r in rollouts])
    if state.iteration == 0:
        state.missing_eos_score = missing_eos_score(config, scores)
    scores = replace_missing_eos(scores, ended, state.missing_eos_score)
    if config.normalize_rewards:
        scores = state.normalizer.normalized(scores)
    rewards = shaped_rewards(scores, kl_penalties(old, reference, mask), mask, kl_coef=agent.kl.coef)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=config.gamma, lam=config.lam)
    if config.whiten_advantages:
        advantages = whiten(advantages, mask)
    return Experience(
        rollouts=tuple(rollouts),
        mask=mask,
        trainer_logprobs=own,
        old_logprobs=old,
        generation_logprobs=generation,
        ref_logprobs=reference,
        values=values,
        advantages=advantages,
        returns=returns,
        importance_weights=importance_weights(old, generation, mask, cap=config.importance_weight_cap),
        scores=scores,
    )


def missing_eos_score(config: PPOConfig, first_scores: Tensor) -> float | None:
    """What replaces the score of a completion without EOS.

    `auto` is min(-1, 1 % quantile of the start's scores): with the offset on demonstrations many finished answers score
    below -1, and not ending must not pay.
    """
    if config.missing_eos_score == "none":
        return None
    if config.missing_eos_score == "auto":
        return min(-1.0, float(first_scores.quantile(0.01)))
    return float(config.missing_eos_score)


@dataclass
class PPOState:
    """Where the stage is, besides its models.

    Attributes:
        iteration: iterations done.
        missing_eos_score: set by the first batch; None keeps scores.
        passages_used: pretraining passages used so far.
        stopped_by_kl: the bound on KL was passed.
        recent_versions: of the last `max_lag` policies, which sample the batches under way (`RolloutPipeline.start`).
        negative_kl_iterations: iterations in a row with a KL estimate below 0 beyond chance.
        normalizer: of rewards, where the spec asks for one.
    """

    iteration: int = 0
    missing_eos_score: float | None = None
    passages_used: int = 0
    stopped_by_kl: bool = False
    recent_versions: list[int] = field(default_factory=list)
    negative_kl_iterations: int = 0
    normalizer: RewardNormalizer = field(default_factory=RewardNormalizer)


def _publish(publisher: PolicyPublisher, agent: ActorCritic, iteration: int) -> Future[Publication]:
    """Publishes the policy as it is after so many iterations; a resumed run gets the number that it had."""
    return publisher.publish(step=agent.policy.step, name=f"iteration-{iteration}")


def _wait_for(context: StageContext, pending: Future[T], capture: Callable[[], Snapshot]) -> T:
    """What an iteration waits for. A stop does not wait: it saves what `capture` gives, from which the run goes on.

    Raises:
        StageStopped: a stop was asked for; the checkpoint is on disk.
        TrimtabError: why it did not come.
    """
    while True:
        done = wait([pending], timeout=0.5).done
        came = done and not isinstance(pending.exception(), StageStopped)
        if context.orders.stop_asked and not came:
            snapshot = capture()
            context.checkpoints.save(snapshot)
            raise StageStopped(f"{context.stage} was asked to stop after step {snapshot.step}")
        if done:
            return pending.result()


def _start_or_resume(context: StageContext, config: PPOConfig) -> tuple[ActorCritic, PPOState]:
    spec = context.spec
    policy = shard(load_policy(context.resolve_model(config.policy, key="policy")), context.device)
    values = shard(load_reward_model(context.resolve_model(config.reward_model, key="reward_model")), context.device)
    for model in (policy, values):
        prepare_for_training(model, gradient_checkpointing=spec.gradient_checkpointing)
    steps = config.iterations * config.minibatches * config.epochs
    policy_steps = steps - config.critic_warmup_iterations * config.minibatches * config.epochs
    agent = ActorCritic(
        policy=make_learner(
            policy, config.optimizer, total_steps=policy_steps, precision=spec.precision, name="policy"
        ),
        values=make_learner(values, config.value_optimizer, total_steps=steps, precision=spec.precision, name="values"),
        kl=AdaptiveKLController(
            config.kl_coef, config.kl_target if config.kl_controller == "adaptive" else None, config.kl_horizon
        ),
        average=running_mean_of(policy) if config.ema_decay > 0 else None,
    )
    snapshot = context.checkpoints.load_latest()
    if snapshot is None:
        return agent, PPOState()
    agent.policy.restore(snapshot.saved)
    agent.values.restore(snapshot.saved)
    if agent.average is not None:
        agent.average.restore(snapshot.saved)
    agent.kl.coef = snapshot.state["kl_coef"]
    progress = dict(snapshot.state["progress"])
    if (version := progress.pop("rollout_version", None)) is not None:  # of a checkpoint from when `max_lag` was 0 or 1
        progress["recent_versions"] = [version] if version else []
    return agent, PPOState(**{**progress, "normalizer": RewardNormalizer(**progress["normalizer"])})


def _snapshot(agent: ActorCritic, state: PPOState) -> Snapshot:
    average = () if agent.average is None else (agent.average,)
    parts = (agent.policy, agent.values, *average)
    return Snapshot(state.iteration, state={"kl_coef": agent.kl.coef, "progress": asdict(state)}, parts=parts)


def _plan(
    context: StageContext, config: PPOConfig, rollouts: Sequence[Rollout], iteration: int, *, epoch: int
) -> list[Minibatch]:
    seed = np.random.SeedSequence([context.seed(config.seed), iteration, epoch]).generate_state(1, np.uint64)[0]
    return plan_minibatches(
        rollouts,
        minibatches=config.minibatches,
        micro_batch_tokens=config.micro_batch_tokens,
        generator=torch.Generator().manual_seed(int(seed >> 1)),
        ranks=ranks(),
    )


def _update(
    context: StageContext,
    config: PPOConfig,
    agent: ActorCritic,
    experience: Experience,
    plan: list[Minibatch],
    data: PPOData,
    state: PPOState,
) -> UpdateFigures:
    figures = UpdateFigures()
    policy_moves = state.iteration >= config.critic_warmup_iterations
    for epoch in range(config.epochs):
        minibatches = plan if epoch == 0 else _plan(context, config, experience.rollouts, state.iteration, epoch=epoch)
        for number, minibatch in enumerate(minibatches):
            ptx = data.next_passages(state.passages_used, minibatch.episodes) if policy_moves else []
            state.passages_used += len(ptx)
            first = epoch == 0 and number == 0
            kl = agent.update(
                minibatch, experience, ptx, config, figures, policy_moves=policy_moves, measure_norms=first
            )
            figures.first["steps_made"] = figures.steps
            if config.update_kl_stop is not None and kl > config.update_kl_stop:
                return figures
    return figures


def _watch_health(context: StageContext, experience: Experience, state: PPOState) -> None:
    def warn(text: str) -> None:
        context.warn(text, step=state.iteration)

    kl = kl_penalties(experience.old_logprobs, experience.ref_logprobs, experience.mask).sum(-1)
    state.negative_kl_iterations = state.negative_kl_iterations + 1 if is_negative_kl(kl) else 0
    warn_of_negative_kl(state.negative_kl_iterations, float(kl.mean()), warn)
    if state.iteration == 0:
        given = torch.tensor([r.known_reward for r in experience.rollouts])
        ended = torch.tensor([rollout.ended for rollout in experience.rollouts])
        warn_of_low_scores(given, ended, state.missing_eos_score, warn)


def _finish_iteration(
    context: StageContext,
    config: PPOConfig,
    agent: ActorCritic,
    state: PPOState,
    metrics: dict[str, float],
    samples: Sequence[RolloutSample],
) -> None:
    state.iteration += 1
    state.stopped_by_kl = config.kl_stop is not None and metrics["mean_kl"] > config.kl_stop
    context.after_step(
        state.iteration,
        config.iterations,
        config.checkpoint_every,
        lambda: _snapshot(agent, state),
        metrics=metrics,
        samples=samples,
    )
    if state.stopped_by_kl:
        context.reporter.message(
            f"mean KL {metrics['mean_kl']:.2f} passed kl_stop {config.kl_stop:g}; the stage ends here",
            stage=context.stage,
            step=state.iteration,
        )


def _finish(
    context: StageContext, agent: ActorCritic, tokenizer: PreTrainedTokenizerBase, version: int, state: PPOState
) -> StageResult:
    """Saves the trained policy; the exported model is the running mean where there is one."""
    policy = agent.policy.model
    save_whole(policy, tokenizer, context.models / "last")
    if agent.average is not None:
        agent.average.put_into_model()
        save_whole(policy, tokenizer, context.models / "average")
    model = context.models / ("average" if agent.average is not None else "last")
    metrics = {"iterations": float(state.iteration)}
    return StageResult(model=context.relative(model), metrics=metrics, version=version)
