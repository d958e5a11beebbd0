"""RewardService: scalar rewards of (prompt, completion) pairs, batched across callers."""
