"""What is let out, whatever the engine hands over."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from trimtab.errors import InternalError, TrimtabError, VersionUnavailable
from trimtab.types import FinishReason, VersionRequirement, VersionSpan
from trimtab_services.generation.completions import Completions
from trimtab_services.generation.config import GenerationConfig
from trimtab_services.generation.engines.base import FinishedSequence
from trimtab_services.generation.policy import PolicyHolder
from trimtab_services.runtime.state import Runtime


@pytest.mark.parametrize(
    ("requirement", "deterministic", "versions", "error"),
    [
        (VersionRequirement(), False, (1, 2), None),
        (VersionRequirement(exactly=1), False, (1,), None),
        (VersionRequirement(exactly=1), False, (1, 2), InternalError),
        (VersionRequirement(exactly=1), False, (2,), InternalError),
        (VersionRequirement(at_least=2), False, (2, 3), None),
        (VersionRequirement(at_least=2), False, (3, 1), VersionUnavailable),  # rolled back in between
        (VersionRequirement(), True, (1,), None),
        (VersionRequirement(), True, (1, 2), InternalError),
    ],
)
def test_no_completion_of_a_wrong_version_gets_out(
    requirement: VersionRequirement,
    deterministic: bool,
    versions: tuple[int, ...],
    error: type[TrimtabError] | None,
    tmp_path: Path,
) -> None:
    spans = tuple(VersionSpan(start_token=i, end_token=i + 1, version=v) for i, v in enumerate(versions))
    logprobs = np.zeros(len(versions), np.float32)
    done = FinishedSequence(1, (5,) * len(versions), logprobs, FinishReason.LENGTH, spans)

    async def check() -> None:
        config = GenerationConfig(model_folder=tmp_path, deterministic=deterministic)
        runtime = Runtime(config, "generation", "trimtab.v1.GenerationService")
        Completions(config, PolicyHolder(runtime))._check_spans(requirement, done)

    if error is None:
        asyncio.run(check())
        return
    with pytest.raises(error, match=str(versions[-1])):
        asyncio.run(check())
