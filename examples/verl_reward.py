"""What verl takes as `custom_reward_function.path=examples/verl_reward.py`, with

    custom_reward_function.name=compute_score  # compute_score_batch with verl's reward manager `batch`
    +custom_reward_function.reward_kwargs.address=127.0.0.1:50051

and the prompt of each sample in `extra_info.prompt`. To see a reward without verl:

    python examples/verl_reward.py 127.0.0.1:50051
"""

from __future__ import annotations

import sys

from trimtab.integrations.verl import compute_score, compute_score_batch

__all__ = ["compute_score", "compute_score_batch"]

if __name__ == "__main__":
    extra_info = {"prompt": "What is a trim tab?"}
    print(compute_score("trimtab/example", "A small surface.", "", extra_info, address=sys.argv[1]))
