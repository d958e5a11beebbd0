"""Accuracy, margin and loss of a served reward model on preferences, as TRL's RewardTrainer reports them.

    pip install trimtab
    python examples/trl_evaluate.py 127.0.0.1:50051 preferences.jsonl

Each row has `prompt`, `chosen` and `rejected`. A `datasets.Dataset` does as well as the list here.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from trimtab.integrations.rewards import RemoteRewards
from trimtab.integrations.trl import evaluate_preferences


def main() -> None:
    """Prints the metrics as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="host:port of the reward service")
    parser.add_argument("file", type=Path, help="JSON lines")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.file.read_text(encoding="utf-8").splitlines()]
    metrics = evaluate_preferences(rows, RemoteRewards(arguments.address, timeout_s=60.0))
    print(json.dumps(asdict(metrics)))


if __name__ == "__main__":
    main()
