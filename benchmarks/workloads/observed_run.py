"""`trimtab run` with a witness: each batch is written down, sample by sample, before the trainer learns from it.

    python observed_run.py FOLDER run SPEC_FILE [--resume]

The arguments after FOLDER are those of `trimtab`; nothing else about the run differs. An iteration that a resumed run
does again has a second file, so that what was thrown away with a killed trainer is known, too.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from trimtab.cli import main
from trimtab_trainer import ppo
from trimtab_trainer.checkpoint import write_file_atomically
from trimtab_trainer.rollouts import Rollout


def witnessed(build_experience: Any, folder: Path) -> Any:
    """`ppo.build_experience` that writes FOLDER/ITERATION.TIME.json: prompt_id, sample index and digest of each."""

    @wraps(build_experience)
    def build(agent: Any, rollouts: Sequence[Rollout], plan: Any, config: Any, state: ppo.PPOState) -> ppo.Experience:
        samples = [(rollout.prompt_id, rollout.sample_index, digest(rollout)) for rollout in rollouts]
        path = folder / f"{state.iteration + 1:06d}.{time.time_ns()}.json"
        write_file_atomically(path, json.dumps(samples))
        return build_experience(agent, rollouts, plan, config, state)

    return build


def digest(rollout: Rollout) -> str:
    """Of all that the services said: prompt, tokens and their versions, three kinds of figures to the last bit."""
    exact = [rollout.generation_logprobs.tobytes(), rollout.known_ref_logprobs.tobytes()]
    told = (rollout.prompt_token_ids, rollout.token_ids, rollout.ended, rollout.version_spans, rollout.known_reward)
    return hashlib.sha256(repr(told).encode() + b"".join(exact)).hexdigest()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.argv = ["trimtab", *sys.argv[2:]]
    ppo.build_experience = witnessed(ppo.build_experience, folder)
    main()
