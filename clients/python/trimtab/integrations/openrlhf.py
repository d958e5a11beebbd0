"""OpenRLHF: rewards of a Trimtab service through a `--remote_rm_url FILE.py`.

from transformers import AutoTokenizer
from trimtab.integrations.openrlhf import reward_function

reward_func = reward_function("127.0.0.1:50051", AutoTokenizer.from_pretrained("REWARD-MODEL"))

OpenRLHF itself is not run in Trimtab's tests: this is the signature of its `examples/python/reward_func.py`, tested
against a real reward service.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from trimtab.integrations.rewards import RemoteRewards
from trimtab.types import ScoreItem

__all__ = ["reward_function"]


def reward_function(service: str | RemoteRewards, tokenizer: Any) -> Callable[..., dict[str, Any]]:
    """The `reward_func` that OpenRLHF looks for in the file.

    OpenRLHF gives each rollout as text that spells out its control tokens and its chat template. It is turned back into
    token ids by the tokenizer, as in OpenRLHF's own reward server, and its padding and EOS at the end become one EOS,
    where the reward is read.

    Args:
        service: host:port of the reward service, or `RemoteRewards` to say more than that.
        tokenizer: of the served reward model: a `transformers` tokenizer.

    Returns:
        `reward_func(queries, prompts, labels, **kwargs)`, which several threads may call. `queries` are prompts with
        their completions; prompts and labels are not used. Of what it returns, `rewards` are raw rewards, float32
        [queries]; `scores`, by which OpenRLHF filters prompts and which it expects between 0 and 1, are
        sigmoid(rewards); `extra_logs` has the `reward` for OpenRLHF's logs. It raises `TrimtabError`, which OpenRLHF
        logs before it goes on without that reward.
    """
    remote = RemoteRewards(service) if isinstance(service, str) else service
    one_at_a_time = threading.Lock()  # a tokenizer's settings are its state
    ending = {tokenizer.pad_token_id, tokenizer.eos_token_id}

    def token_ids(query: str) -> tuple[int, ...]:
        with one_at_a_time:
            ids = list(tokenizer(query, add_special_tokens=False)["input_ids"])
        while ids and ids[-1] in ending:
            ids.pop()
        return (*ids, tokenizer.eos_token_id)

    def reward_func(queries: Sequence[str], prompts: object, labels: object, **kwargs: object) -> dict[str, Any]:
        torch = importlib.import_module("torch")
        items = [ScoreItem(token_ids=token_ids(query)) for query in queries]
        found = remote.of_items(items, [f"queries[{index}]" for index in range(len(items))])
        rewards = torch.tensor(found, dtype=torch.float32)
        return {"rewards": rewards, "scores": torch.sigmoid(rewards), "extra_logs": {"reward": rewards}}

    return reward_func
