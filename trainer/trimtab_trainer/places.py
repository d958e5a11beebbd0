"""The place of a process among those of its run, by the environment variables of torchrun. Imports no torch."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from trimtab.errors import ConfigError

__all__ = ["Place"]

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOOPBACK = "127.0.0.1"
_AGENTS_STORE = "TORCHELASTIC_USE_AGENT_STORE"


@dataclass(frozen=True)
class Place:
    """Which of its run's processes one is.

    Attributes:
        rank: from 0; rank 0 runs the stages.
        size: processes of the run, at least 2.
        local_rank: number on its machine, and of its GPU.
        local_size: processes on its machine.
        address: where rank 0 is.
        port: its port that the others come to.
        rank_0_listens: False where torchrun listens on that port itself.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    rank_0_listens: bool = True

    @classmethod
    def of(cls, environment: Mapping[str, str], *, processes: int = 1) -> Place | None:
        """As the environment says, or rank 0 of several processes of this machine; None for a run of one process.

        Args:
            environment: variables of this process.
            processes: that it is to start, itself included.

        Raises:
            ConfigError: a variable is missing or no number, the rank is outside of the world, or the environment names
                processes beside those to start.
        """
        if environment.get("WORLD_SIZE", "1") == "1":
            return cls._first_of(processes) if processes > 1 else None
        if processes > 1:
            raise ConfigError(
                f"processes: {processes}, but WORLD_SIZE is {environment['WORLD_SIZE']}: whoever set it has started "
                "the processes of this run",
                field="processes",
                value=processes,
                limit=1,
            )
        missing = [name for name in _NEEDED if not environment.get(name)]
        if missing:
            raise ConfigError(
                f"environment: WORLD_SIZE is {environment['WORLD_SIZE']}, so {', '.join(missing)} must be set too",
                field=missing[0],
            )
        rank, size, port = (_number(environment, name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        local_rank, local_size = (
            _number(environment, name) if environment.get(name) else alone
            for name, alone in (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
        )
        if not 0 <= rank < size:
            raise ConfigError(
                f"environment: RANK is {rank}; allowed by WORLD_SIZE: 0..{size - 1}",
                field="RANK",
                value=rank,
                limit=size - 1,
            )
        listens = environment.get(_AGENTS_STORE) != str(True)
        return cls(rank, size, local_rank, local_size, environment["MASTER_ADDR"], port, listens)

    @classmethod
    def _first_of(cls, size: int) -> Place:
        """Rank 0 of processes that it starts on this machine, at a port that is free now."""
        with socket.socket() as free:
            free.bind((_LOOPBACK, 0))
            return cls(0, size, 0, size, _LOOPBACK, free.getsockname()[1])

    def environment(self) -> dict[str, str]:
        """The variables that say so."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }

    def settings(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Variables that torch reads when it is imported, where the environment does not say.

        Processes on one machine share its cores and leave them to each other while they wait; what is on one machine
        only listens to no other.
        """
        threads = max(1, len(os.sched_getaffinity(0)) // self.local_size)
        wanted = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
        if self.address == _LOOPBACK and sys.platform == "linux":
            wanted["GLOO_SOCKET_IFNAME"] = "lo"
        return {name: environment.get(name, value) for name, value in wanted.items()}


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise ConfigError(
            f"environment: {name} is {environment[name]!r}; allowed: a number", field=name, value=environment[name]
        ) from None
