"""Is it safer: `trimtab eval toxicity`, `toxicity-classifier`, `bias`, `truthfulness` and `hallucination`."""
