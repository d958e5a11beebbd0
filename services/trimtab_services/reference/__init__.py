"""ReferenceService: per-token log-probs of a frozen policy, batched across callers."""
