"""TRL's PPOTrainer, the last release that has one: what users of TRL run instead. Own environment, no Trimtab.

Input: the JSON text of `{"policy", "reward", "prompts", "new_tokens", "iterations", "micro_batch", "learning_rate",
"kl_coef", "work"}`; `prompts` names a file with a list of token id lists, all of which make one iteration. Output: for
each iteration its seconds, those of generation, reference, reward and values (the rest is the update), and the tokens
that were generated.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import trl.trainer.ppo_trainer as loop
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import PPOConfig, PPOTrainer


class _Clock(TrainerCallback):
    """Seconds of each iteration, by phase."""

    def __init__(self) -> None:
        self.iterations: list[dict[str, float]] = []
        self.phases: dict[str, float] = {}
        self.tokens = 0
        self.began = 0.0

    def on_train_begin(self, *arguments, **named) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *arguments, **named) -> None:
        now = time.perf_counter()
        whole = now - self.began
        rest = whole - sum(self.phases.values())
        self.iterations.append({**self.phases, "update": rest, "iteration": whole, "tokens": self.tokens})
        self.phases, self.tokens, self.began = {}, 0, now

    def timed(self, function: Callable, phase_of: Callable[..., str | None]) -> Callable:
        """The function, its time counted to the phase that its arguments tell; None counts nothing."""

        def wrapped(*arguments, **named):
            began = time.perf_counter()
            result = function(*arguments, **named)
            phase = phase_of(*arguments)
            if phase is not None:
                self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - began
            return result

        return wrapped


def main() -> None:
    given = json.loads(sys.argv[1])
    prompts = json.loads(Path(given["prompts"]).read_text())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(Path(given["policy"]) / "tokenizer.json"), pad_token="<pad>", eos_token="<eos>"
    )

    def policy() -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(given["policy"], dtype=torch.float32)

    def reward() -> torch.nn.Module:
        return AutoModelForSequenceClassification.from_pretrained(given["reward"], dtype=torch.float32, num_labels=1)

    config = PPOConfig(
        output_dir=given["work"],
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        num_sample_generations=0,
        learning_rate=given["learning_rate"],
        per_device_train_batch_size=given["micro_batch"],
        gradient_accumulation_steps=len(prompts) // given["micro_batch"],
        num_mini_batches=1,
        num_ppo_epochs=1,
        local_rollout_forward_batch_size=len(prompts),
        response_length=given["new_tokens"],
        temperature=1.0,
        kl_coef=given["kl_coef"],
        total_episodes=len(prompts) * given["iterations"],
        stop_token="eos",
    )
    rows = Dataset.from_dict({"input_ids": prompts})
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy(),
        ref_model=policy(),
        reward_model=reward(),
        value_model=reward(),
        train_dataset=rows,
        eval_dataset=rows.select(range(2)),
    )
    clock = _Clock()
    generate = loop.batch_generation

    def counted(model, queries, *arguments, **named):
        result = generate(model, queries, *arguments, **named)
        clock.tokens += int((result[0][:, queries.shape[1] :] != tokenizer.pad_token_id).sum())
        return result

    loop.batch_generation = clock.timed(counted, lambda *arguments: "generation")
    loop.forward = clock.timed(loop.forward, lambda model, *rest: "reference" if model is trainer.ref_model else None)
    loop.get_reward = clock.timed(
        loop.get_reward, lambda model, *rest: "reward" if model is trainer.reward_model else "values"
    )
    trainer.add_callback(clock)
    trainer.log = lambda *arguments, **named: None
    trainer.train()
    print(json.dumps({"iterations": clock.iterations}))


if __name__ == "__main__":
    main()
