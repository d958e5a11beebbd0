"""S3 for the tests: moto's server in a process of its own, and what another process would see in it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import s3fs
import yaml

from running import FREE_PORTS
from trimtab.client import Client
from trimtab.weights import fetch_version, publish_version

from .conftest import make_tensors

__all__ = ["FILES", "S3", "check", "publish", "serve_process", "serving"]

FILES = {"config.json": b'{"a": 1}', "empty.txt": b""}


class S3:
    """A running server.

    Args:
        url: its endpoint.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.environment = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": url,
            "AWS_MAX_ATTEMPTS": "2",  # boto's five tries take 10 s where each is answered with an error
        }
        self.outside = s3fs.S3FileSystem(
            endpoint_url=url, key="key", secret="secret", use_listings_cache=False, skip_instance_cache=True
        )
        """What another process would see and do."""

    def store(self) -> str:
        """URL of a new bucket's prefix."""
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        self.outside.mkdir(bucket)
        return f"s3://{bucket}/runs/weights"

    def fail(self, method: str, path: str, *, when: str = "before", times: int = 1_000_000) -> None:
        """Lets requests fail; `times=0` ends it."""
        fault = {"method": method, "path": path, "when": when, "times": times}
        assert httpx.post(f"{self.url}/_faults", json=fault).status_code == 204

    def heal(self) -> None:
        self.fail("PUT", "", times=0)

    def set_clock_ahead(self, seconds: float) -> None:
        assert httpx.post(f"{self.url}/_clock", json={"seconds": seconds}).status_code == 204

    def leftovers(self, store: str) -> list[str]:
        """Temporary files and unfinished uploads in parts."""
        path = store.removeprefix("s3://")
        uploads = self.outside.list_multipart_uploads(path.partition("/")[0])
        return [*self.outside.find(f"{path}/tmp"), *(upload["Key"] for upload in uploads)]


@contextmanager
def serving() -> Iterator[S3]:
    """Starts the server and ends it."""
    command = [sys.executable, str(Path(__file__).with_name("s3_server.py"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield S3(process.stdout.readline().strip())
    finally:
        process.terminate()
        process.wait(10)


def publish(client: Client, seed: int = 0, **options: Any) -> int:
    return publish_version(
        client, make_tensors(seed), FILES, **{"channels": ["policy/latest"], "timeout_s": 30, **options}
    ).version


def check(client: Client, version: int, seed: int) -> None:
    fetched = fetch_version(client, version=version)
    assert fetched.files == FILES
    for tensor in make_tensors(seed):
        assert bytes(fetched.tensors[tensor.name].data) == bytes(tensor.data)


def serve_process(
    directory: Path, store: str, environment: dict[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    ready = directory / "ready.json"
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump({**FREE_PORTS, "store": store, "ready_file": str(ready)}))
    with (directory / "log").open("ab") as log:
        command = [sys.executable, "-m", "trimtab", "serve", "weights", "--config", str(config)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    give_up = time.monotonic() + 60
    while not ready.exists():
        assert process.poll() is None and time.monotonic() < give_up, (directory / "log").read_text()
        time.sleep(0.02)
    addresses = json.loads(ready.read_text())
    ready.unlink()
    return process, addresses
