"""Devices that are there, and those that are not."""

from __future__ import annotations

import pytest
import torch

from trimtab.errors import ConfigError
from trimtab_models.devices import usable_device


def test_a_device_that_is_not_there_is_named_with_those_that_are() -> None:
    assert usable_device("cpu") == torch.device("cpu")
    for name in (f"cuda:{torch.cuda.device_count()}", "gpu"):
        with pytest.raises(ConfigError, match=f"device: '{name}' cannot be used: .*; usable here: cpu"):
            usable_device(name)
