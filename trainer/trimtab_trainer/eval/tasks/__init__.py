"""`trimtab eval tasks`: benchmarks by lm-eval, what alignment cost elsewhere."""
