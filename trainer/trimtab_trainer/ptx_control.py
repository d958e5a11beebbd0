"""The control of the alignment tax: the pretraining steps of PPO-ptx, from the same start, without any RL.

Where the base is under-trained, going on with pretraining lowers its loss by itself; only what PPO-ptx gives back
beyond this control says something of mixing the two.
"""

from __future__ import annotations

from trimtab.errors import ConfigError
from trimtab_models.loading import load_policy
from trimtab_models.tokenizer import load_tokenizer
from trimtab_trainer.checkpoint import Snapshot
from trimtab_trainer.config import PPOConfig
from trimtab_trainer.context import StageContext, StageResult
from trimtab_trainer.distributed import save_whole, shard
from trimtab_trainer.language_modeling import counted_tokens, example_tensors, read_tokens, train_on
from trimtab_trainer.optimization import make_learner, prepare_for_training
from trimtab_trainer.ppo_data import PPOData

__all__ = ["train"]


def train(context: StageContext, config: PPOConfig) -> StageResult:
    """Runs the stage: gamma times the gradient of PPO-ptx's own passages, with its optimizer, and nothing else.

    Raises:
        ConfigError: gamma is 0, or `ppo` has not run before.
    """
    if not config.ptx_coef:
        raise ConfigError(
            "ptx_control: ppo.ptx_coef is 0, so there is nothing to repeat", field="ppo.ptx_coef", value=0
        )
    if "ppo" not in context.results:
        raise ConfigError("ptx_control: it repeats the steps of stage ppo, which has not run", field="stages")
    folder = context.resolve_model(config.policy, key="policy")
    tokenizer = load_tokenizer(folder)
    data = PPOData.read(context, config, tokenizer)
    policy = shard(load_policy(folder), context.device)
    prepare_for_training(policy, gradient_checkpointing=context.spec.gradient_checkpointing)
    moving = int(context.results["ppo"].metrics["iterations"]) - config.critic_warmup_iterations
    total_steps = max(moving, 0) * config.minibatches * config.epochs
    episodes = config.prompts_per_iteration * config.samples_per_prompt // config.minibatches
    learner = make_learner(policy, config.optimizer, total_steps=total_steps, precision=context.spec.precision)
    snapshot = context.checkpoints.load_latest()
    used = 0
    if snapshot is not None:
        learner.restore(snapshot.saved)
        used = snapshot.state["passages_used"]

    context.reporter.stage_started(context.stage, total_steps, step=learner.step)
    while learner.step < total_steps:
        passages = data.next_passages(used, episodes)
        used += len(passages)
        with context.saving_batch(learner.step + 1, lambda examples=passages: example_tensors(examples)):
            loss = train_on(learner, passages, micro_batch_tokens=config.micro_batch_tokens, scale=config.ptx_coef)
            update = learner.update()
        context.after_step(
            learner.step,
            total_steps,
            config.checkpoint_every * config.minibatches,
            lambda now=used: Snapshot(learner.step, state={"passages_used": now}, parts=[learner]),
            metrics={
                "loss": loss,
                "gradient_norm": update.gradient_norm,
                "learning_rate": update.learning_rate,
                "tokens": float(counted_tokens(passages)),
                "tokens_trained": float(read_tokens(passages)),
                "sequences_trained": float(len(passages)),
            },
        )
    save_whole(policy, tokenizer, context.models / "model")
    return StageResult(model=context.relative(context.models / "model"), metrics={"steps": float(total_steps)})
