"""Prints what a weights service holds, as JSON: its versions, and the channels that point to them. Arguments: target,
token."""

from __future__ import annotations

import json
import sys

from trimtab import Client
from trimtab.v1 import weights_pb2


def main(target: str, token: str) -> None:
    with Client(target, token=token, insecure=True) as client:
        versions = client.list_versions(weights_pb2.ListVersionsRequest()).versions
        channels = client.list_channels(weights_pb2.ListChannelsRequest()).channels
    found = {
        "versions": {str(one.version): one.weights_digest for one in versions},
        "channels": {one.name: one.version for one in channels},
    }
    print(json.dumps(found))


main(*sys.argv[1:])
