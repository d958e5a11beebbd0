"""A network of two hosts whose cable a test can cut: a network namespace, where this machine lets us make one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ["OtherHost", "other_host"]


class OtherHost:
    """A network namespace at the other end of a cable.

    Attributes:
        address: its own.
        here: this side's, as seen from there.
        within: the command that runs another one there.
    """

    address = "10.213.7.2"
    here = "10.213.7.1"

    def __init__(self) -> None:
        self._name = f"trimtab-{os.getpid()}"
        self._cable = f"tt{os.getpid()}"  # an interface's name has 15 characters at most
        self.within = ("ip", "netns", "exec", self._name)
        try:
            made = subprocess.run(["ip", "netns", "add", self._name], capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("dropped packets need `ip`, which is not installed")
        if made.returncode:
            pytest.skip(f"dropped packets need a network namespace of their own: {made.stderr.strip()}")
        there = f"{self._cable}b"
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", there, "netns", self._name)
        for device, address, namespace in ((self._cable, self.here, ()), (there, self.address, ("-n", self._name))):
            _ip(*namespace, "addr", "add", f"{address}/30", "dev", device)
            _ip(*namespace, "link", "set", device, "up")
        _ip("-n", self._name, "link", "set", "lo", "up")
        # Without an entry that stays, a sender would be told after some seconds that nobody has the address.
        mac = _ip("-n", self._name, "-brief", "link", "show", there).split()[2]
        _ip("neigh", "replace", self.address, "lladdr", mac, "dev", self._cable, "nud", "permanent")

    def cut(self) -> None:
        """From now on every packet to it is lost, and nobody is told."""
        _ip("-n", self._name, "link", "set", f"{self._cable}b", "down")

    def mend(self) -> None:
        """Packets pass again."""
        _ip("-n", self._name, "link", "set", f"{self._cable}b", "up")

    def remove(self) -> None:
        """Its processes must have ended."""
        _ip("link", "del", self._cable)
        _ip("netns", "del", self._name)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@contextmanager
def other_host() -> Iterator[OtherHost]:
    """Skips the test where it is not permitted."""
    host = OtherHost()
    try:
        yield host
    finally:
        host.remove()
