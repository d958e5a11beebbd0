"""Makes a labeling project and prints the names of all, as JSON. Arguments: target, token, name."""

from __future__ import annotations

import json
import sys

from trimtab import Client
from trimtab.v1 import labeling_pb2 as pb


def main(target: str, token: str, name: str) -> None:
    with Client(target, token=token, insecure=True) as client:
        client.create_project(pb.CreateProjectRequest(project=pb.Project(name=name, kind=pb.TASK_KIND_RANK)))
        projects = client.list_projects(pb.ListProjectsRequest()).projects
    print(json.dumps([project.name for project in projects]))


main(*sys.argv[1:])
