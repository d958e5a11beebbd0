"""Engines: what turns prompts into tokens. `base` says what each promises; `transformers` is the embedded default."""
