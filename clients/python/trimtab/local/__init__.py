"""Trimtab's services as processes of this machine: what `trimtab up`, `trimtab scale` and the quickstart run on.

- `services`: `LocalServices` starts, watches and drains the processes of one folder.
- `replica`: one process of one service.
- `folder`: the files by which it and others talk: endpoints.json, replicas.json.

It never imports a service: processes are all it knows. Layout of DIR:

    endpoints.json                   addresses of every replica, rewritten whenever one comes or goes
    replicas.json                    wanted number of replicas of each service; `trimtab scale` writes it
    store/                           the weights store
    runs/                            the trainer's runs
    services/NAME-I/config.yaml      the configuration given to that replica
    services/NAME-I/ready.json       its ports, written by itself once it is live
    services/NAME-I/log.jsonl        its log
"""

from trimtab.local.folder import SCALABLE, SERVICES, check_count, read_endpoints, read_wanted, request_scale
from trimtab.local.replica import end_with_parent
from trimtab.local.services import CHANNELS, LocalServices

__all__ = [
    "CHANNELS",
    "SCALABLE",
    "SERVICES",
    "LocalServices",
    "check_count",
    "end_with_parent",
    "read_endpoints",
    "read_wanted",
    "request_scale",
]
