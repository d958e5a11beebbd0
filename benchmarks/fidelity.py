"""The claims of InstructGPT in the miniature, over three seeds on which no choice was made: the share that holds.

It is `trimtab quickstart --full` and its claims as one figure; about 20 minutes on 2 cores. With --dir the folder is
kept, and a run that was interrupted goes on.

    python benchmarks/fidelity.py [--dir DIR]

The last line is one JSON object: `ratio` is the share of (claim, seed) that hold.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from trimtab_trainer.quickstart import run_quickstart


def main() -> None:
    """Runs the proof and prints its share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, help="keeps the runs there")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        directory = args.dir or Path(temporary)
        code = run_quickstart(directory, "tiny", None, [], full=True)
        if code:
            raise SystemExit(code)
        report = json.loads((directory / "report.json").read_text())
    result = {
        "benchmark": "fidelity",
        "ratio": round(report["share_of_claims_that_hold"], 3),
        "goal": 1.0,
        "claims": {
            claim["claim"]: {key: claim[key] for key in ("measured", "low", "high", "holding", "runs")}
            for claim in report["claims"]
        },
        "wall_s": round(time.monotonic() - began),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
