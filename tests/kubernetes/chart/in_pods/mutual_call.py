"""Asks a weights service for its channels, with a token and the certificates that this pod has mounted. Arguments:
target, token. Prints OK or the error, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from trimtab import Client, TLSConfig
from trimtab.errors import TrimtabError
from trimtab.v1 import weights_pb2

MOUNTED = Path("/etc/trimtab-tls")


def outcome(target: str, token: str) -> str:
    tls = TLSConfig(MOUNTED / "ca.crt", MOUNTED / "tls.crt", MOUNTED / "tls.key")
    try:
        with Client(target, token=token, tls=tls, timeout_s=30) as client:
            client.list_channels(weights_pb2.ListChannelsRequest())
    except TrimtabError as error:
        return type(error).__name__
    return "OK"


print(json.dumps(outcome(*sys.argv[1:])))
