"""Memory that is full: whichever allocator says so, what was asked for and what needs less is told."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from trimtab_trainer.memory import out_of_memory, telling_full_memory

FAR_TOO_MUCH = 2**46
"""Elements of 4 or 8 bytes: more than an address has room for, whatever the system lets a process ask for."""


def test_torch_on_the_cpu() -> None:
    with pytest.raises(OSError, match=r"out of memory, \d+\.\d\d MiB more were asked for: .*micro_batch") as caught:
        with telling_full_memory("sft"):
            torch.empty(FAR_TOO_MUCH)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOMEM, "sft")


def test_numpy() -> None:
    with pytest.raises(OSError, match="out of memory, 512 TiB more were asked for"):
        with telling_full_memory("sft"):
            np.empty(FAR_TOO_MUCH)


def test_python() -> None:
    with pytest.raises(OSError, match="out of memory: a smaller micro_batch_tokens"):
        with telling_full_memory("sft"):
            bytearray(8 * FAR_TOO_MUCH)


def test_torch_on_a_gpu() -> None:
    """In the words of torch 2.13; its class is raised by no CPU."""
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a capacity of 79 GiB")
    assert out_of_memory(error).startswith("out of memory, 2.5 GiB more were asked for: ")


def test_any_other_error_is_itself() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        with telling_full_memory("sft"):
            torch.ones(2, 3) @ torch.ones(2, 3)
