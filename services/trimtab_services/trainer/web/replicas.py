"""The replicas that the service knows of: those of the endpoints file, each asked how it is, as `trimtab status` does.

Where runs are Jobs the file is not set, and nothing is shown: each run finds its replicas itself, and tells their
number with its rollout queue.
"""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trimtab.channel import TLSConfig, Token
from trimtab.cli.replica import replica_row
from trimtab.client import Client
from trimtab_services.trainer.config import TrainerServiceConfig

__all__ = ["Replicas"]

_TIMEOUT_S = 3.0
_FRESH_S = 2.0
_AT_ONCE = 16


class Replicas:
    """Asks replicas, at most once within two seconds however many people look.

    Args:
        config: says where they are, and how runs on this machine authenticate.
    """

    def __init__(self, config: TrainerServiceConfig) -> None:
        self._file = config.endpoints_file
        self._token_file = config.token_file
        self._tls = TLSConfig(**config.report_tls.model_dump()) if config.report_tls is not None else None
        self._insecure = config.insecure
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="replicas")
        self._lock = asyncio.Lock()
        self._rows: list[dict[str, Any]] = []
        self._asked_at = -_FRESH_S

    @property
    def are_known(self) -> bool:
        """Whether there is a file that says where they are."""
        return self._file is not None

    async def rows(self) -> list[dict[str, Any]]:
        """`{service, address, state, version, newest, lag, waiting, running, note}` of each; see `replica_row`."""
        async with self._lock:
            if time.monotonic() - self._asked_at >= _FRESH_S and self._file is not None:
                loop = asyncio.get_running_loop()
                known = [(service, one["grpc"]) for service, ones in _read(self._file).items() for one in ones]
                told = await asyncio.gather(
                    *(loop.run_in_executor(self._pool, replica_row, address, self._connect) for _, address in known)
                )
                self._rows = [
                    {"service": service, "address": address, **row}
                    for (service, address), row in zip(known, told, strict=True)
                ]
                self._asked_at = time.monotonic()
        return self._rows

    def close(self) -> None:
        """Asks no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _connect(self, address: str) -> Client:
        """As runs on this machine do. A token file that is not there is said in the row, as what else is wrong."""
        token = Token(file=self._token_file) if self._token_file is not None else None
        return Client(address, timeout_s=_TIMEOUT_S, token=token, tls=self._tls, insecure=self._insecure)


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The endpoints file; nothing while it is not written yet."""
    try:
        table: dict[str, list[dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return table
