"""What a policy, a reward model, a value model and a log-prob are: one definition for services and trainer."""
