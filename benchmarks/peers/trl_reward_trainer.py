"""TRL's RewardTrainer on all C(K, 2) pairs of each ranking: what users of TRL run instead. Own environment, no Trimtab.

Input: the JSON text of `{"model", "steps", "learning_rate", "work"}`; `steps` names a file with a list of optimizer
steps, each a list of rankings [prompt ids, [answer ids, best first]]. Output: seconds and loss of each step.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer


class _InOrder(RewardTrainer):
    """Takes the rows as they stand, so that both sides make the same optimizer steps."""

    def _get_train_sampler(self, dataset=None):
        return SequentialSampler(dataset if dataset is not None else self.train_dataset)


class _Clock(TrainerCallback):
    """Seconds and loss of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.began = 0.0

    def on_step_begin(self, *arguments, **named) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *arguments, **named) -> None:
        self.seconds.append(time.perf_counter() - self.began)

    def on_log(self, arguments, state, control, logs=None, **named) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def main() -> None:
    given = json.loads(sys.argv[1])
    steps = json.loads(Path(given["steps"]).read_text())
    rows = [
        {"chosen_ids": prompt + answers[i], "rejected_ids": prompt + answers[j]}
        for step in steps
        for prompt, answers in step
        for i, j in itertools.combinations(range(len(answers)), 2)
    ]
    config = RewardConfig(
        output_dir=given["work"],
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        num_train_epochs=1,
        learning_rate=given["learning_rate"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        per_device_train_batch_size=len(rows) // len(steps),
        gradient_checkpointing=False,  # TRL's default is on, which is slower
        logging_steps=1,
        max_length=None,
        dataloader_pin_memory=False,
    )
    model = AutoModelForSequenceClassification.from_pretrained(given["model"], num_labels=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    clock = _Clock()
    trainer = _InOrder(model=model, args=config, processing_class=tokenizer, train_dataset=Dataset.from_list(rows))
    trainer.add_callback(clock)
    trainer.train()
    print(json.dumps({"seconds": clock.seconds, "losses": clock.losses}))


if __name__ == "__main__":
    main()
