"""Prints the serial number of the certificate that each HOST:PORT of the arguments shows to a new connection, as JSON.

The connection is made with the certificates that this pod has mounted; its own address needs not stand in one.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
from pathlib import Path

MOUNTED = Path("/etc/trimtab-tls")


def serial(address: str) -> int:
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(MOUNTED / "ca.crt"))
    context.check_hostname = host != "127.0.0.1"
    context.load_cert_chain(MOUNTED / "tls.crt", MOUNTED / "tls.key")
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection((host, int(port)), 10) as raw, context.wrap_socket(raw, server_hostname=host) as tls:
        found = tls.getpeercert()
    assert found is not None
    return int(str(found["serialNumber"]), 16)


print(json.dumps([serial(address) for address in sys.argv[1:]]))
