"""The training head of Trimtab: SFT, reward model, PPO-ptx, their data, and the miniature world of the quickstart."""
