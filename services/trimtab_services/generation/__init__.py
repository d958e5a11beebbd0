"""GenerationService: samples completions from the policy, with log-probs and the version that sampled each token."""
