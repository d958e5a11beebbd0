"""A few steps of TRL's GRPO, with rewards from a Trimtab reward service.

pip install trimtab trl
python examples/trl_grpo.py 127.0.0.1:50051 MODEL
"""

from __future__ import annotations

import argparse
import tempfile

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from trimtab.integrations.rewards import RemoteRewards
from trimtab.integrations.trl import reward_function

QUESTIONS = ["What is a trim tab?", "What steers a ship?", "What does the dog do?", "Say something helpful."]


def main() -> None:
    """Trains and prints what TRL logs of each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="host:port of the reward service")
    parser.add_argument("model", help="policy: a folder, or a name on the Hugging Face hub")
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()

    rewards = RemoteRewards(arguments.address, timeout_s=60.0, empty_reward=-1.0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=arguments.model,
            reward_funcs=reward_function(rewards),
            args=GRPOConfig(
                output_dir=folder,
                max_steps=arguments.steps,
                per_device_train_batch_size=4,
                num_generations=4,
                max_completion_length=16,
                logging_steps=1,
                bf16=False,
                report_to="none",
            ),
            train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in QUESTIONS]),
        )
        trainer.train()
    for entry in trainer.state.log_history:
        if "rewards/trimtab_reward/mean" in entry:
            mean, deviation = (entry[f"rewards/trimtab_reward/{figure}"] for figure in ("mean", "std"))
            print(f"step {entry['step']}: reward {mean:.6f}, standard deviation {deviation:.6f}")


if __name__ == "__main__":
    main()
