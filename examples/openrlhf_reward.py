"""What OpenRLHF takes as `--remote_rm_url examples/openrlhf_reward.py`, with these two in its environment:

    TRIMTAB_REWARD=127.0.0.1:50051  TRIMTAB_REWARD_TOKENIZER=REWARD-MODEL-FOLDER

To see a reward without OpenRLHF:

    python examples/openrlhf_reward.py 127.0.0.1:50051 REWARD-MODEL-FOLDER
"""

from __future__ import annotations

import os
import sys

from transformers import AutoTokenizer

from trimtab.integrations.openrlhf import reward_function

if __name__ == "__main__":
    address, tokenizer = sys.argv[1:]
else:
    address, tokenizer = os.environ["TRIMTAB_REWARD"], os.environ["TRIMTAB_REWARD_TOKENIZER"]

reward_func = reward_function(address, AutoTokenizer.from_pretrained(tokenizer))

if __name__ == "__main__":
    prompt = "What is a trim tab? "
    print(reward_func([f"{prompt}A small surface."], [prompt], [""]))
