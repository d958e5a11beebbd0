"""What runs in the process of a reward function. It imports nothing else, so that such a process starts at once."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

__all__ = ["call_function", "import_function"]


def import_function(directory: str, name: str) -> None:
    """Imports a function, so that the first call finds it.

    Args:
        directory: imported from first; empty: nowhere else than usual.
        name: `module:name`.

    Raises:
        Exception: whatever importing it raises; TypeError when it is no function.
    """
    _load(directory, name)


def call_function(directory: str, name: str, pairs: list[tuple[Any, str]]) -> list[Any]:
    """Rewards of pairs as the function gives them; single-element tensors as numbers.

    Args:
        directory, name: as in `import_function`.
        pairs: prompt, text or messages, and completion.
    """
    prompts = [prompt for prompt, _ in pairs]
    completions = [
        completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]
        for prompt, completion in pairs
    ]
    rewards = _load(directory, name)(prompts=prompts, completions=completions)
    return [reward.item() if hasattr(reward, "item") else reward for reward in rewards]


def _end_with_parent() -> None:
    """Ends this process when the service is gone, however long the function would still take."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@cache
def _load(directory: str, name: str) -> Callable[..., Any]:
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    module, _, attribute = name.partition(":")
    if directory and directory not in sys.path:
        sys.path.insert(0, directory)
    function = importlib.import_module(module)
    for part in attribute.split("."):
        function = getattr(function, part)
    if not callable(function):
        raise TypeError(f"{attribute} is a {type(function).__name__}, no function")
    found: Callable[..., Any] = function
    return found
