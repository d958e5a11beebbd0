"""Tries to connect to every HOST:PORT of the arguments, all at once; prints those that took the connection, as JSON."""

from __future__ import annotations

import asyncio
import json
import sys

PATIENCE_S = 4.0


async def connects(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(PATIENCE_S):
            _, writer = await asyncio.open_connection(host, int(port))
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def main(addresses: list[str]) -> None:
    taken = await asyncio.gather(*map(connects, addresses))
    print(json.dumps([address for address, took in zip(addresses, taken, strict=True) if took]))


asyncio.run(main(sys.argv[1:]))
