"""`trimtab eval reward-model`: how far a reward model agrees with labelers, and what stands beside that."""
