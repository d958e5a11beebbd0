"""Which devices torch can use here, and giving their memory back."""

from __future__ import annotations

import gc

import torch

from trimtab.errors import ConfigError

__all__ = ["give_back_memory", "usable_device"]


def give_back_memory() -> None:
    """Gives what nothing in this process holds any more back to the GPUs, for whoever else is on them."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def usable_device(name: str | torch.device) -> torch.device:
    """The device of a name such as `cpu` or `cuda:1`.

    Raises:
        ConfigError: no such device, or this torch cannot use it; names those that it can.
    """
    known = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0]
        allowed = ", ".join(known)
        raise ConfigError(
            f"device: {str(name)!r} cannot be used: {line}; usable here: {allowed}",
            field="device",
            value=name,
            limit=allowed,
        ) from None
    return device
