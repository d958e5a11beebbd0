"""Python reward functions, each in a process of its own that a time limit can end."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from pebble import ProcessExpired, ProcessPool

from trimtab.errors import ConfigError, DeadlineExceeded, InternalError, TrimtabError
from trimtab_services.reward.calling import call_function, import_function
from trimtab_services.reward.config import FunctionConfig
from trimtab_services.reward.external import TextPair

__all__ = ["RewardFunction"]

_IMPORT_S = 120.0


class RewardFunction:
    """Calls `function(prompts, completions)`, TRL's convention, in another process.

    A conversation's prompt is a list of `{"role", "content"}` and its completion a list of one such message, as there.

    Args:
        name: of the model, for messages.
        config: which function, and its limits.
    """

    final_errors: tuple[type[TrimtabError], ...] = (DeadlineExceeded,)

    def __init__(self, name: str, config: FunctionConfig) -> None:
        self._name = name
        self._config = config
        self._is_imported = False
        # a forked copy of a process with threads may never run; spawned ones start clean
        self._pool = ProcessPool(max_workers=1, context=multiprocessing.get_context("spawn"))

    def check(self) -> None:
        """Imports the function. Blocks.

        Raises:
            ConfigError: it cannot be imported, or is no function.
        """
        try:
            self._import()
        except TrimtabError as error:
            raise ConfigError(
                f"models.{self._name}.function: {self._config.function}: {error.message}",
                field=f"models.{self._name}.function",
                value=self._config.function,
            ) from None

    def __call__(self, pairs: Sequence[TextPair]) -> Sequence[float]:
        """Rewards of a batch.

        Raises:
            DeadlineExceeded: it took longer than the time limit; its process was ended.
            InternalError: it raised, or its process died.
        """
        if not self._is_imported:  # the process before was ended, or died
            self._import()
        given = [(pair.prompt, pair.completion) for pair in pairs]
        rewards: Sequence[float] = self._run(
            call_function, (self._where, self._config.function, given), self._config.timeout_s
        )
        return rewards

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._pool.stop()
        self._pool.join()

    def _import(self) -> None:
        self._run(import_function, (self._where, self._config.function), _IMPORT_S)
        self._is_imported = True

    @property
    def _where(self) -> str:
        return "" if self._config.directory is None else str(self._config.directory.resolve())

    def _run(self, function: Callable[..., Any], arguments: tuple[Any, ...], timeout_s: float) -> Any:
        try:
            return self._pool.schedule(function, args=arguments, timeout=timeout_s).result()
        except FutureTimeoutError:
            self._is_imported = False
            raise DeadlineExceeded(
                f"{self._name}: {self._config.function} was not done within {timeout_s:g} s and was ended",
                field="timeout_s",
                limit=timeout_s,
            ) from None
        except ProcessExpired as error:
            self._is_imported = False
            raise InternalError(
                f"{self._name}: the process of {self._config.function} died with exit code {error.exitcode}",
                field="function",
                value=self._config.function,
            ) from None
        except Exception as error:
            raise InternalError(
                f"{self._name}: {self._config.function} raised {type(error).__name__}: {error}",
                field="function",
                value=self._config.function,
            ) from None  # what it raised may quote a prompt, and would be logged
