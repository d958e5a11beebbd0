"""Trimtab's reward service inside other RLHF libraries: thin functions with the signatures that those ask for.

- `rewards`: `RemoteRewards`, the connection that all of them share.
- `trl`: the reward function of `GRPOTrainer`, and the evaluation of `RewardTrainer`.
- `openrlhf`: the function of a `--remote_rm_url` Python file.
- `verl`: the functions of `custom_reward_function`, for one sample and for a batch.

Nothing here imports those libraries, or torch, before it is called.
"""
