"""Prints the log-probs that a reference service gives a sequence, as JSON. Arguments: target, token, token ids."""

from __future__ import annotations

import json
import sys

from trimtab import Client, LogProbsItem, LogProbsRequest


def main(target: str, token: str, token_ids: str) -> None:
    with Client(target, token=token, insecure=True) as client:
        found = client.logprobs(LogProbsRequest(items=(LogProbsItem(token_ids=tuple(json.loads(token_ids))),)))
    print(json.dumps({"version": found.served.version, "logprobs": found.results[0].logprobs.tolist()}))


main(*sys.argv[1:])
