"""`trimtab eval compute`: what a run cost; `ledger` is arithmetic, `run` reads a run, `model_flops` counts a model."""
